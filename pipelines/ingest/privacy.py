"""De-identification: boxes that are made unrecognisable, and which columns stay behind."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipelines.errors import InputError
from pipelines.image.decode import Pixels
from pipelines.image.header import RefusedImage
from pipelines.ingest.config import PrivacyConfig

MAX_REGIONS = 1_000
MIN_SQUARE_PX = 4
"""A smaller square would leave a small box as it is."""


class Box(NamedTuple):
    """A rectangle in pixels of the upright source."""

    x: float
    y: float
    width: float
    height: float


def read_regions(text: str | None) -> tuple[Box, ...]:
    """Read a cell of the column of boxes; null and empty mean none.

    Raises:
        RefusedImage: it is no list of boxes (REGIONS). An image is never stored with a box left as it was.
    """
    if text is None or not text.strip():
        return ()
    try:
        boxes = _boxes_in(json.loads(text))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RefusedImage("REGIONS", "its boxes are not a JSON list of [x, y, width, height]") from error
    if len(boxes) > MAX_REGIONS:
        raise RefusedImage("REGIONS", f"{len(boxes):,} boxes are more than {MAX_REGIONS:,}")
    if not all(math.isfinite(value) for box in boxes for value in (*box, box.x + box.width, box.y + box.height)):
        raise RefusedImage("REGIONS", "a box has a side or corner that is not finite")
    if any(box.width <= 0 or box.height <= 0 for box in boxes):
        raise RefusedImage("REGIONS", "a box has no width or height")
    return boxes


def _boxes_in(values: Any) -> tuple[Box, ...]:
    """Return the boxes in what a JSON text says: a list of lists of four numbers, or one such list alone.

    Raises:
        TypeError: it is something else. What merely looks empty ({}, "") may have meant boxes.
        OverflowError: a whole number is more than a float holds.
    """
    if not isinstance(values, list):
        raise TypeError(type(values))
    if len(values) == 4 and not any(isinstance(value, list) for value in values):
        values = [values]
    for box in values:
        if not isinstance(box, list) or not all(type(value) in (int, float) for value in box):  # no bool
            raise TypeError(box)
    return tuple(Box(*map(float, box)) for box in values)


def hide_regions(pixels: Pixels, boxes: Sequence[Box], privacy: PrivacyConfig) -> Pixels:
    """Return a copy of upright (H, W, 3) pixels with the boxes made unrecognisable; what lies outside stays.

    Raises:
        RefusedImage: a box lies wholly outside of the image (REGIONS): it was meant for another one.
    """
    hidden = pixels.copy()
    height, width = pixels.shape[:2]
    for box in boxes:
        left, top = max(0, math.floor(box.x)), max(0, math.floor(box.y))
        right, bottom = min(width, math.ceil(box.x + box.width)), min(height, math.ceil(box.y + box.height))
        if left >= right or top >= bottom:
            raise RefusedImage("REGIONS", f"a box lies outside of the {width} x {height} pixels")
        # chroma of a JPEG is shared by two pixels a side, so that the neighbours carry some of the box
        rows, columns = slice(top & ~1, bottom + (bottom & 1)), slice(left & ~1, right + (right & 1))
        hidden[rows, columns] = _unrecognisable(hidden[rows, columns], privacy)
    return hidden


def _unrecognisable(patch: Pixels, privacy: PrivacyConfig) -> Pixels:
    """Return pixels in place of a box, made of at most (1 / strength) x (1 / strength) values of it.

    Both methods keep nothing but these averages, so that no sharpening brings detail back, as it does for a
    Gaussian blur.
    """
    if privacy.region_method == "fill":
        return np.zeros_like(patch)
    height, width = patch.shape[:2]
    side = max(MIN_SQUARE_PX, math.ceil(max(height, width) * privacy.region_strength))
    cells = max(1, width // side), max(1, height // side)
    averages = cv2.resize(patch, cells, interpolation=cv2.INTER_AREA)
    method = cv2.INTER_NEAREST if privacy.region_method == "pixelate" else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(averages, (width, height), interpolation=method), dtype=np.uint8)


def carried_columns(carried: Sequence[str], privacy: PrivacyConfig) -> tuple[str, ...]:
    """Return the source's columns that travel into the dataset.

    Raises:
        InputError: the column of boxes is not among the source's.
    """
    column = privacy.region_column
    if column and column not in carried:
        raise InputError(
            f"privacy.region_column is {column}, and the source has no such column;"
            f" it has {', '.join(carried) or 'none'}",
            mend="give the boxes with the labels: labels=TABLE.csv with a column of that name",
        )
    return tuple(name for name in carried if name != column or privacy.keep_region_column)
