"""A trained network made deeper by blocks that compute nothing yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from resnet_models.blocks.residual import ResidualBlock
from resnet_models.errors import SpecError
from resnet_models.growth.carry import Grown, carry_over, checked_depth
from resnet_models.norm import FrozenBatchNorm
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec

_ZERO_BLOCKS = "a block whose branch is zero must pass its input on unchanged"


def deepen(
    network: ResNet,
    stage: int,
    *,
    count: int = 1,
    position: int | None = None,
    seed: int = 0,
    optimizer_state: Mapping[str, Tensor] | None = None,
) -> Grown:
    """Return a deeper network that computes the same: `count` blocks more, each with a branch of exactly zero.

    Chen et al. 2016, arXiv:1511.05641 ("Net2DeeperNet"), where identity shortcuts do the identity's work: only the
    last norm's scale, or where the branch ends otherwise the last convolution, is zero, and gets gradient. Logits are
    equal to the bit in eval mode. In train mode, too, but for what is left out at random: rates of stochastic depth
    are those of the deeper network. The given network stays as it is.

    Args:
        network: Trained or not, on any device.
        stage: Number of the stage, from 0.
        count: Blocks to insert.
        position: Number of the block in whose place the first new one stands, from 1 (the first block of a stage
            changes shape); None: after the last.
        seed: Of the new blocks' other weights.
        optimizer_state: Tensors by `<parameter>/<slot>`; see `growth.optimizer`.

    Raises:
        SpecError: There is no such place, or no block of this kind can pass its input on unchanged.
    """
    spec = network.spec
    depth = checked_depth(spec, stage)
    at = depth if position is None else position
    if not 1 <= at <= depth:
        reason = f"blocks can be inserted at 1 to {depth} of stage {stage}: its first block changes shape"
        raise SpecError("position", position, reason, f"use a place from 1 to {depth}, or None for the end")
    if count < 1:
        raise SpecError("count", count, "deepening adds blocks", "give 1 or more")
    check_deepens(spec)
    depths = list(spec.stage_depths)
    depths[stage] += count
    deeper = build(replace(spec, depth=0, depths=tuple(depths)), seed=seed)
    for number in range(at, at + count):
        _zero_branch(deeper.get_submodule(f"stages.{stage}.{number}"))

    def source(name: str) -> str | None:
        return _renumbered(name, stage, at, count)

    return carry_over(network, deeper, source_of=source, optimizer_state=optimizer_state)


def check_deepens(spec: ModelSpec) -> None:
    """Refuse networks whose blocks cannot be the identity.

    Raises:
        SpecError: Names the field, why, and what to use instead.
    """
    ordering, activation = spec.settled_ordering, spec.activation
    if spec.shortcut == "all_projection":
        cure = "use a network with shortcut=projection, which projects only where the shape changes"
        raise SpecError("shortcut", spec.shortcut, f"{_ZERO_BLOCKS}, and every shortcut projects", cure)
    if ordering == "norm_after_addition":
        cure = "use ordering=original or block=preact_*, whose shortcuts are clean"
        raise SpecError("ordering", ordering, f"{_ZERO_BLOCKS}, and the norm after the addition changes it", cure)
    if ordering == "original" and activation != "relu":
        raise SpecError(
            "activation",
            activation,
            f"{_ZERO_BLOCKS}, and {activation} of the sum changes what it has activated once (relu leaves it)",
            "use activation=relu, or block=preact_*, whose sum is not activated",
        )
    if ordering == "relu_before_addition" and activation == "relu":
        raise SpecError(
            "ordering",
            ordering,
            "a branch that ends in a relu of zero passes no gradient, so that the new block would never learn",
            "use ordering=original or block=preact_*, or an activation with a slope at zero such as silu",
        )


def _zero_branch(block: nn.Module) -> None:
    """Make F exactly zero where the zero still gets gradient."""
    assert isinstance(block, ResidualBlock)
    norm = block.last_norm
    if norm is None or isinstance(norm, FrozenBatchNorm):  # a frozen scale would stay at zero for ever
        last = block.conv3 if hasattr(block, "conv3") else block.conv2
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        return
    assert isinstance(norm.weight, Tensor)
    nn.init.zeros_(norm.weight)


def _renumbered(name: str, stage: int, at: int, count: int) -> str | None:
    """Return the old name of a tensor of the deeper network; None for the new blocks' own."""
    found = re.match(rf"stages\.{stage}\.(\d+)\.", name)
    if found is None or int(found[1]) < at:
        return name
    block = int(found[1]) - count
    return f"stages.{stage}.{block}.{name[found.end() :]}" if block >= at else None
