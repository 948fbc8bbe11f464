"""The blocks of pre-activation networks and Wide ResNets: the activation comes before each convolution."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from resnet_models.blocks.convolution import conv1x1, conv3x3
from resnet_models.blocks.parts import NO_NOISE, PREACT_PARTS, BlockNoise, BlockParts
from resnet_models.blocks.residual import ResidualBlock
from resnet_models.blocks.shortcut import ProjectionShortcut
from resnet_models.draws import SampleDraws


class PreactivationBlock(ResidualBlock):
    """A pre-activated branch beside a clean shortcut: y = F(x) + S(x) (He et al. 2016, arXiv:1603.05027, fig. 4d, e).

    A projection sees the activated input, as in the authors' code; an identity sees the raw one, so that the signal
    runs through unchanged. full_preactivation (e) puts a norm before each activation; relu_only_preactivation (d)
    leaves the norms behind the convolutions.
    """

    norm1: nn.Module

    def __init__(self, channels: int, *, parts: BlockParts, noise: BlockNoise) -> None:
        super().__init__(channels, parts=parts, noise=noise)
        self.is_full = parts.is_full_preactivation
        self.raw_activation = None if self.is_full else parts.make_activation(inplace=False)  # of x, which S needs too
        self.projects = False

    def _enter(self, x: Tensor) -> Tensor:
        """Return the activated input."""
        activated: Tensor = self.raw_activation(x) if self.raw_activation else self.activation(self.norm1(x))
        return activated

    @abstractmethod
    def _transform(self, activated: Tensor, draws: SampleDraws | None) -> Tensor:
        """Return F from the activated input."""

    def branch(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return F(x)."""
        return self._transform(self._enter(x), draws)

    def skip(self, x: Tensor) -> Tensor:
        """Return S(x)."""
        return super().skip(self._enter(x) if self.projects else x)

    def merge(self, residual: Tensor, skipped: Tensor) -> Tensor:
        """Return F(x) + S(x)."""
        residual += skipped
        return residual

    def forward(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return F(x) + S(x); the activated input is computed once for both."""
        activated = self._enter(x)
        return self.merge(self._transform(activated, draws), super().skip(activated if self.projects else x))


class PreactBasicBlock(PreactivationBlock):
    """Two pre-activated 3x3 convolutions beside a clean shortcut: y = F(x) + S(x).

    He et al. 2016, arXiv:1603.05027; Wide ResNets, arXiv:1605.07146, fig. 1c, with `noise.value` fig. 1d.
    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        parts: BlockParts = PREACT_PARTS,
        noise: BlockNoise = NO_NOISE,
    ) -> None:
        super().__init__(out_channels, parts=parts, noise=noise)
        self.norm1 = parts.make_norm(in_channels if self.is_full else out_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride=parts.conv_stride(stride))
        self.norm2 = parts.make_norm(out_channels)
        self.shrink = parts.make_shrink(out_channels, stride=stride)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = parts.make_shortcut(in_channels, out_channels, stride=stride)
        self.projects = isinstance(self.shortcut, ProjectionShortcut)

    @property
    def last_norm(self) -> nn.Module | None:
        """The second norm where it ends the branch."""
        return None if self.is_full else self.norm2

    def _transform(self, activated: Tensor, draws: SampleDraws | None) -> Tensor:
        behind = self.norm2 if self.is_full else self.norm1
        residual = self._activate(self.conv1(activated), behind, self.shrink, self.drop_block, draws)
        if self.dropout is not None:
            residual = self.dropout(residual, draws)
        residual = self.conv2(residual)
        return self._end(residual if self.is_full else self.norm2(residual), draws)


class PreactBottleneckBlock(PreactivationBlock):
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
        stride_first: bool = False,
        groups: int = 1,
        parts: BlockParts = PREACT_PARTS,
        noise: BlockNoise = NO_NOISE,
    ) -> None:
        super().__init__(out_channels, parts=parts, noise=noise)
        first, second = (stride, 1) if stride_first else (1, stride)
        self.norm1 = parts.make_norm(in_channels if self.is_full else inner_channels)
        self.conv1 = conv1x1(in_channels, inner_channels, stride=parts.conv_stride(first))
        self.shrink1 = parts.make_shrink(inner_channels, stride=first)
        self.norm2 = parts.make_norm(inner_channels)
        self.conv2 = conv3x3(inner_channels, inner_channels, stride=parts.conv_stride(second), groups=groups)
        self.shrink2 = parts.make_shrink(inner_channels, stride=second)
        self.norm3 = parts.make_norm(inner_channels if self.is_full else out_channels)
        self.conv3 = conv1x1(inner_channels, out_channels)
        self.shortcut = parts.make_shortcut(in_channels, out_channels, stride=stride)
        self.projects = isinstance(self.shortcut, ProjectionShortcut)

    @property
    def last_norm(self) -> nn.Module | None:
        """The third norm where it ends the branch."""
        return None if self.is_full else self.norm3

    def _transform(self, activated: Tensor, draws: SampleDraws | None) -> Tensor:
        behind1, behind2 = (self.norm2, self.norm3) if self.is_full else (self.norm1, self.norm2)
        residual = self._activate(self.conv1(activated), behind1, self.shrink1)
        residual = self._activate(self.conv2(residual), behind2, self.shrink2, self.drop_block, draws)
        if self.dropout is not None:
            residual = self.dropout(residual, draws)
        residual = self.conv3(residual)
        return self._end(residual if self.is_full else self.norm3(residual), draws)
