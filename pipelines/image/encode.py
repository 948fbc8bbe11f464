"""RGB pixels back to bytes: JPEG or WebP for photographs, PNG or lossless WebP where every pixel counts."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from pipelines.image.decode import Pixels
from pipelines.image.header import RefusedImage

LOSSLESS_SIDE_PX = 64
"""Up to this side `auto` writes PNG: JPEG's 8 x 8 blocks would spoil a small image and save little."""

MAX_WEBP_SIDE_PX = 16_383


def encode_image(pixels: Pixels, encoding: str = "auto", quality: int = 90) -> tuple[bytes, str]:
    """Encode (H, W, 3) pixels; return the bytes and the format, "JPEG", "PNG" or "WEBP".

    `encoding` is "jpeg", "png", "webp", "webp_lossless" or "auto" (PNG up to 64 x 64 pixels, else JPEG). JPEG and lossy
    WebP use 4:2:0 chroma.

    Raises:
        RefusedImage: the pixels are more than the format can hold (TOO_LARGE).
    """
    if encoding == "auto":
        encoding = "png" if max(pixels.shape[:2]) <= LOSSLESS_SIDE_PX else "jpeg"
    if encoding == "jpeg":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420"), "JPEG"
    if encoding not in ("png", "webp", "webp_lossless"):
        raise ValueError(f"encoding is {encoding!r}; it must be auto, jpeg, png, webp or webp_lossless")
    out = io.BytesIO()
    if encoding == "png":
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue(), "PNG"
    if max(pixels.shape[:2]) > MAX_WEBP_SIDE_PX:
        raise RefusedImage("TOO_LARGE", f"WebP holds sides of at most {MAX_WEBP_SIDE_PX:,} pixels")
    Image.fromarray(pixels).save(out, "WEBP", quality=quality, lossless=encoding == "webp_lossless", method=4)
    return out.getvalue(), "WEBP"
