"""The layers before the first residual block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.blocks.convolution import conv3x3


class ImageNetStem(nn.Module):
    """7x7/2 convolution and 3x3/2 max pooling (arXiv:1512.03385, table 1).

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / 4), ceil(W / 4)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, activated: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False)
        self.activated = activated
        if activated:
            self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, activate unless the blocks do it themselves, pool."""
        x = self.conv(x)
        if self.activated:
            x = F.relu(self.norm(x), inplace=True)
        return F.max_pool2d(x, 3, stride=2, padding=1)


class DeepStem(nn.Module):
    """Three 3x3 convolutions, the first strided, and 3x3/2 max pooling (ResNet-C, arXiv:1812.01187, fig. 2b).

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / 4), ceil(W / 4)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, activated: bool) -> None:
        super().__init__()
        half = max(1, out_channels // 2)
        self.conv1 = conv3x3(in_channels, half, stride=2)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = conv3x3(half, out_channels)
        self.activated = activated
        if activated:
            self.norm3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve three times, activate unless the blocks do it themselves, pool."""
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        x = F.relu(self.norm2(self.conv2(x)), inplace=True)
        x = self.conv3(x)
        if self.activated:
            x = F.relu(self.norm3(x), inplace=True)
        return F.max_pool2d(x, 3, stride=2, padding=1)


class CifarStem(nn.Module):
    """One 3x3 convolution at full resolution (arXiv:1512.03385, sec. 4.2).

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, *, activated: bool) -> None:
        super().__init__()
        self.conv = conv3x3(in_channels, out_channels)
        self.activated = activated
        if activated:
            self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, activate unless the blocks do it themselves."""
        x = self.conv(x)
        return F.relu(self.norm(x), inplace=True) if self.activated else x


STEMS: dict[str, type[ImageNetStem | DeepStem | CifarStem]] = {
    "imagenet": ImageNetStem,
    "deep": DeepStem,
    "cifar": CifarStem,
}
"""`ModelSpec.stem` -> module."""
