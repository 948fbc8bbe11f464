"""From source bytes to stored bytes: kept where they can be, else decoded, fitted and encoded once."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from pipelines.image.decode import Pixels, decode_image
from pipelines.image.encode import encode_image
from pipelines.image.header import Limits
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry, apply_geometry
from pipelines.image.sniff import name_flags
from pipelines.ingest.config import ImageConfig

KEPT_FORMATS = ("JPEG", "PNG")
"""Formats that every tool opens; others are encoded anew."""

SMALL_SIDE_PX = 64
DEFAULT_EVALUATION_PX = 224


class StoredImage(NamedTuple):
    """What a row keeps of an image, and its pixels for measuring."""

    data: bytes
    pixels: Pixels
    source_format: str
    source_width: int
    source_height: int
    source_sha256: str
    stored_sha256: str
    flags: tuple[str, ...]


def make_stored_image(data: bytes, key: str, config: ImageConfig) -> StoredImage:
    """Return the stored form of one image file.

    Raises:
        RefusedImage: the bytes are not an acceptable image.
    """
    image = decode_image(data, Limits(min_side_px=config.min_side_px), config.background)
    pixels = apply_geometry(image.pixels, stored_geometry(config), config.background)
    source_sha256 = hashlib.sha256(data).hexdigest()
    has_more = any(flag == "trailing_bytes" or flag.startswith("frames=") for flag in image.flags)
    is_kept = (
        config.keep_bytes
        and image.is_plain
        and not has_more
        and pixels is image.pixels
        and image.format in KEPT_FORMATS
    )
    stored = data if is_kept else encode_image(pixels, config.encoding, config.quality)[0]
    return StoredImage(
        data=stored,
        pixels=pixels,
        source_format=image.format,
        source_width=image.pixels.shape[1],
        source_height=image.pixels.shape[0],
        source_sha256=source_sha256,
        stored_sha256=source_sha256 if is_kept else hashlib.sha256(stored).hexdigest(),
        flags=(*image.flags, *name_flags(key, image.format)),
    )


def stored_geometry(config: ImageConfig) -> Geometry:
    """Return the geometry of stored images; it never enlarges."""
    return Geometry(config.size_px, config.mode if config.size_px else "none", can_enlarge=False)


def make_preprocess(config: ImageConfig, largest_side_px: int) -> Preprocess:
    """Return the catalog's `Preprocess`; networks see small images at their own size, others at 224 pixels."""
    is_small = 0 < largest_side_px <= SMALL_SIDE_PX
    size_px = config.evaluation_size_px or (largest_side_px if is_small else DEFAULT_EVALUATION_PX)
    evaluation = Geometry(size_px, config.evaluation_mode, config.evaluation_crop_ratio)
    return Preprocess(stored_geometry(config), evaluation, config.background)
