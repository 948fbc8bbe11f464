"""Ghost batch norms in training: cut where the ghosts of the batch meet, their running statistics merged once a step.

Merged over all workers, in one message for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipelines.train.collectives import World
from resnet_models.norm import GhostBatchNorm, sum_slices


class GhostStatistics:
    """What the ghost norms of a network have seen in the running step, and have not taken in yet.

    Slices are added in a fixed order, rank by rank in turn, so that the same slices give the same bits however they are
    spread; a step counts once, whatever pieces a worker computes its share in.

    Args:
        network: in training; its ghost norms defer from now on.
        world: the processes that share the batch.
    """

    def __init__(self, network: nn.Module, world: World) -> None:
        self._norms = [module for module in network.modules() if isinstance(module, GhostBatchNorm)]
        self._world = world
        for norm in self._norms:
            norm.defers = True

    @property
    def are_there(self) -> bool:
        """Whether the network has ghost norms in training."""
        return any(norm.training for norm in self._norms)

    @contextmanager
    def cut(self, ghost_rows: tuple[int, ...]) -> Iterator[None]:
        """Let the norms cut the pass within into ghosts of so many rows; backward is within too, as it may recompute.

        A short batch deals its ghosts unequal rows, some perhaps none, so that how many rows a worker holds does not
        say where they meet.
        """
        for norm in self._norms:
            norm.cuts = ghost_rows
        try:
            yield
        finally:
            for norm in self._norms:
                norm.cuts = ()

    def forget(self) -> None:
        """Drop what was seen since the last step: a pass that failed is done again."""
        for norm in self._norms:
            norm.seen = None

    @torch.no_grad()
    def settle(self) -> None:
        """Move the running statistics by what all workers have seen; all workers call it."""
        norms = [norm for norm in self._norms if norm.training]  # frozen stages are in eval mode, on every worker
        if not norms:
            return
        total = sum_slices(self._of_all_workers(_stack([_seen(norm) for norm in norms])))
        parts = torch.split_with_sizes(total, [norm.num_features for norm in norms], dim=1)
        for norm, part in zip(norms, parts, strict=True):
            norm.take_in(part)
        self.forget()

    def _of_all_workers(self, figures: Tensor) -> Tensor:
        """Return (slices, 3, channels) of every worker: the first slice of each rank, the second of each, and so on."""
        if self._world.size == 1:
            return figures
        most = int(self._world.gather(torch.tensor([len(figures)], device=figures.device)).max())
        return self._world.gather(_padded(figures, most)).transpose(0, 1).flatten(0, 1)


def _seen(norm: GhostBatchNorm) -> Tensor:
    """Return (slices, 3, channels) of a norm; no slices where this worker had no rows."""
    return norm.weight.new_zeros(0, 3, norm.num_features) if norm.seen is None else norm.seen


def _stack(figures: list[Tensor]) -> Tensor:
    """Return (slices, 3, channels of all norms)."""
    most = max(len(seen) for seen in figures)
    return torch.cat([_padded(seen, most) for seen in figures], dim=2)


def _padded(figures: Tensor, slices: int) -> Tensor:
    """Return figures with as many slices as wanted; those added hold no images, and weigh nothing."""
    return torch.cat([figures, figures.new_zeros(slices - len(figures), *figures.shape[1:])])
