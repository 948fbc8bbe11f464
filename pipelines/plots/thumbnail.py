"""An image file as a small picture on a page."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.image.decode import decode_image
from pipelines.image.header import RefusedImage
from pipelines.image.resize import resize_pixels
from pipelines.plots.picture import Picture, encode_picture

THUMB_PX = 160


def make_thumbnail(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Return an image file's pixels (H, W, 3), at most 160 a side; None for what cannot be decoded."""
    try:
        pixels = decode_image(data).pixels
    except RefusedImage:
        return None
    height, width = pixels.shape[:2]
    shrink = max(height, width) / THUMB_PX
    if shrink > 1:
        pixels = resize_pixels(pixels, max(1, round(width / shrink)), max(1, round(height / shrink)))
    return pixels


def make_picture(pixels: npt.NDArray[np.uint8]) -> Picture:
    """Return a thumbnail as a picture."""
    # JPEG would smear an 8 x 8 digit; larger ones as PNG would make the page heavy.
    return encode_picture(pixels, media_type="image/png" if max(pixels.shape[:2]) <= 64 else "image/jpeg", quality=82)
