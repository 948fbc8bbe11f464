"""What a grown network takes over from the one it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from resnet_models.checkpointing import checkpoint_activations, is_checkpointed
from resnet_models.errors import SpecError
from resnet_models.growth.channels import TensorGrowth
from resnet_models.growth.optimizer import carry_optimizer_state
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec


class Grown(NamedTuple):
    """A network made from another, and the optimiser state that goes with it."""

    network: ResNet
    optimizer_state: dict[str, Tensor]
    """Tensors by `<parameter>/<slot>`, for `growth.optimizer.load_optimizer_state`; empty where none was given."""


def carry_over(
    old: ResNet,
    new: ResNet,
    *,
    source_of: Callable[[str], str | None] = lambda name: name,
    growths: Mapping[str, TensorGrowth] | None = None,
    optimizer_state: Mapping[str, Tensor] | None = None,
) -> Grown:
    """Give `new` the tensors of `old`, grown where they grow, its device and type, each part's mode, what is frozen.

    Args:
        old: Stays as it is.
        new: Changed in place.
        source_of: Name of a tensor of `new`, or a module's name and a dot -> its name in `old`; None where it is new.
        growths: Name of a tensor of `new` -> how it grows; absent ones stay.
        optimizer_state: Of `old`.
    """
    state, like = old.state_dict(), next(old.parameters())
    new.to(device=like.device, dtype=like.dtype).train(old.training)
    taken: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for name, own in new.state_dict().items():
        source = source_of(name)
        if source is None:
            taken[name] = own
            continue
        sources[name] = source
        growth = (growths or {}).get(name)
        taken[name] = state[source] if growth is None else growth.weight(state[source])
    new.load_state_dict(taken)
    trained = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if name in sources:
            parameter.requires_grad_(trained[sources[name]].requires_grad)
    modes = {f"{name}.": module.training for name, module in old.named_modules()}
    for name, module in new.named_modules():
        module.training = modes.get(source_of(f"{name}.") or "", module.training)
    checkpoint_activations(new, is_checkpointed(old))
    return Grown(new, carry_optimizer_state(optimizer_state, new, sources=sources, growths=growths))


def checked_depth(spec: ModelSpec, stage: int) -> int:
    """Return the blocks of a stage.

    Raises:
        SpecError: There is no such stage.
    """
    if not 0 <= stage < spec.num_stages:
        last = spec.num_stages - 1
        raise SpecError("stage", stage, f"the network has stages 0 to {last}", f"use a number from 0 to {last}")
    return spec.stage_depths[stage]
