"""From the config to a torch optimiser, and its state as named tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import DataError
from pipelines.train.config import OptimizerConfig

_SCALE = "rate_scale"
"""Key of a parameter group: its rate as a fraction of the run's."""


def make_optimizer(
    network: nn.Module,
    config: OptimizerConfig,
    scales: Mapping[str, float] | None = None,
    *,
    skips_steps: bool = False,
) -> torch.optim.Optimizer:
    """Return the optimiser over the network's parameters that are trained, at the peak rate.

    Norm scales and biases, the parameters of one dimension, are not decayed (arXiv:1812.01187, sec. 3.1), unless
    `norm_bias_factor` gives the norms' biases a rate of their own.

    Args:
        network: the network; parameters that take no gradient are left out.
        config: the rule and its numbers.
        scales: each parameter's learning rate as a fraction of the run's; None: 1 for all.
        skips_steps: a scaler leaves out steps whose gradient is no number, as the first of a run in fp16 often are.
    """
    usual: dict[tuple[float, float], list[Tensor]] = {}
    hurried: dict[tuple[float, float], list[Tensor]] = {}
    factor = config.norm_bias_factor
    biases = _norm_biases(network) if factor != 1 else frozenset()
    for name, parameter in _trained(network):
        scale = scales[name] if scales else 1.0
        if name in biases:
            # SGD adds the decay to the gradient, before the rate: divided by it, a step decays weights and these alike.
            decay = config.weight_decay / factor
            hurried.setdefault((scale * factor, decay), []).append(parameter)
        else:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            usual.setdefault((scale, decay), []).append(parameter)
    groups = [  # the full rate first: it is the run's `lr`
        {"params": found[key], "weight_decay": key[1], _SCALE: key[0], "lr": config.lr * key[0]}
        for found in (usual, hurried)
        for key in sorted(found, reverse=True)
    ]
    if config.name == "adamw":
        return _EagerAdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2), fused=True)
    # Fused, a step that is left out would still begin a momentum, in memory that nobody has written to.
    fused = None if skips_steps else True
    return _EagerSGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)


class _Eager(torch.optim.Optimizer):
    """Calls what torch has wrapped for its compiler without the wrappers.

    Their first call imports `torch._dynamo` with sympy, 2 s of every start, to tell a compiler that they stay out of
    its graphs; ours stand outside of what `compile` compiles. Where torch wraps nothing, nothing is unwrapped.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _unwrapped(super().add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        _unwrapped(super().zero_grad)(self, set_to_none)

    @torch.no_grad()  # the wrapper's other purpose
    def step(self, closure: Any = None) -> Any:
        return _unwrapped(super().step)(self, closure)


class _EagerSGD(_Eager, torch.optim.SGD):
    pass


class _EagerAdamW(_Eager, torch.optim.AdamW):
    pass


def _unwrapped(method: Any) -> Callable[..., Any]:
    """Return the function that a bound method's decorators surround."""
    function: Callable[..., Any] = inspect.unwrap(method.__func__)
    return function


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter: `lr` times the scale of its group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_SCALE]


def state_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as `<parameter>/<slot>`, for example `fc.weight/momentum_buffer`."""
    return {
        f"{name}/{slot}": value.detach()
        for name, parameter in _trained(network)
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_state_tensors(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` gave, and nothing else: at its start a run has no momentum.

    Raises:
        DataError: a tensor belongs to no parameter of this network; the first is named.
    """
    optimizer.state.clear()
    parameters = dict(_trained(network))
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (tensor.ndim and tensor.shape != parameter.shape):
            raise DataError(
                f"the checkpoint's optimiser state {key} of shape {tuple(tensor.shape)} fits no parameter here",
                mend="the checkpoint is of another network: choose another --out",
            )
        if tensor.ndim:
            # In the parameter's own memory layout: fused kernels walk both as plain memory.
            optimizer.state[parameter][slot] = torch.empty_like(parameter).detach().copy_(tensor)
        else:  # AdamW's step counter, which its fused kernel wants where the parameter is
            optimizer.state[parameter][slot] = tensor.to(parameter.device).clone()


def _norm_biases(network: nn.Module) -> frozenset[str]:
    """Return the names of the biases of all norms: the modules whose weight is one number a channel."""
    norms = [
        name for name, module in network.named_modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 1
    ]
    return frozenset(f"{name}.bias" for name in norms)


def _trained(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad)
