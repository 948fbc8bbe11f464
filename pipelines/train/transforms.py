"""What happens to pixels between the dataset and the network: random changes in training, normalisation always.

Pixels are uint8 (N, H, W, 3) until the last step. A batch is changed at once, and every draw is keyed by
(seed, epoch, image, repeat): which worker holds an image, and what came before it, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.dataset.keyed import Hashes, keyed_hash, keyed_uniform, keyed_uniforms
from pipelines.train.config import AugmentConfig
from pipelines.train.policies import apply_policy
from pipelines.train.shifts import flip, shift
from pipelines.train.streams import (
    CUTOUT_X,
    CUTOUT_Y,
    ERASE,
    ERASE_AREA,
    ERASE_ASPECT,
    ERASE_X,
    ERASE_Y,
    FLIP,
    NETWORK,
    SHIFT_X,
    SHIFT_Y,
)

Pixels: TypeAlias = npt.NDArray[np.uint8]

MAX_ERASE_AREA, MIN_ERASE_AREA, MAX_ERASE_ASPECT = 1 / 3, 0.02, 3.3


class Normalise:
    """(pixel / 255 - mean) / std per channel, the same that the package applies.

    Args:
        mean: mean of pixel / 255 per channel.
        std: standard deviation of pixel / 255 per channel, above 0.
        device: where the pixels will be.
        dtype: type of the numbers it gives.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device, *, dtype: torch.dtype = torch.float32
    ) -> None:
        self.device = device
        self._scale = torch.tensor([1.0 / (255.0 * s) for s in std], device=device, dtype=dtype)
        self._offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device, dtype=dtype)

    def __call__(self, pixels: Tensor, *, channels_last: bool = True) -> Tensor:
        """Return (N, 3, H, W) of its type from uint8 (N, H, W, 3)."""
        # (N, H, W, 3) seen as (N, 3, H, W) is channels-last already, so nothing is copied for it.
        images = (pixels.to(self._scale.dtype) * self._scale - self._offset).permute(0, 3, 1, 2)
        return images if channels_last else images.contiguous()


def usable_std(std: Sequence[float]) -> tuple[float, ...]:
    """Return standard deviations to divide by: a channel that never varies counts as 1."""
    return tuple(value if value > 1e-6 else 1.0 for value in std)


def augment(
    pixels: Pixels, hashes: Hashes, config: AugmentConfig, *, seed: int, epoch: int, mean: tuple[float, ...]
) -> Pixels:
    """Return images with random changes.

    Args:
        pixels: uint8 (N, H, W, 3); they may be changed where they are.
        hashes: `image_hashes` of the rows, (N,).
        config: which changes, and how strong.
        seed: seed of the run.
        epoch: epoch the rows are read in.
        mean: mean of pixel / 255 per channel, the colour that cut-outs take.
    """
    count, height, width = pixels.shape[:3]
    if count == 0:
        return pixels
    if config.shift_px:
        down, right = _shifts(hashes, config.shift_px, seed, epoch)
        pixels = shift(pixels, down, right, config.shift_px)
    if config.flip:
        pixels = flip(pixels, _is_mirrored(hashes, seed, epoch))
    if config.policy != "none":
        pixels = apply_policy(pixels, hashes, config, seed=seed, epoch=epoch, fill=_colour(mean))
    if config.cutout_px:
        pixels = np.where(_holes(hashes, config.cutout_px, (height, width), seed, epoch), _colour(mean), pixels)
    if config.erase_probability:
        erased = _erased(hashes, config.erase_probability, (height, width), seed, epoch)
        pixels = np.where(erased, _colour(mean), pixels)
    return pixels


def sample_keys(hashes: Hashes, *, seed: int, epoch: int) -> Tensor:
    """Return the keys from which a network draws what it drops: int64 (N,), the same whoever holds the rows.

    Args:
        hashes: `image_hashes` of the rows, (N,).
        seed: seed of the run.
        epoch: epoch the rows are read in.
    """
    return torch.from_numpy(keyed_hash(seed, epoch, NETWORK, 0, hashes).view(np.int64))


def _is_mirrored(hashes: Hashes, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    """Return which images are mirrored, (N,): a coin for the first epoch, then each takes its other side in turn.

    Two epochs so show both sides of every image, where independent coins show half of them one side twice; short runs
    learn more from it (arXiv:2404.00498, sec. 3.6).
    """
    first = keyed_uniform(seed, 0, hashes, stream=FLIP) < 0.5
    return first ^ bool(epoch % 2)


def _shifts(hashes: Hashes, most: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return whole shifts in [-most, most] down and to the right, (2, N)."""
    draws = keyed_uniforms(seed, epoch, hashes, (SHIFT_Y, SHIFT_X))
    return np.floor(draws * (2 * most + 1)).astype(np.int64) - most


def _holes(hashes: Hashes, side: int, shape: tuple[int, int], seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    """Return where each image has its hole, (N, H, W, 1); the centre is anywhere, so holes may hang over the border."""
    inside = []
    for size, stream in zip(shape, (CUTOUT_Y, CUTOUT_X), strict=True):
        start = np.floor(keyed_uniform(seed, epoch, hashes, stream=stream) * size).astype(np.int64) - side // 2
        index = np.arange(size)
        inside.append((index >= start[:, None]) & (index < start[:, None] + side))
    return np.asarray((inside[0][:, :, None] & inside[1][:, None, :])[..., None])


def _erased(hashes: Hashes, probability: float, shape: tuple[int, int], seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    """Return where each image is erased (arXiv:1708.04896), (N, H, W, 1): in some a rectangle that lies inside."""
    drawn, area, aspect, y, x = (
        keyed_uniform(seed, epoch, hashes, stream=stream)
        for stream in (ERASE, ERASE_AREA, ERASE_ASPECT, ERASE_Y, ERASE_X)
    )
    height, width = shape
    pixels = (MIN_ERASE_AREA + (MAX_ERASE_AREA - MIN_ERASE_AREA) * area) * height * width
    ratio = MAX_ERASE_ASPECT ** (2 * aspect - 1)
    inside = []
    for size, place, wanted in ((height, y, np.sqrt(pixels * ratio)), (width, x, np.sqrt(pixels / ratio))):
        length = np.clip(np.rint(wanted), 1, size).astype(np.int64)
        start = np.floor(place * (size - length + 1)).astype(np.int64)
        index = np.arange(size)
        inside.append((index >= start[:, None]) & (index < (start + length)[:, None]))
    chosen = (drawn < probability)[:, None, None]
    return np.asarray((inside[0][:, :, None] & inside[1][:, None, :] & chosen)[..., None])


def _colour(mean: tuple[float, ...]) -> Pixels:
    return np.asarray([round(255 * value) for value in mean], dtype=np.uint8)
