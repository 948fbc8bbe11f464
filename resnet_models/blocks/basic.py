"""The block of ResNet-18, -34 and the CIFAR networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.blocks.convolution import conv3x3
from resnet_models.blocks.shortcut import make_shortcut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: y = relu(F(x) + S(x)).

    He et al. 2015, arXiv:1512.03385, fig. 2 and fig. 5 left.
    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride=stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(in_channels, out_channels, stride=stride, option=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + S(x))."""
        # In place where it is safe: neither a norm's nor an addition's gradient needs its output.
        residual: Tensor = F.relu(self.norm1(self.conv1(x)), inplace=True)
        residual = self.norm2(self.conv2(residual))  # no ReLU here: F could then only add (arXiv:1603.05027, sec. 4.1)
        residual += self.shortcut(x)
        return F.relu(residual, inplace=True)
