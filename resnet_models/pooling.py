"""Pooling: from the last map to a vector, and maps made smaller inside the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GlobalAveragePool(nn.Module):
    """Mean over the image (arXiv:1512.03385, table 1), whatever its size.

    Shape: (N, C, H, W) -> (N, C).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over height and width."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class GlobalMaxPool(nn.Module):
    """Largest value over the image.

    Shape: (N, C, H, W) -> (N, C).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maximum over height and width."""
        return x.amax((2, 3))


class GeneralisedMeanPool(nn.Module):
    """Power mean over the image with one learned power, 3 at first (arXiv:1711.02512, eq. 3).

    Power 1 is the mean, infinity the maximum. Values below 1e-6 count as 1e-6: a power needs positive ones.
    Shape: (N, C, H, W) -> (N, C).
    """

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the power mean over height and width."""
        powers = x.clamp(min=1e-6).pow(self.power)
        return F.adaptive_avg_pool2d(powers, 1).flatten(1).pow(1.0 / self.power)


class ConcatenatedPool(nn.Module):
    """Mean and maximum over the image side by side.

    Shape: (N, C, H, W) -> (N, 2 C), the means first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return both over height and width."""
        return torch.cat([F.adaptive_avg_pool2d(x, 1).flatten(1), x.amax((2, 3))], dim=1)


HEAD_POOLS: dict[str, type[nn.Module]] = {
    "average": GlobalAveragePool,
    "max": GlobalMaxPool,
    "gem": GeneralisedMeanPool,
    "concat": ConcatenatedPool,
}
"""`ModelSpec.head_pool` -> module."""


class BlurPool(nn.Module):
    """A fixed 3x3 binomial filter, then every stride-th pixel (Zhang 2019, arXiv:1904.11486, sec. 3).

    The border is reflected, so that it does not darken; a map of a single pixel has nothing to reflect and is refused
    with the image (`ModelSpec.min_image_px`).
    Shape: (N, channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    kernel: Tensor

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride
        row = torch.tensor([0.25, 0.5, 0.25])
        kernel = (row[:, None] * row[None, :]).expand(channels, 1, 3, 3).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)  # a constant of the code, no weight

    def forward(self, x: Tensor) -> Tensor:
        """Blur and subsample."""
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.kernel.to(x.dtype), stride=self.stride, groups=self.channels)


class AveragePool(nn.Module):
    """Mean of stride x stride pixels; at a ragged edge, of those that are there.

    Shape: (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)), as a strided convolution gives.
    """

    def __init__(self, *, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Average and subsample."""
        return F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)


class MaxPool(nn.Module):
    """Maximum of 3x3 pixels around each stride-th pixel, or of tiles of stride x stride, ragged ones at the edge too.

    Shape: (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, *, stride: int, tiled: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.size, self.padding = (stride, 0) if tiled else (3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Take the maxima."""
        # windows with padding reach the edge by themselves
        return F.max_pool2d(x, self.size, stride=self.stride, padding=self.padding, ceil_mode=self.padding == 0)


def make_shrink(name: str, channels: int, *, stride: int) -> nn.Module | None:
    """Return what makes a map smaller after a convolution (`ModelSpec.downsample`), or None where that is its stride.

    Args:
        name: stride, blur, average, max or max_before_norm.
        channels: Channels of the map.
        stride: Stride of the block.
    """
    if stride == 1 or name == "stride":
        return None
    if name == "blur":
        return BlurPool(channels, stride=stride)
    if name == "average":
        return AveragePool(stride=stride)
    return MaxPool(stride=stride) if name == "max" else MaxPool(stride=stride, tiled=True)
