"""What turns the last map into logits, and a stage's map where a classifier stands early."""

from __future__ import annotations

from torch import Tensor, nn

from resnet_models.blocks.parts import BlockParts
from resnet_models.pooling import HEAD_POOLS
from resnet_models.spec_fields import SpecFields


def make_end_norm(channels: int, parts: BlockParts) -> nn.Module | None:
    """Return the norm that full pre-activation leaves to whatever follows the blocks, or None for other orderings."""
    return parts.make_norm(channels) if parts.is_full_preactivation else None


def make_end_activation(parts: BlockParts) -> nn.Module | None:
    """Return the activation that pre-activation blocks leave to whatever follows them, or None for other orderings."""
    if parts.is_full_preactivation:
        return parts.make_activation()
    # Not in place without a norm before it: a stage's output is others' to see.
    return parts.make_activation(inplace=False) if parts.ordering == "relu_only_preactivation" else None


class ExitHead(nn.Module):
    """A classifier on a stage's output that ends as the network does (BranchyNet, arXiv:1709.01686, sec. III).

    Shape: (N, channels, H, W) -> logits (N, num_classes).
    """

    def __init__(self, channels: int, spec: SpecFields) -> None:
        super().__init__()
        parts = BlockParts.of(spec)
        self.norm = make_end_norm(channels, parts)
        self.activation = make_end_activation(parts)
        self.pool = HEAD_POOLS[spec.head_pool]()
        self.head = nn.Linear(channels * (2 if spec.head_pool == "concat" else 1), spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        logits: Tensor = self.head(self.pool(x))
        return logits


def make_exits(spec: SpecFields) -> nn.ModuleDict | None:
    """Return the early-exit classifiers by stage number ("1" is the first stage), or None where there are none."""
    if not spec.exits:
        return None
    channels = {stage: spec.stage_channels[stage - 1] * spec.expansion for stage in spec.exits}
    return nn.ModuleDict({str(stage): ExitHead(channels[stage], spec) for stage in spec.exits})
