"""The path beside a block's convolutions: identity where it can be, else one of the papers' options."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F  # torch's own name for it

from resnet_models.blocks.convolution import conv1x1
from resnet_models.pooling import make_shrink

_POOLED_SHORTCUTS = {"average_pool": "average", "blur_pool": "blur"}


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

    A pooling before it throws no pixel away: an average (ResNet-D, arXiv:1812.01187 fig. 2c) or a blur
    (arXiv:1904.11486). Without `norm` there is none: pre-activation blocks add bare sums.
    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        pooling: str = "stride",
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.pool = make_shrink(pooling, in_channels, stride=stride)
        self.conv = conv1x1(in_channels, out_channels, stride=stride if self.pool is None else 1)
        self.norm = nn.Identity() if norm is None else norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pool where asked, project, norm where asked."""
        if self.pool is not None:
            x = self.pool(x)
        out: Tensor = self.norm(self.conv(x))
        return out


def make_shortcut(
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    option: str,
    norm: Callable[[int], nn.Module] | None,
) -> nn.Module:
    """Return the shortcut of a block: identity where the shape stays, unless the option projects always.

    Args:
        in_channels: Channels that enter the block.
        out_channels: Channels that leave it.
        stride: Stride of the block.
        option: `ModelSpec.shortcut`.
        norm: Makes the norm behind a projection; None: there is none.
    """
    if stride == 1 and in_channels == out_channels and option != "all_projection":
        return nn.Identity()
    if option == "zero_pad":
        return ZeroPadShortcut(in_channels, out_channels, stride=stride)
    pooling = _POOLED_SHORTCUTS.get(option, "stride")
    return ProjectionShortcut(in_channels, out_channels, stride=stride, pooling=pooling, norm=norm)
