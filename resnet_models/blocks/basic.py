"""The block of ResNet-18, -34 and the CIFAR networks."""

from __future__ import annotations

from torch import Tensor, nn

from resnet_models.blocks.convolution import conv3x3
from resnet_models.blocks.parts import NO_NOISE, PLAIN_PARTS, BlockNoise, BlockParts
from resnet_models.blocks.postactivation import PostactivationBlock
from resnet_models.draws import SampleDraws


class BasicBlock(PostactivationBlock):
    """Two 3x3 convolutions beside a shortcut: y = relu(F(x) + S(x)).

    He et al. 2015, arXiv:1512.03385, fig. 2 and fig. 5 left.
    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        parts: BlockParts = PLAIN_PARTS,
        noise: BlockNoise = NO_NOISE,
    ) -> None:
        super().__init__(out_channels, parts=parts, noise=noise)
        self.conv1 = conv3x3(in_channels, out_channels, stride=parts.conv_stride(stride))
        self.norm1 = parts.make_norm(out_channels)
        self.shrink = parts.make_shrink(out_channels, stride=stride)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = parts.make_norm(out_channels)
        self.shortcut = parts.make_shortcut(in_channels, out_channels, stride=stride)

    @property
    def last_norm(self) -> nn.Module:
        """The second norm."""
        return self.norm2

    def branch(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return F(x)."""
        residual = self._activate(self.conv1(x), self.norm1, self.shrink, self.drop_block, draws)
        if self.dropout is not None:
            residual = self.dropout(residual, draws)
        return self._close(self.conv2(residual), draws)
