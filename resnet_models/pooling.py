"""From the last feature map to one vector per image."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class GlobalAveragePool(nn.Module):
    """Mean over the image (arXiv:1512.03385, table 1), whatever its size.

    Shape: (N, C, H, W) -> (N, C).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over height and width."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)
