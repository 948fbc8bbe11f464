"""Bytes to upright RGB pixels: the fast JPEG decoder where it equals Pillow, Pillow's listed formats elsewhere."""

import io
import struct
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

SHIFTED_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
PLAIN_MODES = ("L", "1", "P", "CMYK", "YCbCr")
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


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


def decode_image(
    data: bytes, limits: Limits = DEFAULT_LIMITS, background: tuple[int, int, int] = DEFAULT_BACKGROUND
) -> DecodedImage:
    """Decode one image; transparency is composited on `background`, 16-bit samples are shifted right by 8.

    Raises:
        RefusedImage: with the code of the first rule that the bytes break.
    """
    header = sniff_image(data, limits)
    pixels, is_plain = _decode_plain_jpeg(data) if header.is_plain_jpeg else None, True
    if pixels is None:
        pixels, is_plain, header = _decode_with_pillow(data, header, limits, background)
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
    )


def _decode_plain_jpeg(data: bytes) -> Pixels | None:
    """Decode with libjpeg-turbo; None when it has any complaint, so that Pillow alone decides what is refused."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    return pixels


def _decode_with_pillow(
    data: bytes, header: ImageHeader, limits: Limits, background: tuple[int, int, int]
) -> tuple[Pixels, bool, ImageHeader]:
    try:
        # the one sniffed format: Pillow's other parsers (EPS starts Ghostscript) never see the bytes
        with Image.open(io.BytesIO(data), formats=[header.format]) as image:
            if not header.width:
                header = _complete_header(image, header)
            check_size(*image.size, header.frames, limits)
            image.load()
            is_plain = image.mode in ("RGB", "L", "1", "P") and "transparency" not in image.info
            return _flatten_colors(image, background), is_plain and "depth16" not in header.flags, header
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
