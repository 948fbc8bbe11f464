"""Mixup (arXiv:1710.09412): each image is blended with its partner, and so are their losses.

The partner is the row before it in its lane (`dataset/order.py`), and the share is keyed by the image, so the pairs
and shares of an epoch do not depend on the number of workers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.dataset.keyed import Hashes, keyed_uniform
from pipelines.train.transforms import MIXUP_SHARE

_TABLE_SIZE = 4096


def mixup_shares(hashes: Hashes, alpha: float, *, seed: int, epoch: int) -> Tensor:
    """Return the share of itself that each image keeps, drawn from Beta(alpha, alpha); float32 (N,)."""
    uniform = keyed_uniform(seed, epoch, hashes, stream=MIXUP_SHARE)
    return torch.from_numpy(beta_quantile(uniform, alpha).astype(np.float32))


def blend(images: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Return share x image + (1 - share) x partner, (N, C, H, W)."""
    kept = shares.to(images.dtype).view(-1, 1, 1, 1)
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
    has no pole on the lower half, so that the trapezoid rule is exact to five digits.
    """
    z = np.linspace(0.0, 0.5**alpha, _TABLE_SIZE)
    values = z ** (1.0 / alpha)
    density = (1.0 - values) ** (alpha - 1.0)
    areas = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return 0.5 * areas / areas[-1], values
