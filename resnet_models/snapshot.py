"""Snapshot ensembles: one training run whose cyclic learning rate ends in several minima, kept as they are passed.

Huang et al. 2017, arXiv:1704.00109. Use `snapshot_lr_factor` as the schedule, hand the network to a
`SnapshotCollector` after every step, and average the snapshots' logits with `Ensemble`.
"""

from __future__ import annotations

import copy
import math

from torch import Tensor, nn

from resnet_models.ensemble import Ensemble


def snapshot_lr_factor(step: int, *, total_steps: int, cycles: int) -> float:
    """Return what to multiply the peak learning rate by at `step` (from 0): 1 at each cycle's start, then a cosine.

    Equation 2 of arXiv:1704.00109 where `cycles` divides `total_steps`. Elsewhere cycles differ by one step, so that
    there are always `cycles` of them and each one anneals to its end; the paper's rounding may drop or cut the last.

    Raises:
        ValueError: No step, a step outside the run, or more cycles than steps.
    """
    _check_cycles(total_steps, cycles)
    if not 0 <= step < total_steps:
        raise ValueError(f"step is {step}: the run has steps 0 to {total_steps - 1}")
    cycle = ((step + 1) * cycles - 1) // total_steps  # the one cycle whose bounds enclose the step
    start, end = cycle * total_steps // cycles, (cycle + 1) * total_steps // cycles
    return 0.5 * (1.0 + math.cos(math.pi * (step - start) / (end - start)))


class SnapshotCollector:
    """Keeps copies of a network's weights at the ends of the learning rate's cycles.

    `snapshots` is a plain list of state dicts on the CPU, oldest first: a trainer's checkpoint may hold it, and a
    resumed run sets it back.

    Raises:
        ValueError: More cycles than steps, or none.
    """

    def __init__(self, *, total_steps: int, cycles: int) -> None:
        _check_cycles(total_steps, cycles)
        self.total_steps = total_steps
        self.cycles = cycles
        self.snapshots: list[dict[str, Tensor]] = []

    def after_step(self, step: int, network: nn.Module) -> bool:
        """Keep the weights if `step` (from 0, just taken) ended a cycle; return whether it did."""
        ends = {cycle * self.total_steps // self.cycles for cycle in range(1, self.cycles + 1)}
        if step + 1 not in ends:
            return False
        # clone: on the CPU `.cpu()` alone would be the live weights, which training goes on to change
        self.snapshots.append({name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()})
        return True

    def ensemble(self, network: nn.Module, *, last: int = 0) -> Ensemble:
        """Return the mean of the `last` snapshots (0: all; later ones are better), as copies of `network`.

        Raises:
            ValueError: No snapshot was kept yet, or fewer than `last`.
        """
        if not 0 <= last <= len(self.snapshots) or not self.snapshots:
            raise ValueError(f"last is {last}: {len(self.snapshots)} snapshots were kept so far")
        members = []
        for snapshot in self.snapshots[-last:] if last else self.snapshots:
            member = copy.deepcopy(network)
            member.load_state_dict(snapshot)
            members.append(member)
        return Ensemble(members)


def _check_cycles(total_steps: int, cycles: int) -> None:
    if not 1 <= cycles <= total_steps:
        raise ValueError(f"cycles is {cycles}: a run of {total_steps} steps has 1 to {total_steps}")
