"""An optimiser's state as named tensors, and what becomes of it when the network grows.

Names are `<parameter>/<slot>`, for example `head.weight/exp_avg`. Rules:

- a parameter that stays keeps its state;
- a parameter that is new starts as the optimiser starts one: zeros, its step count included;
- a parameter that is widened keeps what its running means of gradients (SGD's and Adam's momentum) and of squared
  gradients (Adam's second moment) would be, had the wide network been trained all along: a channel held c times shares
  its gradient among c, so 1 / c of the mean and 1 / c^2 of the square; step counts stay. SGD's momentum also holds
  weight decay, which is taken for gradient here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from resnet_models.growth.channels import TensorGrowth

_GRADIENT_POWERS = {
    "momentum_buffer": 1,
    "exp_avg": 1,
    "grad_avg": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "sum": 2,
}
"""Slot of torch's SGD, Adam and AdamW, RMSprop, Adagrad -> which power of the gradient it holds a mean or sum of."""


def read_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors by `<parameter>/<slot>`."""
    return {
        f"{name}/{slot}": value.detach().clone()
        for name, parameter in network.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put state by name into an optimiser over the parameters of `network`.

    Raises:
        ValueError: A tensor fits no parameter; the first is named.
    """
    parameters = dict(network.named_parameters())
    for key, value in state.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() and value.shape != parameter.shape):
            raise ValueError(
                f"the optimiser state {key} of shape {list(value.shape)} fits no parameter of this network"
            )
        # In the parameter's own memory layout: fused optimisers walk both as plain memory.
        kept = torch.empty_like(parameter).detach().copy_(value) if value.dim() else value.detach().clone()
        optimizer.state[parameter][slot] = kept


def carry_optimizer_state(
    state: Mapping[str, Tensor] | None,
    network: nn.Module,
    *,
    sources: Mapping[str, str],
    growths: Mapping[str, TensorGrowth] | None = None,
) -> dict[str, Tensor]:
    """Return the state of a grown network from that of the old one, by the rules of this module.

    Args:
        state: Of the old network; None or empty gives an empty one.
        network: The grown one.
        sources: Its parameter -> the old network's; those that are new are absent.
        growths: Its parameter -> how it grew; absent ones stayed.

    Raises:
        ValueError: A slot that a widened parameter has is none that the rules know.
    """
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in (state or {}).items():
        name, _, slot = key.rpartition("/")
        slots.setdefault(name, {})[slot] = value
    carried: dict[str, Tensor] = {}
    started = next(iter(slots.values()), {})
    for name, parameter in network.named_parameters():
        if name not in sources and parameter.requires_grad:
            for slot, value in started.items():
                carried[f"{name}/{slot}"] = torch.zeros_like(parameter if value.dim() else value).detach()
        growth = (growths or {}).get(name)
        for slot, value in slots.get(sources.get(name, ""), {}).items():
            carried[f"{name}/{slot}"] = _carried(f"{name}/{slot}", slot, value, growth)
    return carried


def _carried(key: str, slot: str, value: Tensor, growth: TensorGrowth | None) -> Tensor:
    if growth is None or not value.dim():
        return value.clone()
    if slot not in _GRADIENT_POWERS:
        raise ValueError(
            f"the optimiser state {key} cannot be widened: {slot} has no rule; those with one are "
            + ", ".join(_GRADIENT_POWERS)
        )
    return growth.gradient(value, power=_GRADIENT_POWERS[slot])
