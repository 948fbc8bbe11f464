"""Less depth for easier images: early exits, and blocks left out at inference."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resnet_models.draws import SampleDraws
from resnet_models.errors import SpecError
from resnet_models.resnet import ResNet, check_images


@dataclass(frozen=True)
class EarlyPrediction:
    """What `predict_early` found for a batch."""

    logits: Tensor
    """(N, num_classes), each image's from the exit that it took."""
    stages: Tensor
    """int64 (N,): stage behind which the image left, counted from 1; the number of stages for the network's own end."""


def exit_logits(network: ResNet, images: Tensor, *, sample_keys: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return the logits (N, num_classes) of every early exit in order, the network's own last.

    For training all of them at once (BranchyNet, arXiv:1709.01686, sec. III-B: a weighted sum of their losses). The
    last ones equal `network(images)`, exits or none.

    Args:
        network: With or without exits.
        images: (N, in_channels, H, W).
        sample_keys: As in `ResNet.forward`.
    """
    outputs = network.stage_outputs(images, sample_keys=sample_keys)
    early = [head(outputs[int(stage) - 1]) for stage, head in _exits(network)]
    return (*early, classify_map(network, outputs[-1], sample_keys=sample_keys))


@torch.no_grad()
def predict_early(network: ResNet, images: Tensor, threshold: float) -> EarlyPrediction:
    """Return each image's logits from the first exit that is sure of it; only the others go on to deeper stages.

    Sure means a softmax probability of at least `threshold` for one class (arXiv:1703.09844, sec. 4, "anytime"
    networks, exits so). The logits are those that `exit_logits` gives for that exit: to the bit wherever the kernels
    treat an image alike in batches of any size, as those of CPUs do.

    Args:
        network: In eval mode, with exits (`ModelSpec.exits`).
        images: (N, in_channels, H, W).
        threshold: From 0 (all leave at the first exit) up; above 1 none leaves early.

    Raises:
        ValueError: The network has no exits or is in train mode, or the threshold is no number.
        SpecError: As `ResNet`.
    """
    if not network.spec.exits:
        raise ValueError("the network has no early exits; build it with exits=[...], the stages to leave after")
    if network.training:
        raise ValueError("the network is in train mode, where exits depend on the batch; call network.eval() first")
    if math.isnan(threshold):
        raise ValueError("threshold is nan; give a probability from 0 (all leave at the first exit) up")
    check_images(network.spec, images)
    exits = dict(_exits(network))
    logits = images.new_empty(len(images), network.spec.num_classes)
    stages = torch.full((len(images),), network.spec.num_stages, device=images.device)
    going_on = torch.arange(len(images), device=images.device)
    x = network.stem(images)
    for number, stage in enumerate(network.stages, start=1):
        x = stage(x)
        if str(number) not in exits:
            continue
        found = exits[str(number)](x)
        sure = found.softmax(dim=1).amax(dim=1) >= threshold
        logits[going_on[sure]] = found[sure].to(logits.dtype)
        stages[going_on[sure]] = number
        x, going_on = x[~sure], going_on[~sure]
        if not len(going_on):
            return EarlyPrediction(logits, stages)
    logits[going_on] = classify_map(network, x).to(logits.dtype)
    return EarlyPrediction(logits, stages)


def classify_map(network: ResNet, x: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
    """Return logits (N, num_classes) from the last stage's map, as the network itself ends."""
    features = network.pool(network.finish(x))
    if network.dropout is not None:
        features = network.dropout(features, None if sample_keys is None else SampleDraws(sample_keys))
    logits: Tensor = network.head(features)
    return logits


def skippable_blocks(network: ResNet) -> tuple[tuple[int, int], ...]:
    """Return (stage, block), from 0, of every block that can be left out: its shortcut is the identity."""
    return tuple(
        (stage, number)
        for stage, blocks in enumerate(network.stages)
        for number, block in enumerate(blocks.children())
        # A stage keeps its first block even where it changes no shape: no spec describes a stage without blocks.
        if number > 0 and isinstance(block.shortcut, nn.Identity)
    )


def check_skippable(network: ResNet, blocks: Collection[tuple[int, int]]) -> None:
    """Refuse blocks that cannot be left out.

    Raises:
        SpecError: Names the first and why.
    """
    possible = skippable_blocks(network)
    for place in sorted(blocks):
        if place not in possible:
            depths = network.spec.stage_depths
            is_there = 0 <= place[0] < len(depths) and 0 <= place[1] < depths[place[0]]
            reason = "the first block of a stage stays, and so does one whose shortcut projects"
            raise SpecError(
                "skip",
                place,
                reason if is_there else "there is no such stage and block",
                f"use (stage, block) from 0, among {', '.join(map(str, possible)) or 'none: no block can be left out'}",
            )


def skip_blocks(network: ResNet, skip: Collection[tuple[int, int]]) -> ResNet:
    """Return the network without some blocks, sharing all weights with the given one, which stays whole.

    What enters a left-out block goes on as it is. Stochastic depth (arXiv:1603.09382) trains networks to bear it; Veit
    et al. 2016, arXiv:1605.06431, sec. 4.1, show how far others do. The result is a network like any other, with a spec
    of its own; making it costs no memory. Blocks are shared objects: `train()` and `eval()` on either concern both.

    Args:
        network: Any network.
        skip: (stage, block), from 0; see `skippable_blocks`.

    Raises:
        SpecError: A block cannot be left out.
    """
    check_skippable(network, skip)
    stages = [
        type(blocks)(*(block for number, block in enumerate(blocks.children()) if (stage, number) not in skip))
        for stage, blocks in enumerate(network.stages)
    ]
    view = ResNet.__new__(ResNet)
    nn.Module.__init__(view)
    for name, value in vars(network).items():
        if name != "_modules" and not name.startswith("_"):
            vars(view)[name] = value
    for name, module in network._modules.items():
        view.register_module(name, nn.Sequential(*stages) if name == "stages" else module)
    view.spec = replace(network.spec, depth=0, depths=tuple(len(list(blocks.children())) for blocks in stages))
    return view


def _exits(network: ResNet) -> list[tuple[str, nn.Module]]:
    return [] if network.exits is None else list(network.exits.items())
