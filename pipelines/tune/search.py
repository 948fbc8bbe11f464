"""Which trials go on: asynchronous successive halving, as a pure rule on the figures recorded so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Asha:
    """Stops trials that fall behind at their rung (Li et al. 2018, arXiv:1810.05934, algorithm 2, without promotion).

    Trials are compared after `grace_epochs`, then after `reduction_factor` times as many, and so on below
    `max_epochs`. A trial goes on if its figure is among the best 1 / `reduction_factor` of those recorded at the rung
    so far, itself included, and never fewer than one; so the first to arrive always goes on, nobody waits for anybody,
    and a tie goes on. The whole state is `{rung: {trial: figure}}`, which the trials' own records give back after a
    crash: Ray's own scheduler keeps it in a pickle.
    """

    def __init__(self, *, grace_epochs: int, reduction_factor: int, max_epochs: int) -> None:
        self.reduction_factor = reduction_factor
        self.rungs: dict[int, dict[str, float]] = {}
        rung = grace_epochs
        while rung < max_epochs:
            self.rungs[rung] = {}
            rung *= reduction_factor

    def should_stop(self, trial: str, epoch: int, figure: float) -> bool:
        """Record a trial's figure after an epoch, higher being better; return whether the trial ends here."""
        recorded = self.rungs.get(epoch)
        if recorded is None or trial in recorded:  # decided before; a resumed trial may report an epoch again
            return False
        recorded[trial] = figure
        better = sum(other > figure for other in recorded.values())
        return better >= max(1, len(recorded) // self.reduction_factor)

    def replay(self, curves: Mapping[str, Iterable[tuple[int, float]]]) -> None:
        """Record what trials reported before a crash: their (epoch, figure) pairs."""
        for trial, curve in curves.items():
            for epoch, figure in curve:
                if epoch in self.rungs:
                    self.rungs[epoch][trial] = figure
