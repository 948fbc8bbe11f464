"""An epoch's order as one array, for splits whose pixels are in memory: a batch is then a few slices of it.

`EpochOrder` finds a batch lane by lane, and needs no more than the windows that it reads from; a row of the table
takes 8 bytes, so it is for rows that take far more anyhow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.dataset.order import EpochOrder, Positions


class LaneOrder:
    """The rows of some lanes, put together in the order of lanes.

    Args:
        order: the epoch.
        lanes: the lanes of one worker.
    """

    def __init__(self, order: EpochOrder, lanes: Sequence[int]) -> None:
        self._order, self._lanes = order, lanes

    def batch(self, t: int) -> Positions:
        """Return the row positions that the lanes give to batch t."""
        return self._joined(self._order.batch(t))

    def partners(self, t: int) -> Positions:
        """Return the mixing partner of each of them."""
        return self._joined(self._order.partners(t))

    def places(self, t: int) -> Positions:
        """Return the place of each of them in the epoch."""
        return self._joined(self._order.places(t))

    def _joined(self, per_lane: Sequence[Positions]) -> Positions:
        return np.concatenate([per_lane[lane] for lane in self._lanes])


class OrderTable(LaneOrder):
    """The same from a table of all rows of the lanes, made once an epoch."""

    def __init__(self, order: EpochOrder, lanes: Sequence[int]) -> None:
        super().__init__(order, lanes)
        self._chosen = np.asarray(lanes, dtype=np.int64)
        rows = [order.lane(lane) for lane in lanes]
        self._sizes = np.array([len(part) for part in rows], dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._rows = np.concatenate(rows)

    def batch(self, t: int) -> Positions:
        """Return the row positions that the lanes give to batch t."""
        before, counts = self._span(t)
        return self._rows[_ranges(self._starts + before, counts)]

    def partners(self, t: int) -> Positions:
        """Return the mixing partner of each of them."""
        before, counts = self._span(t)
        index = _ranges(before, counts)
        second = np.repeat(np.minimum(1, self._sizes - 1), counts)  # of a lane of one row that row itself
        return np.asarray(self._rows[np.repeat(self._starts, counts) + np.where(index > 0, index - 1, second)])

    def places(self, t: int) -> Positions:
        """Return the place of each of them in the epoch."""
        before, after = self._order.given_before(t), self._order.given_before(t + 1)
        counts = after - before
        firsts = t * self._order.global_batch + np.cumsum(counts) - counts
        return _ranges(firsts[self._chosen], counts[self._chosen])

    def _span(self, t: int) -> tuple[Positions, Positions]:
        """Return how many rows each lane has given before batch t, and how many it gives."""
        before = self._order.given_before(t)[self._chosen]
        return before, self._order.given_before(t + 1)[self._chosen] - before


def _ranges(starts: Positions, counts: Positions) -> Positions:
    """Return start, start + 1, ... for each start, as many as its count, one after the other."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1])
