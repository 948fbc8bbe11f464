"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): images are mixed with their partners, and so are the losses.

The partner is the row before it in its lane (`dataset/order.py`), and every draw is keyed by the image, so the pairs
and shares of an epoch do not depend on the number of workers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.dataset.keyed import Hashes, keyed_uniform
from pipelines.train.config import AugmentConfig
from pipelines.train.streams import CUTMIX_SHARE, CUTMIX_X, CUTMIX_Y, MIX_KIND, MIXUP_SHARE

_TABLE_SIZE = 4096
_LARGE_ALPHA = 4.0
"""Above it a Beta distribution is tabulated about 1/2."""


def mixup_shares(hashes: Hashes, alpha: float, *, seed: int, epoch: int) -> Tensor:
    """Return the share of itself that each image keeps, drawn from Beta(alpha, alpha); float32 (N,)."""
    uniform = keyed_uniform(seed, epoch, hashes, stream=MIXUP_SHARE)
    return torch.from_numpy(beta_quantile(uniform, alpha).astype(np.float32))


def draw_mixes(
    hashes: Hashes, config: AugmentConfig, shape: tuple[int, int], *, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Return how each image is mixed with its partner: what it keeps of every pixel, and of the loss.

    With both kinds on, a coin of the image's own decides between them.

    Args:
        hashes: `image_hashes` of the rows, (N,).
        config: the strength of each kind.
        shape: height and width of the images.
        seed: seed of the run.
        epoch: epoch the rows are read in.

    Returns:
        Share of each pixel, float32 (N, 1, 1, 1) or (N, 1, H, W), and share of the loss, float32 (N,).
    """
    shares = torch.ones(len(hashes))
    if config.mixup_alpha:
        shares = mixup_shares(hashes, config.mixup_alpha, seed=seed, epoch=epoch)
    kept = shares.view(-1, 1, 1, 1)
    if not config.cutmix_alpha:
        return kept, shares
    outside = torch.from_numpy(~cutmix_boxes(hashes, config.cutmix_alpha, shape, seed=seed, epoch=epoch))
    kept_outside = outside.float()[:, None]
    if not config.mixup_alpha:
        return kept_outside, kept_outside.mean((1, 2, 3))
    is_cut = torch.from_numpy(keyed_uniform(seed, epoch, hashes, stream=MIX_KIND) < 0.5)
    kept = torch.where(is_cut[:, None, None, None], kept_outside, kept)
    return kept, torch.where(is_cut, kept_outside.mean((1, 2, 3)), shares)


def cutmix_boxes(
    hashes: Hashes, alpha: float, shape: tuple[int, int], *, seed: int, epoch: int
) -> npt.NDArray[np.bool_]:
    """Return where each image shows its partner, (N, H, W): a box of the image's aspect, cut off at the border."""
    share = beta_quantile(keyed_uniform(seed, epoch, hashes, stream=CUTMIX_SHARE), alpha)
    inside = []
    for size, stream in zip(shape, (CUTMIX_Y, CUTMIX_X), strict=True):
        centre = np.floor(keyed_uniform(seed, epoch, hashes, stream=stream) * size)
        half = np.floor(np.sqrt(1.0 - share) * size) / 2
        index = np.arange(size) + 0.0
        inside.append((index >= (centre - half)[:, None]) & (index < (centre + half)[:, None]))
    return np.asarray(inside[0][:, :, None] & inside[1][:, None, :])


def blend(images: Tensor, partners: Tensor, kept: Tensor) -> Tensor:
    """Return kept x image + (1 - kept) x partner, (N, C, H, W); `kept` is (N, 1, 1, 1) or (N, 1, H, W)."""
    kept = kept.to(images.dtype)
    return images * kept + partners * (1 - kept)


def beta_quantile(uniform: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """Return the quantiles of Beta(alpha, alpha) at probabilities in [0, 1).

    By a table, so that one uniform number gives one draw: samplers that reject need an unknown number of them.
    """
    probabilities, values = _lower_half(alpha)
    lower = np.interp(np.minimum(uniform, 1.0 - uniform), probabilities, values)
    return np.where(uniform < 0.5, lower, 1.0 - lower)


@lru_cache(maxsize=8)
def _lower_half(alpha: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return probabilities in [0, 1/2] and the quantiles in [0, 1/2] that belong to them.

    With z = x^alpha the density x^(alpha-1) (1-x)^(alpha-1) dx becomes (1 - z^(1/alpha))^(alpha-1) dz / alpha, which
    has no pole on the lower half, so that the trapezoid rule is exact to five digits. A large alpha has no pole
    either way, and its steps of z would be few where the density lies: there x is spaced evenly, 12 standard deviations
    below 1/2.
    """
    if alpha <= _LARGE_ALPHA:
        z = np.linspace(0.0, 0.5**alpha, _TABLE_SIZE)
        values = z ** (1.0 / alpha)
        density = (1.0 - values) ** (alpha - 1.0)
    else:
        values = np.linspace(max(0.0, 0.5 - 6.0 / np.sqrt(2.0 * alpha + 1.0)), 0.5, _TABLE_SIZE)
        density = (4.0 * values * (1.0 - values)) ** (alpha - 1.0)
    areas = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return 0.5 * areas / areas[-1], values
