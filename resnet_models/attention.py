"""Channel attention: a gate per channel and image, computed from the channel means."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_GATE_STEP = 8  # the gate's channels are a multiple of it, as in every published implementation since MobileNetV3


class SqueezeExcitation(nn.Module):
    """Means, two 1x1 convolutions around a ReLU, a sigmoid per channel (arXiv:1709.01507, fig. 2 and sec. 3).

    The inner channels are `channels / reduction`, rounded to a multiple of 8 and at least 8; the paper rounds nothing.
    Shape: (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, channels: int, *, reduction: int) -> None:
        super().__init__()
        inner = max(_GATE_STEP, int(channels / reduction + _GATE_STEP / 2) // _GATE_STEP * _GATE_STEP)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.activation = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel by its gate."""
        gate: Tensor = self.expand(self.activation(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class EfficientChannelAttention(nn.Module):
    """Means, one convolution along the channels, a sigmoid per channel (arXiv:1910.03151, fig. 2 and eq. 12).

    The kernel is the odd number at or next above log2(channels) / 2 + 1/2, and at least 3.
    Shape: (N, channels, H, W) -> (N, channels, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        nearest = int(abs(math.log2(channels) + 1) / 2)
        kernel = max(3, nearest if nearest % 2 else nearest + 1)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel by its gate."""
        gate: Tensor = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * torch.sigmoid(gate)[:, :, None, None]


def make_attention(name: str, channels: int, *, reduction: int) -> nn.Module | None:
    """Return the module of `ModelSpec.attention` for a map of `channels`, or None."""
    if name == "se":
        return SqueezeExcitation(channels, reduction=reduction)
    return EfficientChannelAttention(channels) if name == "eca" else None
