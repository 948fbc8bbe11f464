"""Changes drawn from a list: TrivialAugment (arXiv:2103.10158) and RandAugment (arXiv:1909.13719).

Both choose among 14 operations; TrivialAugment one per image at any strength, RandAugment several at one strength.
Drawn by (seed, epoch, image) alone. Operations take and give uint8 (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.dataset.keyed import Hashes, keyed_uniform
from pipelines.train.config import AugmentConfig
from pipelines.train.streams import POLICY

Pixels: TypeAlias = npt.NDArray[np.uint8]
Operation: TypeAlias = Callable[[Pixels, float, Pixels], Pixels]
"""(pixels, strength in [-1, 1], colour of what comes into the picture) -> pixels."""
Matrix: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def apply_policy(
    pixels: Pixels, hashes: Hashes, config: AugmentConfig, *, seed: int, epoch: int, fill: Pixels
) -> Pixels:
    """Return changed copies of images (N, H, W, 3).

    Args:
        pixels: the images.
        hashes: `image_hashes` of the rows, (N,).
        config: which policy, and RandAugment's number and strength.
        seed: seed of the run.
        epoch: epoch the rows are read in.
        fill: colour of what comes into the picture from outside, (3,).
    """
    result = pixels.copy()
    for step in range(1 if config.policy == "trivial" else config.rand_operations):
        choice, strength, sign = (
            keyed_uniform(seed, epoch, hashes, stream=POLICY + 3 * step + use) for use in range(3)
        )
        if config.policy == "rand":
            strength = np.full_like(strength, config.rand_strength)
        signed = np.where(sign < 0.5, -strength, strength)
        for index, operation in enumerate((choice * len(OPERATIONS)).astype(int).tolist()):
            result[index] = OPERATIONS[operation](result[index], float(signed[index]), fill)
    return result


def _warp(
    matrix: Callable[[float, int, int], Matrix],
) -> Operation:
    """Return the operation of an affine map about the middle of the picture."""

    def warped(pixels: Pixels, strength: float, fill: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        (a, b, dx), (c, d, dy) = matrix(strength, height, width)
        x, y = (width - 1) / 2, (height - 1) / 2
        about = np.array([[a, b, x - a * x - b * y + dx], [c, d, y - c * x - d * y + dy]], dtype=np.float64)
        colour = [int(value) for value in fill]
        return np.asarray(
            cv2.warpAffine(pixels, about, (width, height), borderMode=cv2.BORDER_CONSTANT, borderValue=colour),
            dtype=np.uint8,
        )

    return warped


def _rotation(
    strength: float, _height: int, _width: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    cosine, sine = float(np.cos(strength * np.pi / 4)), float(np.sin(strength * np.pi / 4))
    return (cosine, -sine, 0.0), (sine, cosine, 0.0)


def _blend(pixels: Pixels, towards: npt.NDArray[np.float32], strength: float) -> Pixels:
    """Return pixels moved away from (strength > 0) or towards another picture (strength < 0)."""
    amount = 1.0 + 0.9 * strength
    mixed = towards + amount * (pixels.astype(np.float32) - towards)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _brightness(pixels: Pixels, strength: float, _fill: Pixels) -> Pixels:
    return _blend(pixels, np.float32(0) * pixels, strength)


def _contrast(pixels: Pixels, strength: float, _fill: Pixels) -> Pixels:
    mean = np.float32((pixels.astype(np.float32) @ _GREY).mean())
    return _blend(pixels, np.full(pixels.shape, mean, np.float32), strength)


def _colour(pixels: Pixels, strength: float, _fill: Pixels) -> Pixels:
    grey = (pixels.astype(np.float32) @ _GREY)[:, :, None]
    return _blend(pixels, np.broadcast_to(grey, pixels.shape), strength)


def _sharpness(pixels: Pixels, strength: float, _fill: Pixels) -> Pixels:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
    return _blend(pixels, cv2.filter2D(pixels.astype(np.float32), -1, kernel), strength)


def _posterize(pixels: Pixels, strength: float, _fill: Pixels) -> Pixels:
    bits = 8 - round(6 * abs(strength))
    return np.asarray(pixels & np.uint8(256 - (1 << (8 - bits))), dtype=np.uint8)


def _solarize(pixels: Pixels, strength: float, _fill: Pixels) -> Pixels:
    threshold = round(255 * (1.0 - abs(strength)))
    return np.asarray(np.where(pixels > threshold, 255 - pixels, pixels), dtype=np.uint8)


def _autocontrast(pixels: Pixels, _strength: float, _fill: Pixels) -> Pixels:
    low, high = pixels.min((0, 1)).astype(np.float32), pixels.max((0, 1)).astype(np.float32)
    span = np.where(high > low, high - low, 255.0)
    start = np.where(high > low, low, 0.0)
    return np.clip(np.rint((pixels - start) * (255.0 / span)), 0, 255).astype(np.uint8)


def _equalize(pixels: Pixels, _strength: float, _fill: Pixels) -> Pixels:
    return np.stack([cv2.equalizeHist(np.ascontiguousarray(pixels[:, :, c])) for c in range(3)], axis=2)


OPERATIONS: tuple[Operation, ...] = (
    lambda pixels, _strength, _fill: pixels,
    _warp(lambda s, _h, _w: ((1.0, 0.99 * s, 0.0), (0.0, 1.0, 0.0))),  # shear along x
    _warp(lambda s, _h, _w: ((1.0, 0.0, 0.0), (0.99 * s, 1.0, 0.0))),  # shear along y
    _warp(lambda s, _h, w: ((1.0, 0.0, 0.45 * s * w), (0.0, 1.0, 0.0))),  # move along x
    _warp(lambda s, h, _w: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.45 * s * h))),  # move along y
    _warp(_rotation),  # up to 45 degrees
    _brightness,
    _colour,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
)
"""Their order is part of what a recorded run drew."""
