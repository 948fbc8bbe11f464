"""Crop, pad and resize: area averaging when shrinking, linear when enlarging, one thread."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np

from pipelines.image.decode import DEFAULT_BACKGROUND, Pixels
from pipelines.image.header import ImageHeader

SCALED_MARGIN = 2
"""How much larger than wanted a scaled decoding must be; the figures are under Decisions."""

GeometryMode = Literal["none", "fit", "crop", "pad", "squash"]


@dataclass(frozen=True)
class Geometry:
    """How pixels of any size become pixels of the wanted size."""

    size_px: int = 0
    """Target side; 0 leaves the pixels as they are."""
    mode: GeometryMode = "none"
    """`fit`: short side becomes `size_px`, aspect kept; `crop`: centre square, then resized; `pad`: long side becomes
    `size_px`, padded to a square with the background; `squash`: square whatever the aspect; `none`: unchanged."""
    crop_ratio: float = 1.0
    """Share of the short side that `crop` keeps; 0.875 is the usual evaluation crop (256 to 224)."""
    can_enlarge: bool = True
    """False shrinks only: an image that is already small enough keeps its pixels."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(GeometryMode):
            raise ValueError(f"geometry mode is {self.mode!r}; it must be one of {', '.join(get_args(GeometryMode))}")
        if self.size_px < 0:
            raise ValueError(f"geometry size_px is {self.size_px}; it must be 0 or greater")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"geometry crop_ratio is {self.crop_ratio}; it must be above 0 and at most 1")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Geometry":
        """Build from `to_json`'s values; raises ValueError or TypeError on others."""
        return cls(**values)

    def keeps(self, width: int, height: int) -> bool:
        """Whether pixels of this size pass unchanged."""
        if self.size_px == 0 or self.mode == "none":
            return True
        if self.can_enlarge:
            return width == height == self.size_px and self.crop_ratio == 1
        if self.mode == "fit":
            return min(width, height) <= self.size_px
        return max(width, height) <= self.size_px

    def divisor_of(self, header: ImageHeader) -> int:
        """Return what `divisor` says of an image whose header is known."""
        return self.divisor(header.width, header.height)

    def divisor(self, width: int, height: int) -> int:
        """Return 8, 4, 2 or 1: by which a decoder may divide both sides, by a rule that loses nothing visible.

        What is left is still at least twice as large as what is wanted of it.
        """
        if self.keeps(width, height):
            return 1
        short, long = min(width, height), max(width, height)
        used = {"crop": round(short * self.crop_ratio), "pad": long}.get(self.mode, short)
        return next((number for number in (8, 4, 2) if used >= SCALED_MARGIN * number * self.size_px), 1)

    def cropped_fraction(self, width: int, height: int) -> float:
        """Return the share of an image's pixels that is cut away, 0 to 1."""
        if self.mode != "crop" or self.keeps(width, height):
            return 0.0
        side = max(1, round(min(width, height) * self.crop_ratio))
        return 1 - side * side / (width * height)


def apply_geometry(
    pixels: Pixels,
    geometry: Geometry,
    background: tuple[int, int, int] = DEFAULT_BACKGROUND,
    whole_size: tuple[int, int] | None = None,
) -> Pixels:
    """Return (H, W, 3) pixels of the geometry's size; the very same array when nothing is to be done.

    `whole_size` is the image's own width and height where `pixels` were decoded at a scale; sizes follow from it.
    """
    height, width = pixels.shape[:2]
    divisor = 1.0
    if whole_size is not None and whole_size != (width, height):
        divisor = whole_size[0] / width
        width, height = whole_size
    if geometry.keeps(width, height):
        return pixels
    short, long = min(width, height), max(width, height)
    size = geometry.size_px
    if geometry.mode == "fit":
        return resize_pixels(pixels, max(1, round(width * size / short)), max(1, round(height * size / short)))
    if geometry.mode == "squash":
        return resize_pixels(pixels, size, size)
    if geometry.mode == "pad":
        inner_width, inner_height = max(1, round(width * size / long)), max(1, round(height * size / long))
        canvas: Pixels = np.full((size, size, 3), background, dtype=np.uint8)
        top, left = (size - inner_height) // 2, (size - inner_width) // 2
        inner = resize_pixels(pixels, inner_width, inner_height)
        canvas[top : top + inner_height, left : left + inner_width] = inner
        return canvas
    side = max(1, round(short * geometry.crop_ratio))
    top, left = (height - side) // 2, (width - side) // 2
    target = size if geometry.can_enlarge else min(size, side)
    if divisor != 1:
        top, left, side = round(top / divisor), round(left / divisor), round(side / divisor)
    return resize_pixels(pixels[top : top + side, left : left + side], target, target)


def resize_pixels(pixels: Pixels, width: int, height: int, into: Pixels | None = None) -> Pixels:
    """Resize to exactly `width` x `height`, with the same result on any number of cores.

    `into` is contiguous memory of that size to write to, which is then what is returned.
    """
    if pixels.shape[:2] == (height, width):
        if into is None:
            return np.ascontiguousarray(pixels)
        into[...] = pixels
        return into
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)  # Ray runs one task a core already
    is_shrinking = width <= pixels.shape[1] and height <= pixels.shape[0]
    method = cv2.INTER_AREA if is_shrinking else cv2.INTER_LINEAR
    if pixels.strides[1:] != (pixels.shape[2], 1) or pixels.strides[0] < 0:
        pixels = np.ascontiguousarray(pixels)  # a part of an image, whose rows lie apart, needs no copy
    return np.asarray(cv2.resize(pixels, (width, height), dst=into, interpolation=method), dtype=np.uint8)
