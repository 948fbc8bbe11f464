"""The blocks of pre-activation networks and Wide ResNets: norm and ReLU come before each convolution."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.blocks.convolution import conv1x1, conv3x3
from resnet_models.blocks.shortcut import ProjectionShortcut, make_shortcut


class PreactBasicBlock(nn.Module):
    """Two pre-activated 3x3 convolutions beside a clean shortcut: y = F(x) + S(x).

    He et al. 2016, arXiv:1603.05027, fig. 4e; Wide ResNets, arXiv:1605.07146, fig. 1c. A projection sees the
    activated input, as in the authors' code; an identity sees the raw one, so that the signal runs through unchanged.
    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortcut: str) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride=stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = make_shortcut(in_channels, out_channels, stride=stride, option=shortcut, normed=False)
        self.projects = isinstance(self.shortcut, ProjectionShortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return F(x) + S(x)."""
        activated = F.relu(self.norm1(x), inplace=True)
        residual: Tensor = self.conv1(activated)
        residual = self.conv2(F.relu(self.norm2(residual), inplace=True))
        residual += self.shortcut(activated if self.projects else x)
        return residual


class PreactBottleneckBlock(nn.Module):
    """Pre-activated 1x1, 3x3 and 1x1 convolutions beside a clean shortcut: y = F(x) + S(x).

    He et al. 2016, arXiv:1603.05027, sec. 4.1 and appendix; stride and groups as in `BottleneckBlock`.
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
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, inner_channels, stride=first)
        self.norm2 = nn.BatchNorm2d(inner_channels)
        self.conv2 = conv3x3(inner_channels, inner_channels, stride=second, groups=groups)
        self.norm3 = nn.BatchNorm2d(inner_channels)
        self.conv3 = conv1x1(inner_channels, out_channels)
        self.shortcut = make_shortcut(in_channels, out_channels, stride=stride, option=shortcut, normed=False)
        self.projects = isinstance(self.shortcut, ProjectionShortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return F(x) + S(x)."""
        activated = F.relu(self.norm1(x), inplace=True)
        residual: Tensor = self.conv1(activated)
        residual = self.conv2(F.relu(self.norm2(residual), inplace=True))
        residual = self.conv3(F.relu(self.norm3(residual), inplace=True))
        residual += self.shortcut(activated if self.projects else x)
        return residual
