"""The layers before the first residual block."""

from __future__ import annotations

from torch import Tensor, nn

from resnet_models.blocks.convolution import conv1x1, conv3x3
from resnet_models.blocks.parts import BlockParts
from resnet_models.pooling import AveragePool, BlurPool, MaxPool
from resnet_models.spec_fields import SpecFields
from resnet_models.whitening import PatchWhitening


class Stem(nn.Module):
    """What stems share: how their last convolution ends.

    A norm and an activation follow it, unless the first block brings its own: full pre-activation
    (arXiv:1603.05027, fig. 4e) leaves both to the block, ReLU-only pre-activation (4d) the activation.
    """

    def __init__(self, parts: BlockParts, *, ends: bool = True) -> None:
        """Take the parts, and whether no convolution follows (`ends`)."""
        super().__init__()
        self.has_norm = not (ends and parts.is_full_preactivation)
        is_open = ends and parts.ordering in ("full_preactivation", "relu_only_preactivation")
        self.activation = parts.make_activation()
        self.last_activation = nn.Identity() if is_open else self.activation

    def _close(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """Norm and activate where the stem does it."""
        closed: Tensor = self.last_activation(x if norm is None else norm(x))
        return closed


class PoolingConvolution(Stem):
    """A strided 3x3 convolution in a pooling's place (ResNet-RS, arXiv:2103.07579, sec. 6).

    Shape: (N, channels, H, W) -> (N, channels, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, channels: int, *, parts: BlockParts) -> None:
        super().__init__(parts)
        self.conv = conv3x3(channels, channels, stride=2)
        self.norm = parts.make_norm(channels) if self.has_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, activate unless the blocks do it themselves."""
        return self._close(self.conv(x), self.norm)


class ImageNetStem(Stem):
    """7x7/2 convolution and a pooling, 3x3/2 max by default (arXiv:1512.03385, table 1).

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / 4), ceil(W / 4)); without pooling a half each.
    """

    def __init__(self, in_channels: int, out_channels: int, *, pool: str, parts: BlockParts) -> None:
        super().__init__(parts, ends=pool != "convolution")
        self.conv = nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False)
        self.norm = parts.make_norm(out_channels) if self.has_norm else None
        self.pool = make_stem_pool(pool, out_channels, parts=parts)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, activate unless the blocks do it themselves, pool."""
        pooled: Tensor = self.pool(self._close(self.conv(x), self.norm))
        return pooled


class DeepStem(Stem):
    """Three 3x3 convolutions, the first strided, and a pooling (ResNet-C, arXiv:1812.01187, fig. 2b).

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / 4), ceil(W / 4)); without pooling a half each.
    """

    def __init__(
        self, in_channels: int, inside: tuple[int, int], out_channels: int, *, pool: str, parts: BlockParts
    ) -> None:
        super().__init__(parts, ends=pool != "convolution")
        self.conv1 = conv3x3(in_channels, inside[0], stride=2)
        self.norm1 = parts.make_norm(inside[0])
        self.conv2 = conv3x3(inside[0], inside[1])
        self.norm2 = parts.make_norm(inside[1])
        self.conv3 = conv3x3(inside[1], out_channels)
        self.norm3 = parts.make_norm(out_channels) if self.has_norm else None
        self.pool = make_stem_pool(pool, out_channels, parts=parts)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve three times, activate unless the blocks do it themselves, pool."""
        x = self.activation(self.norm1(self.conv1(x)))
        x = self.activation(self.norm2(self.conv2(x)))
        pooled: Tensor = self.pool(self._close(self.conv3(x), self.norm3))
        return pooled


class CifarStem(Stem):
    """One 3x3 convolution at full resolution (arXiv:1512.03385, sec. 4.2).

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, *, parts: BlockParts) -> None:
        super().__init__(parts)
        self.conv = conv3x3(in_channels, out_channels)
        self.norm = parts.make_norm(out_channels) if self.has_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, activate unless the blocks do it themselves."""
        return self._close(self.conv(x), self.norm)


class WhiteningStem(Stem):
    """Whitened 3x3 patches, activated, and a 1x1 convolution, at full resolution.

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, *, parts: BlockParts) -> None:
        super().__init__(parts)
        self.whitening = PatchWhitening(in_channels)
        self.conv = conv1x1(self.whitening.out_channels, out_channels)
        self.norm = parts.make_norm(out_channels) if self.has_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Whiten, mix, activate unless the blocks do it themselves."""
        return self._close(self.conv(self.activation(self.whitening(x))), self.norm)


def make_stem(spec: SpecFields, parts: BlockParts) -> Stem:
    """Return the stem of a settled spec."""
    channels, pool = spec.stem_width, spec.settled_stem_pool
    if spec.stem == "cifar":
        return CifarStem(spec.in_channels, channels, parts=parts)
    if spec.stem == "whitening":
        return WhiteningStem(spec.in_channels, channels, parts=parts)
    if spec.stem == "imagenet":
        return ImageNetStem(spec.in_channels, channels, pool=pool, parts=parts)
    return DeepStem(spec.in_channels, spec.stem_channels_inside(), channels, pool=pool, parts=parts)


def make_stem_pool(name: str, channels: int, *, parts: BlockParts) -> nn.Module:
    """Return the pooling of `ModelSpec.stem_pool`, of stride 2 unless it is none."""
    if name == "none":
        return nn.Identity()
    if name == "convolution":
        return PoolingConvolution(channels, parts=parts)
    if name == "average":
        return AveragePool(stride=2)
    if name == "blur":
        return nn.Sequential(MaxPool(stride=1), BlurPool(channels, stride=2))
    return MaxPool(stride=2)
