"""The block of ResNet-50 and deeper; with groups in its 3x3, the block of ResNeXt."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.blocks.convolution import conv1x1, conv3x3
from resnet_models.blocks.shortcut import make_shortcut


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut: y = relu(F(x) + S(x)).

    He et al. 2015, arXiv:1512.03385, fig. 5 right; `groups` > 1 is form (c) of fig. 3 in ResNeXt, arXiv:1611.05431.
    The stride sits in the first 1x1 (`stride_first`, as printed in 2015) or in the 3x3 (as is usual since).
    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        *,
        stride: int,
        stride_first: bool,
        groups: int,
        shortcut: str,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = conv1x1(in_channels, inner_channels, stride=first)
        self.norm1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = conv3x3(inner_channels, inner_channels, stride=second, groups=groups)
        self.norm2 = nn.BatchNorm2d(inner_channels)
        self.conv3 = conv1x1(inner_channels, out_channels)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(in_channels, out_channels, stride=stride, option=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + S(x))."""
        residual: Tensor = F.relu(self.norm1(self.conv1(x)), inplace=True)
        residual = F.relu(self.norm2(self.conv2(residual)), inplace=True)
        residual = self.norm3(self.conv3(residual))
        residual += self.shortcut(x)
        return F.relu(residual, inplace=True)
