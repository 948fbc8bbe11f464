"""Bytes to upright RGB pixels: the fast JPEG decoder where it equals Pillow, Pillow's listed formats elsewhere."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from pipelines.image.header import DEFAULT_LIMITS, ImageHeader, Limits, RefusedImage, check_size, size_flags
from pipelines.image.sniff import sniff_image

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) RGB, 0 to 255."""

DEFAULT_BACKGROUND = (255, 255, 255)

ValueRange = tuple[float, float]
"""The values of 16-bit, 32-bit and float samples that become 0 and 255; linear between, clipped outside."""

MAX_SCRATCH_BYTES = 2**24

DivisorRule = Callable[[ImageHeader], int]
"""From a plain JPEG's header to 1, 2, 4 or 8: by which width and height may be divided while decoding."""

SHIFTED_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
WIDE_MODES = (*SHIFTED_MODES, "I", "F")
PLAIN_MODES = ("L", "1", "P", "CMYK", "YCbCr")
UNSIGNED_32 = "32-bit unsigned"
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


class Scratch:
    """Memory that images are decoded into one after the other, by one thread.

    Fresh memory comes from the system page by page: of 256 x 256 pixels that takes a seventh of what decoding does.
    """

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def take(self, size: int) -> npt.NDArray[np.uint8] | None:
        """Return memory of at least `size` bytes; None where that is more than is kept."""
        if size > MAX_SCRATCH_BYTES:
            return None
        if size > len(self._bytes):
            self._bytes = np.empty(size, dtype=np.uint8)
        return self._bytes


@dataclass(frozen=True)
class DecodedImage:
    """Upright RGB pixels with what the source said of itself; `source_width` is before EXIF orientation."""

    pixels: Pixels
    format: str
    source_width: int
    source_height: int
    orientation: int
    flags: tuple[str, ...]
    is_plain: bool
    """The file holds these very pixels: nothing was turned, composited, shifted or converted from CMYK."""
    is_scaled: bool
    """`pixels` are the decoder's own reduction of the image."""
    is_strict: bool
    """The fast decoder took the whole file without a complaint: nothing lies hidden between its pixels."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the whole image, upright; `pixels` are smaller where it was decoded at a scale."""
        if not self.is_scaled:
            return self.pixels.shape[1], self.pixels.shape[0]
        size = self.source_width, self.source_height
        return size if self.orientation < 5 else (size[1], size[0])


def decode_image(
    data: bytes,
    limits: Limits = DEFAULT_LIMITS,
    background: tuple[int, int, int] = DEFAULT_BACKGROUND,
    *,
    value_range: ValueRange | None = None,
    divisor_rule: DivisorRule | None = None,
    scratch: Scratch | None = None,
) -> DecodedImage:
    """Decode one image by the declared colour rules, which the room's README lists.

    Args:
        data: the file.
        limits: what it may claim.
        background: RGB on which transparent pixels are composited.
        value_range: what wide samples are scaled by; without it 16-bit ones are shifted right by 8, others refused.
        divisor_rule: may make the pixels of a plain JPEG smaller, by the decoder's own scaling; None: never.
        scratch: where the pixels may be; they then last until it is used again.

    Raises:
        RefusedImage: with the code of the first rule that the bytes break.
    """
    header = sniff_image(data, limits)
    if header.wide_samples and value_range is None:
        raise RefusedImage(
            "MODE",
            f"{header.wide_samples} samples have no declared range; 8 and 16-bit unsigned are read,"
            " others with image.value_range=[LOWEST, HIGHEST]",
        )
    divisor = divisor_rule(header) if divisor_rule and header.is_plain_jpeg else 1
    pixels, is_plain = _decode_plain_jpeg(data, header, divisor, scratch) if header.is_plain_jpeg else None, True
    is_strict = pixels is not None
    if pixels is None:
        pixels, is_plain, header = _decode_with_pillow(data, header, limits, background, value_range)
    flags = (*header.flags, *size_flags(header.width, header.height, header.frames))
    upright = apply_orientation(pixels, header.orientation)
    return DecodedImage(
        pixels=upright,
        format=header.format,
        source_width=header.width,
        source_height=header.height,
        orientation=header.orientation,
        flags=flags,
        is_plain=is_plain and header.orientation == 1,
        is_scaled=is_strict and divisor > 1,
        is_strict=is_strict,
    )


def _decode_plain_jpeg(data: bytes, header: ImageHeader, divisor: int, scratch: Scratch | None) -> Pixels | None:
    """Decode with libjpeg-turbo; None when it has any complaint, so that Pillow alone decides what is refused."""
    height, width = (-(-header.height // divisor), -(-header.width // divisor)) if divisor > 1 else (0, 0)
    buffer = scratch.take(header.height * header.width * 3) if scratch else None
    try:
        # the smallest of its scales (n/8) that has these sides is 1/divisor itself
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, "RGB", strict=True, min_height=height, min_width=width, buffer=buffer
        )
    except ValueError:
        return None
    return pixels


def _decode_with_pillow(
    data: bytes,
    header: ImageHeader,
    limits: Limits,
    background: tuple[int, int, int],
    value_range: ValueRange | None,
) -> tuple[Pixels, bool, ImageHeader]:
    try:
        # the one sniffed format: Pillow's other parsers (EPS starts Ghostscript) never see the bytes
        with Image.open(io.BytesIO(data), formats=[header.format]) as image:
            if not header.width:
                header = _complete_header(image, header)
            check_size(*image.size, header.frames, limits)
            image.load()
            is_plain = image.mode in ("RGB", "L", "1", "P") and "transparency" not in image.info
            is_deep = image.mode in WIDE_MODES or any(flag.startswith("depth") for flag in header.flags)
            if value_range is not None and is_deep:
                return _scale_values(image, header, value_range), False, header
            return _flatten_colors(image, background), is_plain and not is_deep, header
    except RefusedImage:
        raise
    except Image.DecompressionBombError as error:
        raise RefusedImage("BOMB_PIXELS", str(error)) from error
    except MemoryError as error:
        raise RefusedImage("MEMORY", "decoding asked for more memory than there is") from error
    except EOFError as error:
        raise RefusedImage("TRUNCATED", f"{header.format} ends too early") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        struct.error,
    ) as error:
        # this is what Pillow's parsers raise on hostile bytes; every one means that the file is at fault
        text = str(error)
        reason = "TRUNCATED" if "truncated" in text.lower() else "CORRUPT"
        reason = "BOMB_META" if "too large" in text and "Decompressed" in text else reason
        raise RefusedImage(reason, f"{header.format} cannot be decoded: {text[:200]}") from error


def _complete_header(image: Image.Image, header: ImageHeader) -> ImageHeader:
    """Fill in what only Pillow's parser knows of BMP, PPM and AVIF; nothing is decoded yet."""
    orientation = image.getexif().get(0x0112, 1)
    is_valid = isinstance(orientation, int) and 1 <= orientation <= 8
    return ImageHeader(
        format=header.format,
        width=image.size[0],
        height=image.size[1],
        frames=int(getattr(image, "n_frames", 1)),
        orientation=orientation if is_valid else 1,
        flags=header.flags if is_valid else (*header.flags, "exif_invalid"),
    )


def _flatten_colors(image: Image.Image, background: tuple[int, int, int]) -> Pixels:
    """The declared colour rules: composite transparency, shift 16-bit samples, refuse what has no declared range."""
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        layers = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(layers, mask=layers.getchannel("A"))
        return np.array(canvas)
    if image.mode == "RGB":
        return np.array(image)
    if image.mode in PLAIN_MODES:
        return np.array(image.convert("RGB"))
    if image.mode in SHIFTED_MODES or (image.mode == "I" and image.format == "PPM"):
        # convert("RGB") would clip: 256, 4096 and 40000 all become 255. PPM comes scaled to 65535 by Pillow
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    raise RefusedImage("MODE", f"pixels of mode {image.mode} have no declared range; 8 and 16-bit unsigned are read")


def _scale_values(image: Image.Image, header: ImageHeader, value_range: ValueRange) -> Pixels:
    """The declared rule for wide samples: round(255 (v - low) / (high - low)), clipped; not a number becomes 0."""
    if image.mode not in WIDE_MODES:
        raise RefusedImage(
            "MODE",
            f"{header.format} of mode {image.mode} with more than 8 bits a sample: the decoder keeps the upper 8 of"
            " several channels; image.value_range is for one",
        )
    low, high = value_range
    samples = np.asarray(image)
    if image.mode == "I" and header.wide_samples == UNSIGNED_32:
        samples = samples.view(np.uint32)  # Pillow's mode is signed
    with np.errstate(all="ignore"):  # any bytes make a float32, and what overflows is clipped
        scaled = samples.astype(np.float64)  # a float32 holds no more than 24 bits of a whole number
        scaled -= low
        scaled *= 255 / (high - low)
    np.clip(scaled, 0, 255, out=scaled)
    scaled[np.isnan(scaled)] = 0
    grey = np.rint(scaled).astype(np.uint8)
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Turn pixels upright by their EXIF orientation 1 to 8 (EXIF 2.3, tag 274)."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
