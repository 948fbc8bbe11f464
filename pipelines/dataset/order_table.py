"""The part of an epoch's order that one worker reads, some batches at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipelines.dataset.order import EpochOrder, Positions


class LaneOrder:
    """The rows of some lanes, put together in the order of lanes, batch after batch.

    Args:
        order: the epoch.
        lanes: the lanes of one worker.
    """

    def __init__(self, order: EpochOrder, lanes: Sequence[int]) -> None:
        self._order = order
        self.lanes: Positions = np.asarray(lanes, dtype=np.int64)
        """Numbers of the lanes, (lanes,)."""

    def rows(self, first: int, last: int) -> Positions:
        """Return the row positions that the lanes give to batches `first` to `last` - 1."""
        return self._joined(self._order.batch, first, last)

    def partners(self, first: int, last: int) -> Positions:
        """Return the mixing partner of each of them."""
        return self._joined(self._order.partners, first, last)

    def places(self, first: int, last: int) -> Positions:
        """Return the place of each of them in the epoch."""
        return self._joined(self._order.places, first, last)

    def ends(self, first: int, last: int) -> list[int]:
        """Return how many of them there are up to the end of each of these batches."""
        given = [self._order.given_before(t)[self.lanes].sum() for t in range(first, last + 1)]
        return [int(value - given[0]) for value in given[1:]]

    def _joined(self, give: Callable[[int], list[Positions]], first: int, last: int) -> Positions:
        batches = [give(t) for t in range(first, last)]
        return np.concatenate([per_lane[lane] for per_lane in batches for lane in self.lanes])


class OrderTable(LaneOrder):
    """The same from arrays of all rows of the lanes, made once an epoch, of which batches are slices.

    `EpochOrder` finds a batch lane by lane, and needs no more than the windows that it reads from; a row of the table
    takes 16 bytes, and 8 more with partners, so it is for rows whose pixels are in memory anyhow.
    """

    def __init__(self, order: EpochOrder, lanes: Sequence[int]) -> None:
        super().__init__(order, lanes)
        per_lane = [order.lane(lane) for lane in lanes]
        self._sizes = np.array([len(part) for part in per_lane], dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._by_lane = np.concatenate(per_lane)
        # (batches + 1, lanes): what each lane has given before each batch, of all lanes and of ours
        given = np.stack([order.given_before(t) for t in range(order.num_batches + 1)])
        counts = np.diff(given, axis=0)
        before = np.cumsum(counts, axis=1) - counts + order.global_batch * np.arange(order.num_batches)[:, None]
        self._before, self._counts = given[:-1, self.lanes], counts[:, self.lanes]
        self._ends = np.concatenate([[0], np.cumsum(self._counts.sum(axis=1))])
        self._rows = self._by_lane[_ranges(self._starts + self._before, self._counts)]
        self._places = _ranges(before[:, self.lanes], self._counts)
        self._partners: Positions | None = None

    def rows(self, first: int, last: int) -> Positions:
        """Return the row positions that the lanes give to batches `first` to `last` - 1."""
        return self._rows[self._ends[first] : self._ends[last]]

    def partners(self, first: int, last: int) -> Positions:
        """Return the mixing partner of each of them."""
        if self._partners is None:
            index = _ranges(self._before, self._counts)
            lane = np.repeat(np.tile(np.arange(len(self.lanes)), len(self._counts)), self._counts.ravel())
            second = np.minimum(1, self._sizes - 1)[lane]  # of a lane of one row that row itself
            self._partners = self._by_lane[self._starts[lane] + np.where(index > 0, index - 1, second)]
        return self._partners[self._ends[first] : self._ends[last]]

    def places(self, first: int, last: int) -> Positions:
        """Return the place of each of them in the epoch."""
        return self._places[self._ends[first] : self._ends[last]]

    def ends(self, first: int, last: int) -> list[int]:
        """Return how many of them there are up to the end of each of these batches."""
        ends: list[int] = (self._ends[first + 1 : last + 1] - self._ends[first]).tolist()
        return ends


def _ranges(starts: Positions, counts: Positions) -> Positions:
    """Return start, start + 1, ... for each start, as many as its count, one after the other."""
    starts, counts = starts.ravel(), counts.ravel()
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1])
