"""A trained network made wider by copies of its channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from resnet_models.errors import SpecError
from resnet_models.growth.carry import Grown, carry_over
from resnet_models.growth.channels import TensorGrowth
from resnet_models.growth.plan import WideningPlan
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec


def widen(
    network: ResNet,
    spec: ModelSpec,
    *,
    seed: int = 0,
    noise: float = 0.0,
    optimizer_state: Mapping[str, Tensor] | None = None,
) -> Grown:
    """Return a wider network that computes the same: channels copied, what they give divided among their copies.

    Chen et al. 2016, arXiv:1511.05641 ("Net2WiderNet"), sec. 2.2. Norms copy their figures with their channels, squeeze
    gates their scales; a convolution copies whole groups where there are more, and channels inside their group. Logits
    agree up to rounding, in train mode too. The given network stays as it is.

    Without noise, copies of one channel get the same gradient and stay copies for as long as nothing else parts them
    (dropout does).

    Args:
        network: Trained or not, on any device.
        spec: Of the wider network, for example `wider_spec(network.spec, width=2.0)`; it may differ in channels, width,
            stem_channels, base_width and cardinality.
        seed: Of which channels get an extra copy, and of the noise.
        noise: Standard deviation of what is added to the weights that make a copied channel, as a fraction of theirs.
        optimizer_state: Tensors by `<parameter>/<slot>`; see `growth.optimizer`.

    Raises:
        SpecError: The spec differs in more, takes channels away, or gates, shortcuts or norms forbid these copies.
    """
    for name in _other_fields(network.spec, spec):
        raise SpecError(
            name,
            getattr(spec, name),
            f"widening leaves it at {getattr(network.spec, name)!r}",
            "change only channels, width, stem_channels, base_width and cardinality",
        )
    if not 0.0 <= noise <= 1.0:
        raise SpecError("noise", noise, "it is a fraction of the weights' spread", "give 0 to 1, for example 0.01")
    wider = build(spec, seed=seed)
    growths = WideningPlan(network, wider, seed=seed).growths
    grown = carry_over(network, wider, growths=growths, optimizer_state=optimizer_state)
    if noise:
        _part_copies(grown.network, growths, noise=noise, seed=seed)
    return grown


def wider_spec(
    spec: ModelSpec,
    *,
    width: float = 1.0,
    channels: tuple[int, ...] = (),
    stem_channels: int = 0,
    base_width: int = 0,
    cardinality: int = 0,
) -> ModelSpec:
    """Return a spec with more channels, written out in full; what is left at its default stays.

    Args:
        spec: Of the network to widen.
        width: Multiplies the channels of stem and stages as they are now; 1.0 leaves them.
        channels: Base channels of each stage, in place of `width`; the stem follows where it had as many as the first.
        stem_channels: Channels after the stem, in place of what follows from the others.
        base_width: As in `ModelSpec`.
        cardinality: As in `ModelSpec`.

    Raises:
        SpecError: No network has these channels.
    """
    stages = channels or tuple(round(now * width) for now in spec.stage_channels)
    stem = round(spec.stem_width * width)
    if channels and spec.stem_width == spec.stage_channels[0]:
        stem = stages[0]
    return replace(
        spec,
        channels=stages,
        width=1.0,
        stem_channels=stem_channels or stem,
        base_width=base_width or spec.base_width,
        cardinality=cardinality or spec.cardinality,
    )


def _other_fields(old: ModelSpec, new: ModelSpec) -> list[str]:
    """Return what differs beside the channels."""
    widths = ("channels", "width", "stem_channels", "base_width", "cardinality")
    aligned = replace(new, **{name: getattr(old, name) for name in widths}, depth=old.depth, depths=old.depths)
    before, after = old.to_json(), aligned.to_json()
    return [name for name in before if before[name] != after[name]] + (
        ["depths"] if old.stage_depths != new.stage_depths else []
    )


@torch.no_grad()
def _part_copies(network: ResNet, growths: Mapping[str, TensorGrowth], *, noise: float, seed: int) -> None:
    """Add noise to the weights that make a channel which another makes already."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        growth = growths.get(name)
        if growth is None or growth.makes is None or weight.dim() != 4:
            continue
        copies = growth.makes.is_copy.to(weight.device)
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        weight[copies] += noise * weight.std() * drawn[copies]
