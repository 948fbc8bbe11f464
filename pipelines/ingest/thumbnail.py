"""A small picture of a refused image, for whoever looks at the quarantine."""

from __future__ import annotations

from pipelines.image.decode import decode_image
from pipelines.image.encode import encode_image
from pipelines.image.header import Limits, RefusedImage
from pipelines.image.resize import Geometry, resize_pixels
from pipelines.ingest.config import ImageConfig, PrivacyConfig

THUMBNAIL_SIDE_PX = 96
THUMBNAIL_QUALITY = 75
MAX_THUMBNAILS = 200
"""Of images that are whole and refused all the same: by a table of labels, in each unit; afterwards, in each run."""

_LIMITS = Limits(max_aspect=10_000)
_SIDE = Geometry(THUMBNAIL_SIDE_PX, "pad", can_enlarge=False)
_NEVER_DECODED = frozenset({"EMPTY", "NOT_IMAGE", "TRUNCATED", "CORRUPT", "FORMAT_DENIED", "BOMB_PIXELS", "BOMB_META"})
_NOT_AGAIN = frozenset({"KILLED_WORKER", "TIMEOUT", "MEMORY", "TOO_LARGE"})


def make_thumbnail(data: bytes | None, reason: str, config: ImageConfig, privacy: PrivacyConfig) -> bytes | None:
    """Return a JPEG or PNG of at most 96 pixels a side, or None.

    None where the bytes do not decode, where decoding is what went wrong, and where a privacy rule applies: what it
    would have taken out has not been taken out of a refused image.
    """
    if data is None or privacy.applies or reason in _NEVER_DECODED | _NOT_AGAIN:
        return None
    try:
        image = decode_image(
            data,
            _LIMITS,
            config.background,
            value_range=config.value_range,
            divisor_rule=_SIDE.divisor_of,
        )
    except RefusedImage:
        return None
    height, width = image.pixels.shape[:2]
    shrink = max(height, width) / THUMBNAIL_SIDE_PX
    pixels = image.pixels
    if shrink > 1:
        pixels = resize_pixels(pixels, max(1, round(width / shrink)), max(1, round(height / shrink)))
    return encode_image(pixels, "auto", THUMBNAIL_QUALITY)[0]
