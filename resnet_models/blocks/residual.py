"""What every residual block is: a branch, a shortcut, and their sum."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from resnet_models.blocks.parts import BlockNoise, BlockParts
from resnet_models.draws import SampleDraws


class ResidualBlock(nn.Module, ABC):
    """y = merge(F(x), S(x)): a branch F with weights beside a shortcut S.

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    shortcut: nn.Module

    def __init__(self, channels: int, *, parts: BlockParts, noise: BlockNoise) -> None:
        """Take what its convolutions share, and what ends the branch: gates for its `channels`, stochastic depth."""
        super().__init__()
        self.activation = parts.make_activation()
        self.shrinks_first = parts.shrinks_first
        self.drop_block = noise.make_drop_block()
        self.dropout = noise.make_dropout()
        self.attention = parts.make_attention(channels)
        self.drop_path = noise.make_drop_path()

    @abstractmethod
    def branch(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return F(x)."""

    def skip(self, x: Tensor) -> Tensor:
        """Return S(x)."""
        skipped: Tensor = self.shortcut(x)
        return skipped

    @abstractmethod
    def merge(self, residual: Tensor, skipped: Tensor) -> Tensor:
        """Return y from F(x), which it may overwrite, and S(x)."""

    def forward(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return merge(F(x), S(x)); `draws` are the samples' random numbers, else torch's generator gives them."""
        return self.merge(self.branch(x, draws), self.skip(x))

    @property
    @abstractmethod
    def last_norm(self) -> nn.Module | None:
        """The norm that ends the branch, whose scale at zero makes F zero; None where the branch ends otherwise."""

    def _activate(
        self,
        x: Tensor,
        norm: nn.Module,
        shrink: nn.Module | None,
        drop_block: nn.Module | None = None,
        draws: SampleDraws | None = None,
    ) -> Tensor:
        """Return the activated output of a convolution, made smaller where `shrink` stands for its stride."""
        if shrink is not None and self.shrinks_first:
            x = shrink(x)
        x = norm(x)
        if drop_block is not None:
            x = drop_block(x, draws)
        activated: Tensor = self.activation(x)
        if shrink is None or self.shrinks_first:
            return activated
        smaller: Tensor = shrink(activated)
        return smaller

    def _end(self, residual: Tensor, draws: SampleDraws | None) -> Tensor:
        """Gate the branch and leave it out at random, where the network does so."""
        if self.attention is not None:
            residual = self.attention(residual)
        if self.drop_path is not None:
            residual = self.drop_path(residual, draws)
        return residual
