"""An exponential moving average of the weights, norm statistics included; short runs end much better on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages every floating tensor of a network's state after each step.

    Args:
        network: the network in training; its present state starts the average.
        decay: weight of the past per step, in the long run.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the network's state after step `step` (counted from 1).

        The decay grows as (1 + step) / (10 + step) up to its value, so that the first, random weights are soon gone.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        state = network.state_dict()
        averaged = [name for name, value in self.tensors.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.tensors[n] for n in averaged], [state[n].detach() for n in averaged], 1.0 - decay)
        for name, value in self.tensors.items():
            if not value.is_floating_point():  # counters of batches seen
                value.copy_(state[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back an average saved earlier."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
