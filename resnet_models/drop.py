"""What is left out at random while training: whole branches, single values, square regions.

Each module draws from the samples' keys when it is given `SampleDraws`, else from torch's generator; each is the
identity in eval mode and at rate 0, and keeps the expectation of what it passes on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.draws import SampleDraws


class DropPath(nn.Module):
    """Leave out a sample's whole branch with probability `rate`, scale the others by 1 / (1 - rate).

    Stochastic depth, Huang et al. 2016, arXiv:1603.09382, sec. 3; the scale, which the paper applies in the test
    instead, keeps the expectation.
    Shape: (N, ...) -> (N, ...).
    """

    def __init__(self, rate: float, layer: int) -> None:
        """Take the probability in [0, 1) and the number under which this module draws.

        Raises:
            ValueError: The rate is out of range.
        """
        super().__init__()
        self.rate = _checked_rate("DropPath", rate)
        self.layer = layer

    def forward(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return the branch, zeroed for some samples."""
        if not self.training or self.rate == 0.0:
            return x
        kept = _unit_draws(x, draws, self.layer, ()) >= self.rate
        scale = kept.to(x.dtype) / (1.0 - self.rate)
        return x * scale.reshape(-1, *(1,) * (x.dim() - 1))

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"rate={self.rate}, layer={self.layer}"


class SampleDropout(nn.Module):
    """Zero single values with probability `rate`, scale the others by 1 / (1 - rate).

    Srivastava et al. 2014, "Dropout"; between the convolutions of a Wide ResNet's block: arXiv:1605.07146, sec. 2.4.
    Shape: (N, ...) -> (N, ...).
    """

    def __init__(self, rate: float, layer: int) -> None:
        """Take the probability in [0, 1) and the number under which this module draws.

        Raises:
            ValueError: The rate is out of range.
        """
        super().__init__()
        self.rate = _checked_rate("SampleDropout", rate)
        self.layer = layer

    def forward(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return x with some values zeroed."""
        if not self.training or self.rate == 0.0:
            return x
        if draws is None:
            return F.dropout(x, self.rate)
        kept = draws.uniform(self.layer, tuple(x.shape[1:])) >= self.rate
        return x * (kept.to(x.dtype) / (1.0 - self.rate))

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"rate={self.rate}, layer={self.layer}"


class DropBlock(nn.Module):
    """Zero square regions of each channel, so that about `rate` of the values go.

    Ghiasi et al. 2018, arXiv:1810.12890, algorithm 1: corners of regions fall with probability gamma (eq. 1) where the
    whole region fits, each channel on its own; what stays is scaled by count / kept. The paper counts over the batch;
    here over the sample, so that a sample's result does not depend on its neighbours. A map smaller than the region
    takes the largest that fits.
    Shape: (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, rate: float, block_size: int, layer: int) -> None:
        """Take the fraction in [0, 1), the side of the regions in pixels of the map, and this module's draw number.

        Raises:
            ValueError: The rate or the block size is out of range.
        """
        super().__init__()
        if block_size < 1:
            raise ValueError(f"DropBlock's block_size is {block_size}; it must be at least 1, and 7 is the paper's")
        self.rate = _checked_rate("DropBlock", rate)
        self.block_size = block_size
        self.layer = layer

    def forward(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return x with some regions zeroed."""
        if not self.training or self.rate == 0.0:
            return x
        channels, height, width = x.shape[1:]
        side = min(self.block_size, height, width)
        fits = (height - side + 1, width - side + 1)
        gamma = self.rate / side**2 * (height * width) / (fits[0] * fits[1])
        corners = (_unit_draws(x, draws, self.layer, (channels, *fits)) < gamma).to(x.dtype)
        dropped = F.max_pool2d(F.pad(corners, (side - 1,) * 4), side, stride=1)  # a corner spreads right and down
        kept = 1.0 - dropped
        # Counted in float32: half precision cannot count a map's values.
        share = kept.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float32)
        scale = 1.0 / share.clamp(min=1.0 / (channels * height * width))  # nothing kept: nothing to scale
        return x * (kept * scale.to(x.dtype))

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"rate={self.rate}, block_size={self.block_size}, layer={self.layer}"


def _checked_rate(module: str, rate: float) -> float:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{module}'s rate is {rate}; it must be at least 0 and below 1")
    return float(rate)


def _unit_draws(x: Tensor, draws: SampleDraws | None, layer: int, shape: tuple[int, ...]) -> Tensor:
    """Return float32 (N, *shape) in [0, 1): the samples' own where keys are given, else torch's."""
    if draws is None:
        return torch.rand((x.shape[0], *shape), device=x.device)
    return draws.uniform(layer, shape)
