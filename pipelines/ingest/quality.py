"""What a row says of its picture: perceptual hash, brightness, contrast, sharpness, and sums for mean and deviation."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from pipelines.image.decode import Pixels


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
    return int.from_bytes(np.packbits(small[:, :-1] > small[:, 1:]).tobytes(), "big")


def channel_sums(pixels: Pixels) -> tuple[list[float], list[float]]:
    """Return per channel the sums of value / 255 and of its square.

    OpenCV adds integers and hands out mean and deviation; rounding gives the integers back, a test holds that they are
    exact, and it takes a tenth of NumPy's time on small images.
    """
    mean, deviation = cv2.meanStdDev(pixels)
    number = pixels.shape[0] * pixels.shape[1]
    means, deviations = mean.ravel().tolist(), deviation.ravel().tolist()
    sums = [round(m * number) for m in means]
    squares = [round((m * m + d * d) * number) for m, d in zip(means, deviations, strict=True)]
    return [value / 255 for value in sums], [value / 65_025 for value in squares]
