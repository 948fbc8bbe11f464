"""Weight soups: one network whose weights are the mean of several that were fine-tuned from the same start.

Wortsman et al. 2022, arXiv:2203.05482. Costs no more to run than one network. The means of the ingredients' running
statistics are not the statistics of the mean network, so these are measured again on batches of training images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_models.errors import SpecError
from resnet_models.modes import modes_kept
from resnet_models.state_dict import WeightsError


@dataclass(frozen=True)
class Soup:
    """What `greedy_soup` cooked."""

    network: nn.Module
    """The mean of the kept ingredients, in eval mode."""
    ingredients: tuple[int, ...]
    """Indices of the kept networks, best first."""
    score: float
    """Score of `network` on the selection data; never below the best ingredient's."""
    single_scores: tuple[float, ...]
    """Scores of the ingredients alone, in the order given."""


def uniform_soup(networks: Sequence[nn.Module], batches: Iterable[Tensor] = ()) -> nn.Module:
    """Return a new network with the mean of all weights (arXiv:2203.05482, sec. 2, "uniform"), in eval mode.

    Args:
        networks: The ingredients, all of one spec; left as they are. A soup of one is its copy, bit by bit.
        batches: Training images (N, in_channels, H, W) as the network takes them, on its device, from which the
            running statistics are measured; may stay empty where no norm keeps any.

    Raises:
        SpecError: The ingredients' specs differ; names the first field.
        WeightsError: Their weights' names or shapes differ, or no batch is given though there are statistics.
        ValueError: No ingredients.
    """
    check_soup_ingredients(networks)
    soup = copy.deepcopy(networks[0]).eval()
    if len(networks) == 1:
        return soup
    soup.load_state_dict(_mean_state([network.state_dict() for network in networks]))
    remeasure_statistics(soup, batches)
    return soup


def greedy_soup(
    networks: Sequence[nn.Module], score: Callable[[nn.Module], float], batches: Iterable[Tensor] = ()
) -> Soup:
    """Add networks to the soup, best first, each kept only if the score does not fall (arXiv:2203.05482, alg. 1).

    Args:
        networks: The ingredients, all of one spec; left as they are, mode included.
        score: Network in eval mode -> its score on the selection data, higher is better. The final figure of a model
            must come from other data: these rows were chosen on.
        batches: As in `uniform_soup`; gone through once per trial.

    Raises:
        SpecError: As `uniform_soup`.
        WeightsError: As `uniform_soup`.
        ValueError: No ingredients, or a score that is no finite number.
    """
    check_soup_ingredients(networks)
    again = list(batches) if isinstance(batches, Iterator) else batches  # an iterator is empty the second time
    singles = [_finite_score(score(uniform_soup([one])), f"network {index}") for index, one in enumerate(networks)]
    order = sorted(range(len(networks)), key=lambda index: -singles[index])  # stable: ties keep the order given
    kept, soup, best = order[:1], uniform_soup([networks[order[0]]]), singles[order[0]]
    for index in order[1:]:
        trial = uniform_soup([networks[member] for member in (*kept, index)], again)
        reached = _finite_score(score(trial), f"the soup with network {index}")
        if reached >= best:
            kept, soup, best = [*kept, index], trial, reached
    return Soup(soup, tuple(kept), best, tuple(singles))


def remeasure_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every batch norm's running statistics to the mean over `batches`, each weighted by its images.

    Only the norms are put in training mode for it: no weight is dropped, no block skipped. Modes are put back.

    Raises:
        WeightsError: There are statistics to measure and no batch.
    """
    norms = [
        module for module in network.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with modes_kept(network), torch.no_grad():
        network.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
        try:
            for images in batches:
                seen += len(images)
                for norm in norms:
                    norm.momentum = len(images) / seen  # a running mean, weighted by images
                network(images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise WeightsError("batches is empty: the norms' running statistics must be measured on training images")


def check_soup_ingredients(networks: Sequence[nn.Module]) -> None:
    """Refuse networks whose weights cannot be averaged.

    Raises:
        SpecError: Two specs differ; names the first field.
        WeightsError: Names or shapes of weights differ.
        ValueError: No networks.
    """
    if not networks:
        raise ValueError("a soup has no ingredients: give one network or more")
    first, state = getattr(networks[0], "spec", None), networks[0].state_dict()
    for index, network in enumerate(networks[1:], start=1):
        spec = getattr(network, "spec", None)
        for field in fields(first) if first is not None and spec is not None else ():
            expected, value = getattr(first, field.name), getattr(spec, field.name)
            if value != expected:
                shown = list(expected) if isinstance(expected, tuple) else expected
                raise SpecError(
                    field.name,
                    value,
                    f"network {index} differs from network 0, which has {shown!r}",
                    "weights can be averaged within one spec only; average the logits with Ensemble instead",
                )
        other = network.state_dict()
        for name in [*state, *other]:
            if name not in state or name not in other or state[name].shape != other[name].shape:
                raise WeightsError(f"{name} of network {index} does not fit network 0: a soup needs equal networks")


def _mean_state(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each tensor, summed in float64 so that equal networks give their own bits; counters stay."""
    mean = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            total = torch.stack([state[name].to(first.device, torch.float64) for state in states]).mean(dim=0)
            mean[name] = total.to(first.dtype)
        else:
            mean[name] = first
    return mean


def _finite_score(value: float, whose: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"the score of {whose} is {value}: a soup cannot be chosen by it")
    return float(value)
