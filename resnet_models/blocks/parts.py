"""What all blocks of a network are made of, as two small recipes: the parts, and what is left out at random."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from resnet_models.activation import make_activation
from resnet_models.attention import make_attention
from resnet_models.blocks.shortcut import make_shortcut
from resnet_models.drop import DropBlock, DropPath, SampleDropout
from resnet_models.norm import make_norm
from resnet_models.pooling import make_shrink
from resnet_models.spec_fields import SpecFields


@dataclass(frozen=True)
class BlockParts:
    """The kinds of parts that a network's blocks and stem share; values as in `ModelSpec`, already settled."""

    ordering: str = "original"
    shortcut: str = "projection"
    norm: str = "batch"
    norm_size: int = 0
    activation: str = "relu"
    attention: str = "none"
    attention_reduction: int = 16
    downsample: str = "stride"

    @classmethod
    def of(cls, spec: SpecFields) -> BlockParts:
        """Return the parts that a spec names."""
        return cls(
            ordering=spec.settled_ordering,
            shortcut=spec.shortcut,
            norm=spec.norm,
            norm_size=spec.settled_norm_size,
            activation=spec.activation,
            attention=spec.attention,
            attention_reduction=spec.attention_reduction,
            downsample=spec.downsample,
        )

    @property
    def is_full_preactivation(self) -> bool:
        """Whether norm and activation come before each convolution (fig. 4e); else a norm follows each."""
        return self.ordering == "full_preactivation"

    def make_norm(self, channels: int) -> nn.Module:
        """Return a norm."""
        return make_norm(self.norm, channels, size=self.norm_size)

    def make_activation(self, *, inplace: bool = True) -> nn.Module:
        """Return a non-linearity."""
        return make_activation(self.activation, inplace=inplace)

    def make_attention(self, channels: int) -> nn.Module | None:
        """Return channel gates, or None."""
        return make_attention(self.attention, channels, reduction=self.attention_reduction)

    def make_shrink(self, channels: int, *, stride: int) -> nn.Module | None:
        """Return what shrinks the branch of a strided block in its convolution's place, or None."""
        return make_shrink(self.downsample, channels, stride=stride)

    @property
    def shrinks_first(self) -> bool:
        """Whether it does so before the convolution's norm, not behind the activation."""
        return self.downsample == "max_before_norm"

    def conv_stride(self, stride: int) -> int:
        """Return the stride left to the convolution of a block of this stride."""
        return stride if self.downsample == "stride" else 1

    def make_shortcut(self, in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
        """Return the path beside the branch; bare sums (full pre-activation) have no norm in it."""
        norm = None if self.is_full_preactivation else self.make_norm
        return make_shortcut(in_channels, out_channels, stride=stride, option=self.shortcut, norm=norm)


@dataclass(frozen=True)
class BlockNoise:
    """What a block leaves out at random while training; rates are probabilities, 0 leaves the part away."""

    path: float = 0.0
    """Whole branch (stochastic depth)."""
    region: float = 0.0
    """Squares of the map behind the 3x3 (DropBlock)."""
    region_size: int = 7
    """Side of the squares in pixels of the map."""
    value: float = 0.0
    """Single values before the last convolution."""
    layer: int = 0
    """Number of the block's first random module; it has up to `LAYERS_PER_BLOCK`."""

    def make_drop_path(self) -> DropPath | None:
        """Return stochastic depth, or None."""
        return DropPath(self.path, self.layer) if self.path else None

    def make_drop_block(self) -> DropBlock | None:
        """Return DropBlock, or None."""
        return DropBlock(self.region, self.region_size, self.layer + 1) if self.region else None

    def make_dropout(self) -> SampleDropout | None:
        """Return dropout, or None."""
        return SampleDropout(self.value, self.layer + 2) if self.value else None


PLAIN_PARTS = BlockParts()
"""Those of He et al. 2015."""
PREACT_PARTS = BlockParts(ordering="full_preactivation")
"""Those of He et al. 2016."""
NO_NOISE = BlockNoise()
"""Nothing is left out."""
LAYERS_PER_BLOCK = 3
"""Draw numbers that each block takes, used or not, so that turning one part on moves no other part's draws."""
