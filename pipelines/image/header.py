"""What is known of an image before its pixels are decoded: refusal codes, limits, the parsed header."""

from dataclasses import dataclass


class RefusedImage(Exception):
    """An image that is not accepted; it becomes a quarantined row that keeps `reason`.

    `reason` is one of EMPTY, NOT_IMAGE, TRUNCATED, CORRUPT, FORMAT_DENIED, BOMB_PIXELS, BOMB_META, ASPECT, FRAMES,
    MODE, TOO_LARGE, TOO_SMALL, MEMORY, REGIONS; `message` is one sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both in args, so that it survives pickling between processes
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True)
class Limits:
    """What an image may claim before anything is decoded; a small file can claim gigabytes of pixels."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    max_side_px: int = 30_000
    max_aspect: int = 100
    max_frames: int = 1_000
    max_meta_bytes: int = 2**20
    """Size of one text block or colour profile after decompression."""
    max_blocks: int = 65_536
    """Chunks, markers or blocks walked in one file."""
    max_scans: int = 256
    """Passes over the pixels of one progressive JPEG; encoders make about ten, a hostile file thousands."""
    min_side_px: int = 0
    """Shorter sides are refused as TOO_SMALL; 0 accepts all and flags sides below 8 as `tiny`."""


DEFAULT_LIMITS = Limits()
TINY_SIDE_PX = 8


@dataclass(frozen=True)
class ImageHeader:
    """The parsed header; `width` and `height` are as stored in the file, before EXIF orientation; 0 means unknown."""

    format: str
    width: int = 0
    height: int = 0
    frames: int = 1
    orientation: int = 1
    is_plain_jpeg: bool = False
    """An 8-bit three-component YCbCr JPEG, for which the fast decoder equals Pillow."""
    flags: tuple[str, ...] = ()
    wide_samples: str = ""
    """Samples that mean nothing without a declared range, for example `32-bit float`; empty for all others."""


def check_size(width: int, height: int, frames: int, limits: Limits) -> None:
    """Raise RefusedImage when a claimed size breaks a limit; the order decides which code a hopeless file gets."""
    if width < 1 or height < 1:
        raise RefusedImage("CORRUPT", f"the header claims {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise RefusedImage("BOMB_PIXELS", f"{width} x {height} pixels are more than {limits.max_pixels:,}")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise RefusedImage("ASPECT", f"{width} x {height} pixels are longer than {limits.max_aspect} to 1")
    if max(width, height) > limits.max_side_px:
        raise RefusedImage("BOMB_PIXELS", f"{width} x {height} pixels have a side above {limits.max_side_px:,}")
    if frames > limits.max_frames:
        raise RefusedImage("FRAMES", f"{frames} frames are more than {limits.max_frames:,}")
    if min(width, height) < limits.min_side_px:
        raise RefusedImage("TOO_SMALL", f"{width} x {height} pixels have a side below {limits.min_side_px}")


def size_flags(width: int, height: int, frames: int) -> tuple[str, ...]:
    """Flags that follow from the size alone."""
    flags = (f"frames={frames}",) if frames > 1 else ()
    return (*flags, "tiny") if min(width, height) < TINY_SIDE_PX else flags
