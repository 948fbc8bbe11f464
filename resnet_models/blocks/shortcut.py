"""The path beside a block's convolutions: identity where it can be, else one of the papers' options."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # torch's own name for it

from resnet_models.blocks.convolution import conv1x1


class ZeroPadShortcut(nn.Module):
    """Option A (arXiv:1512.03385 sec. 4.1): take every stride-th pixel, fill the new channels with zeros.

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad; no parameters."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class ProjectionShortcut(nn.Module):
    """Options B and C (arXiv:1512.03385 sec. 4.1): a 1x1 convolution, strided itself or after a pooling.

    With `pooled` the stride is an average pooling before it, so that no pixel is thrown away (ResNet-D,
    arXiv:1812.01187 fig. 2c). Without `normed` there is no norm: pre-activation blocks add bare sums.
    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, pooled: bool, normed: bool) -> None:
        super().__init__()
        self.pool_stride = stride if pooled else 1
        self.conv = conv1x1(in_channels, out_channels, stride=1 if pooled else stride)
        self.norm = nn.BatchNorm2d(out_channels) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Pool where asked, project, norm where asked."""
        if self.pool_stride > 1:
            # ceil_mode keeps odd sizes equal to the strided convolution's; the ragged edge averages real pixels only
            x = F.avg_pool2d(x, self.pool_stride, ceil_mode=True, count_include_pad=False)
        out: Tensor = self.norm(self.conv(x))
        return out


def make_shortcut(in_channels: int, out_channels: int, *, stride: int, option: str, normed: bool = True) -> nn.Module:
    """Return the shortcut of a block: identity where the shape stays, unless the option projects always.

    Args:
        in_channels: Channels that enter the block.
        out_channels: Channels that leave it.
        stride: Stride of the block.
        option: `ModelSpec.shortcut`.
        normed: Whether a projection is followed by a norm.
    """
    if stride == 1 and in_channels == out_channels and option != "all_projection":
        return nn.Identity()
    if option == "zero_pad":
        return ZeroPadShortcut(in_channels, out_channels, stride=stride)
    return ProjectionShortcut(in_channels, out_channels, stride=stride, pooled=option == "average_pool", normed=normed)
