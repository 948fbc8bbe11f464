"""Random resized crops (arXiv:1409.4842, sec. 6): a part of the image of random area and aspect, brought to one size.

Four keyed numbers per image decide; how large the image is, is seen only when it is decoded.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.dataset.keyed import Hashes, keyed_uniform
from pipelines.image.resize import resize_pixels
from pipelines.train.streams import CROP_AREA, CROP_ASPECT, CROP_X, CROP_Y

Draws: TypeAlias = npt.NDArray[np.float64]
Pixels: TypeAlias = npt.NDArray[np.uint8]

MAX_ASPECT = 4 / 3
"""Longest crop, in width over height or the other way round."""


def crop_draws(hashes: Hashes, *, seed: int, epoch: int) -> Draws:
    """Return what decides each image's crop: area, aspect, y and x in [0, 1), (N, 4)."""
    streams = (CROP_AREA, CROP_ASPECT, CROP_Y, CROP_X)
    return np.stack([keyed_uniform(seed, epoch, hashes, stream=stream) for stream in streams], axis=1)


def crop_box(draw: Draws, height: int, width: int, min_area: float) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a crop in an image.

    The area is uniform in [min_area, 1] of the image, the aspect log-uniform in [3/4, 4/3]; what would hang over is cut
    to the image's side, so that one draw is enough.

    Args:
        draw: one row of `crop_draws`.
        height: of the image, in pixels.
        width: of the image, in pixels.
        min_area: smallest share of the image.
    """
    area, aspect, y, x = draw.tolist()
    pixels = (min_area + (1.0 - min_area) * area) * height * width
    ratio = MAX_ASPECT ** (2.0 * aspect - 1.0)
    high = min(height, max(1, round(math.sqrt(pixels / ratio))))
    wide = min(width, max(1, round(math.sqrt(pixels * ratio))))
    return int(y * (height - high + 1)), int(x * (width - wide + 1)), high, wide


def resized_crop(pixels: Pixels, draw: Draws, min_area: float, into: Pixels) -> None:
    """Write the crop of an image (H, W, 3) to `into`, resized to its height and width."""
    top, left, high, wide = crop_box(draw, pixels.shape[0], pixels.shape[1], min_area)
    resize_pixels(pixels[top : top + high, left : left + wide], into.shape[1], into.shape[0], into)
