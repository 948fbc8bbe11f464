"""RGB pixels back to bytes: JPEG for photographs, PNG where every pixel counts."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from pipelines.image.decode import Pixels

LOSSLESS_SIDE_PX = 64
"""Up to this side `auto` writes PNG: JPEG's 8 x 8 blocks would spoil a small image and save little."""


def encode_image(pixels: Pixels, encoding: str = "auto", quality: int = 90) -> tuple[bytes, str]:
    """Encode (H, W, 3) pixels; return the bytes and the format, "JPEG" or "PNG".

    `encoding` is "jpeg", "png" or "auto" (PNG up to 64 x 64 pixels, else JPEG). JPEG uses 4:2:0 chroma.
    """
    if encoding == "auto":
        encoding = "png" if max(pixels.shape[:2]) <= LOSSLESS_SIDE_PX else "jpeg"
    if encoding == "jpeg":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420"), "JPEG"
    if encoding != "png":
        raise ValueError(f"encoding is {encoding!r}; it must be auto, jpeg or png")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue(), "PNG"
