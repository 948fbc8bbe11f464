"""What blocks share whose activation follows their convolutions: three orders around the addition."""

from __future__ import annotations

from torch import Tensor

from resnet_models.blocks.parts import BlockNoise, BlockParts
from resnet_models.blocks.residual import ResidualBlock
from resnet_models.draws import SampleDraws


class PostactivationBlock(ResidualBlock):
    """The end of the branch and the addition, by `parts.ordering` (He et al. 2016, arXiv:1603.05027, fig. 4).

    original (a): y = act(norm(conv) + S); norm_after_addition (b): y = act(norm(conv + S)); relu_before_addition (c):
    y = act(norm(conv)) + S. Gates stand behind the branch's last convolution and its norm, before an activation there.
    """

    def __init__(self, channels: int, *, parts: BlockParts, noise: BlockNoise) -> None:
        super().__init__(channels, parts=parts, noise=noise)
        self.adds_first = parts.ordering == "norm_after_addition"
        self.adds_last = parts.ordering == "relu_before_addition"

    def _close(self, residual: Tensor, draws: SampleDraws | None) -> Tensor:
        """Return F from the last convolution's output."""
        if not self.adds_first:
            assert self.last_norm is not None
            # no activation here in the original: F could then only add (arXiv:1603.05027, sec. 4.1)
            residual = self.last_norm(residual)
        if not self.adds_last:
            return self._end(residual, draws)
        if self.attention is not None:
            residual = self.attention(residual)
        residual = self.activation(residual)
        return residual if self.drop_path is None else self.drop_path(residual, draws)

    def merge(self, residual: Tensor, skipped: Tensor) -> Tensor:
        """Return y by the block's ordering."""
        if self.adds_last:
            return residual + skipped  # not in place: the activation's gradient needs its output
        residual += skipped
        if self.adds_first:
            assert self.last_norm is not None
            residual = self.last_norm(residual)
        merged: Tensor = self.activation(residual)
        return merged
