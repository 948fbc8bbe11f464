"""What a row says of its picture: perceptual hash, brightness, contrast, sharpness, and sums for mean and deviation."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from pipelines.image.decode import Pixels

_BITS = np.uint64(1) << np.arange(63, -1, -1, dtype=np.uint64)


class Quality(NamedTuple):
    """Measures of one picture; the names are those of the columns, the ranges are in `dataset/schema.py`."""

    phash: int
    brightness: float
    contrast: float
    sharpness: float
    channel_sum: list[float]
    channel_square_sum: list[float]


def measure(pixels: Pixels) -> Quality:
    """Measure (H, W, 3) pixels; about 0.05 ms for 32 x 32."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(grey)
    _, edges = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    sums, squares = channel_sums(pixels)
    return Quality(
        phash=difference_hash(grey),
        brightness=float(mean[0, 0]) / 255,
        contrast=float(deviation[0, 0]) / 255,
        sharpness=min(1.0, float(edges[0, 0]) / 255),
        channel_sum=sums,
        channel_square_sum=squares,
    )


def difference_hash(grey: np.ndarray) -> int:
    """Return 64 bits: whether each of 8 x 8 areas is brighter than its right neighbour, row by row, top bit first."""
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    brighter = (small[:, :-1] > small[:, 1:]).ravel()
    return int(_BITS[brighter].sum(dtype=np.uint64))


def channel_sums(pixels: Pixels) -> tuple[list[float], list[float]]:
    """Return per channel the sums of value / 255 and of its square; integers are added, so no order of sums shows."""
    flat = pixels.reshape(-1, 3).astype(np.float64)  # whole numbers below 2^53 are exact
    squares = np.einsum("ij,ij->j", flat, flat)
    return (flat.sum(axis=0) / 255).tolist(), (squares / 65_025).tolist()
