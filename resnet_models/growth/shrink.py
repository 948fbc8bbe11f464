"""A trained network made shallower by leaving out the blocks that give it least."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_models.adaptive import check_skippable, classify_map, skippable_blocks
from resnet_models.blocks.residual import ResidualBlock
from resnet_models.errors import SpecError
from resnet_models.growth.carry import Grown, carry_over
from resnet_models.modes import modes_kept
from resnet_models.resnet import ResNet, build


@dataclass(frozen=True)
class BlockContribution:
    """What one block gives a trained network, over the images it was measured on."""

    stage: int
    """Number of the stage, from 0."""
    block: int
    """Number of the block in it, from 0; never 0, since the first one changes shape."""
    relative_norm: float
    """Mean over images of |F(x)| / |x|: the branch beside what passes it by (arXiv:1612.07771, sec. 3, measures so)."""
    loss_increase: float
    """Mean loss with this block left out, less that of the whole network (lesions of arXiv:1605.06431, sec. 4.1)."""


@torch.no_grad()
def measure_contributions(
    network: ResNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> tuple[BlockContribution, ...]:
    """Return the contribution of every block that can be left out, in the network's order.

    Measured in eval mode, one block left out at a time, without gradients; the network stays as it is.

    Args:
        network: Trained.
        batches: (images, targets) on the network's device; some hundred images tell blocks apart.
        loss_fn: (logits, targets) -> mean loss of the batch, a scalar.

    Raises:
        ValueError: There is no batch.
    """
    places = skippable_blocks(network)
    norms, losses = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0.0)
    whole, images_seen = 0.0, 0
    with modes_kept(network):
        network.eval()
        for images, targets in batches:
            entering, ratios, last = _run_blocks(network, images)
            weight = len(images)
            whole += weight * float(loss_fn(classify_map(network, last), targets))
            for place in places:
                norms[place] += weight * ratios[place]
                logits = classify_map(network, _run_behind(network, place, entering[place]))
                losses[place] += weight * float(loss_fn(logits, targets))
            images_seen += weight
    if images_seen == 0:
        raise ValueError("there is no batch to measure contributions on; give some hundred images")
    return tuple(
        BlockContribution(*place, norms[place] / images_seen, (losses[place] - whole) / images_seen) for place in places
    )


def least_blocks(
    contributions: Collection[BlockContribution],
    count: int,
    *,
    by: Literal["loss_increase", "relative_norm"] = "loss_increase",
) -> set[tuple[int, int]]:
    """Return the `count` blocks (stage, block) that give least, the earlier one where two give the same.

    Raises:
        SpecError: There are fewer.
    """
    if not 1 <= count <= len(contributions):
        reason = f"{len(contributions)} blocks can be left out: each stage keeps its first, which changes shape"
        raise SpecError("count", count, reason, f"use a number from 1 to {len(contributions)}")
    ranked = sorted(contributions, key=lambda found: (getattr(found, by), found.stage, found.block))
    return {(found.stage, found.block) for found in ranked[:count]}


def shrink(
    network: ResNet,
    blocks: Collection[tuple[int, int]],
    *,
    optimizer_state: Mapping[str, Tensor] | None = None,
) -> Grown:
    """Return a shallower network: the same without `blocks`, for example `least_blocks(measure_contributions(...), 2)`.

    Residual networks bear it, since each block's input passes it by anyway (Veit et al. 2016, arXiv:1605.06431); some
    steps of training mend what is lost. Contributions change with every block that goes: leaving out many is best done
    in rounds. The given network stays as it is.

    Args:
        network: Trained.
        blocks: (stage, block), from 0.
        optimizer_state: Tensors by `<parameter>/<slot>`; those of the blocks left out go.

    Raises:
        SpecError: A block is not there or changes shape.
    """
    check_skippable(network, blocks)
    spec = network.spec
    kept = [
        [block for block in range(depth) if (stage, block) not in blocks]
        for stage, depth in enumerate(spec.stage_depths)
    ]
    shallower = build(replace(spec, depth=0, depths=tuple(map(len, kept))))

    def source(name: str) -> str:
        return re.sub(r"^stages\.(\d+)\.(\d+)", lambda at: f"stages.{at[1]}.{kept[int(at[1])][int(at[2])]}", name)

    return carry_over(network, shallower, source_of=source, optimizer_state=optimizer_state)


def _run_blocks(
    network: ResNet, images: Tensor
) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], float], Tensor]:
    """Return what enters each block, its mean |F(x)| / |x|, and the last map."""
    entering, ratios = {}, {}
    x = network.stem(images)
    for stage, blocks in enumerate(network.stages):
        for number, block in enumerate(blocks.children()):
            assert isinstance(block, ResidualBlock)
            entering[stage, number] = x
            residual = block.branch(x)
            passing = x.flatten(1).float().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
            ratios[stage, number] = float((residual.flatten(1).float().norm(dim=1) / passing).mean())
            x = block.merge(residual, block.skip(x))
    return entering, ratios, x


def _run_behind(network: ResNet, place: tuple[int, int], x: Tensor) -> Tensor:
    """Return the last map, from what enters the block at `place` and without that block."""
    for stage, blocks in enumerate(network.stages):
        for number, block in enumerate(blocks.children()):
            if (stage, number) > place:
                x = block(x)
    return x
