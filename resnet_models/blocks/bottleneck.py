"""The block of ResNet-50 and deeper; with groups in its 3x3, the block of ResNeXt."""

from __future__ import annotations

from torch import Tensor, nn

from resnet_models.blocks.convolution import conv1x1, conv3x3
from resnet_models.blocks.parts import NO_NOISE, PLAIN_PARTS, BlockNoise, BlockParts
from resnet_models.blocks.postactivation import PostactivationBlock
from resnet_models.draws import SampleDraws


class BottleneckBlock(PostactivationBlock):
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
        stride_first: bool = False,
        groups: int = 1,
        parts: BlockParts = PLAIN_PARTS,
        noise: BlockNoise = NO_NOISE,
    ) -> None:
        super().__init__(out_channels, parts=parts, noise=noise)
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = conv1x1(in_channels, inner_channels, stride=parts.conv_stride(first))
        self.norm1 = parts.make_norm(inner_channels)
        self.shrink1 = parts.make_shrink(inner_channels, stride=first)
        self.conv2 = conv3x3(inner_channels, inner_channels, stride=parts.conv_stride(second), groups=groups)
        self.norm2 = parts.make_norm(inner_channels)
        self.shrink2 = parts.make_shrink(inner_channels, stride=second)
        self.conv3 = conv1x1(inner_channels, out_channels)
        self.norm3 = parts.make_norm(out_channels)
        self.shortcut = parts.make_shortcut(in_channels, out_channels, stride=stride)

    @property
    def last_norm(self) -> nn.Module:
        """The third norm."""
        return self.norm3

    def branch(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return F(x)."""
        residual = self._activate(self.conv1(x), self.norm1, self.shrink1)
        residual = self._activate(self.conv2(residual), self.norm2, self.shrink2, self.drop_block, draws)
        if self.dropout is not None:
            residual = self.dropout(residual, draws)
        return self._close(self.conv3(residual), draws)
