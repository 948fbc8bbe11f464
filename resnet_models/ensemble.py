"""Several networks as one: the average of their logits, in an object that behaves like a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec


class Ensemble(nn.Module):
    """The weighted mean of several networks' logits: mode, device, state dict and call are those of one network.

    Hansen & Salamon 1990; He et al. 2015, arXiv:1512.03385, table 5. Members may differ in depth and width, not in
    what goes in and comes out. State dict names are `members.0.stem...`, `members.1.stem...` and `weights`.
    Shape: (N, in_channels, H, W) -> logits (N, num_classes).

    Args:
        networks: The members, kept as they are (not copied).
        weights: One positive number per member, scaled here to sum to 1; None weighs all alike.

    Raises:
        SpecError: Members that differ in their classes or input channels.
        ValueError: No members, or weights that are not positive or of another number.
    """

    weights: Tensor

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble has no members: give one network or more")
        _check_members_agree(networks)
        self.members = nn.ModuleList(networks)
        self.register_buffer("weights", torch.tensor(_scaled_weights(weights, len(networks))))

    @property
    def specs(self) -> tuple[ModelSpec, ...]:
        """The members' specs, in order."""
        return tuple(cast(ModelSpec, member.spec) for member in self.members)

    @property
    def spec(self) -> ModelSpec:
        """The first member's spec; its `in_channels` and `num_classes` are those of all."""
        return self.specs[0]

    def member_logits(self, x: Tensor, *, sample_keys: Tensor | None = None) -> list[Tensor]:
        """Return every member's logits (N, num_classes), in order: where they disagree the ensemble is unsure."""
        if sample_keys is None:  # not passed on, so that modules of others can be members
            return [member(x) for member in self.members]
        return [member(x, sample_keys=sample_keys) for member in self.members]

    def features(self, x: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
        """Return all members' features side by side: (N, in_channels, H, W) -> (N, sum of channels)."""
        keyed = {} if sample_keys is None else {"sample_keys": sample_keys}
        return torch.cat([member.features(x, **keyed) for member in self.members], dim=1)  # type: ignore[operator]

    def forward(self, x: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
        """Return the mean logits (N, num_classes); `sample_keys` (N,) go to every member, see `ResNet.forward`."""
        logits = self.member_logits(x, sample_keys=sample_keys)
        mean = logits[0] * self.weights[0]
        for index, one in enumerate(logits[1:], start=1):
            mean = mean + one * self.weights[index]
        return mean


def _check_members_agree(networks: Sequence[nn.Module]) -> None:
    first = getattr(networks[0], "spec", None)
    for index, network in enumerate(networks):
        spec = getattr(network, "spec", None)
        if (spec is None) != (first is None):
            raise ValueError(f"member {index} is a {type(network).__name__}; members must all have a spec, or none")
        for name in ("num_classes", "in_channels"):
            value, expected = getattr(spec, name, None), getattr(first, name, None)
            if value != expected:
                raise SpecError(
                    name,
                    value,
                    f"member {index} differs from member 0, which has {expected}",
                    "give members of one task",
                )


def _scaled_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} members: give one per member")
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"a weight is {weight}: it must be above 0; leave the member out to give it no say")
    total = math.fsum(weights)
    return [weight / total for weight in weights]
