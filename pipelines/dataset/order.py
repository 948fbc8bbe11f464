"""The order in which training reads rows: one pure function of (live rows, seed, epoch, global batch size).

The number of workers is not among its arguments, so any number of them, and any that resumes, walk the same batches.

An epoch goes like this. The live row groups are permuted, and the resulting sequence of n rows is cut into L lanes,
lane i getting floor((n + i) / L) rows. Within a lane, rows are permuted inside disjoint windows of consecutive row
groups; a window is the most a lane keeps in memory. With B the global batch size, after t batches lane i has given
floor((min(t * B, n) + i) / L) rows, which sums to min(t * B, n) over the lanes: every batch has exactly B rows but
the last, which has the rest. A worker owns whole lanes, so it reads ahead on its own and never asks another.

Without ghost batches L = min(64, B). With ghost batches (batch norm over fixed small groups of rows, so that its
statistics do not depend on the number of workers) there are G = B / ghost_size groups with max(1, floor(64 / G))
lanes each; lane i belongs to group i mod G, and every group has exactly ghost_size rows in every full batch.

Lanes without rows: in the short last batch, or where an epoch has fewer rows than lanes, a lane may give no rows. A
worker all of whose lanes give none still takes part in the step, forward and backward over no rows: it adds zeros to
the summed gradient, loss and row count (the step divides by the sum of row counts, not by the number of workers), and
enters synchronised batch norm with weight 0, so that all workers keep the same running statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.dataset.keyed import keyed_hash
from pipelines.errors import ConfigError

Positions: TypeAlias = npt.NDArray[np.int64]
"""Row positions: 0 to n - 1 in the order of `Dataset.table(split)`."""

MAX_LANES = 64
WINDOW_GROUPS = 512
"""Row groups that the windows of all lanes hold together, about 1 GB at 2 MB a group."""

_GROUPS, _ROWS = 1, 2  # streams of the keyed hash: the order of row groups, the order inside a window


class EpochOrder:
    """The batches of one epoch, each found without walking those before it.

    Args:
        group_sizes: live rows of each row group, in the numbering of `Dataset.row_groups`.
        seed: the run's seed.
        epoch: number of the epoch.
        global_batch: rows of a batch over all workers.
        ghost_size: rows of a ghost batch; 0 for none. It must divide `global_batch`.

    Raises:
        ConfigError: there are no rows, or the batch sizes are impossible.
    """

    def __init__(
        self, group_sizes: Sequence[int], *, seed: int, epoch: int, global_batch: int, ghost_size: int = 0
    ) -> None:
        sizes = np.asarray(group_sizes, dtype=np.int64)
        if not sizes.sum():
            raise ConfigError("there are no rows to train on", mend="choose a split with rows")
        if global_batch < 1:
            raise ConfigError(f"global_batch_size is {global_batch}; it must be at least 1")
        self.num_lanes, self.num_ghosts = make_lanes(global_batch, ghost_size)
        self.num_rows = int(sizes.sum())
        self.global_batch = global_batch
        self.num_batches = -(-self.num_rows // global_batch)
        self._key = (seed, epoch)
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        order = np.argsort(keyed_hash(*self._key, _GROUPS, np.arange(len(sizes))), kind="stable")
        self._starts = starts[order]  # row position of each group's first row, in the epoch's order of groups
        self._ends = np.cumsum(sizes[order])  # rows up to the end of each group, in that order
        self._lane_ends = np.cumsum(self._given(self.num_rows))
        self._window_groups = max(2, WINDOW_GROUPS // self.num_lanes)
        self._window = lru_cache(maxsize=2 * self.num_lanes)(self._make_window)

    def batch(self, t: int) -> list[Positions]:
        """Return batch t as the row positions that each lane gives, in order; a lane may give none.

        Raises:
            IndexError: t is not in 0 to num_batches - 1.
        """
        return [self._lane_rows(lane, start, end) for lane, (start, end) in enumerate(self._spans(t))]

    def partners(self, t: int) -> list[Positions]:
        """Return the mixing partner of every row of batch t: the row before it in its lane.

        The first row of a lane takes the second, or itself where the lane has no second.
        """
        found = []
        for lane, (start, end) in enumerate(self._spans(t)):
            if start == end or start > 0:
                found.append(self._lane_rows(lane, max(start - 1, 0), max(end - 1, 0)))
                continue
            second = min(1, self._lane_size(lane) - 1)
            found.append(np.concatenate([self._lane_rows(lane, second, second + 1), self._lane_rows(lane, 0, end - 1)]))
        return found

    def places(self, t: int) -> list[Positions]:
        """Return the place in the epoch of every row of batch t: t * B plus its index in the lanes put together.

        The id trace is taken over these, so it does not depend on which worker owned the lane.
        """
        found = []
        place = t * self.global_batch
        for start, end in self._spans(t):
            found.append(np.arange(place, place + end - start))
            place += end - start
        return found

    def batch_rows(self, t: int) -> int:
        """Return the number of rows of batch t over all lanes."""
        self._check(t)
        return min(self.global_batch, self.num_rows - t * self.global_batch)

    def lane(self, lane: int) -> Positions:
        """Return all row positions of a lane in the order they are given."""
        return self._lane_rows(lane, 0, self._lane_size(lane))

    def lanes_of(self, rank: int, world_size: int) -> list[int]:
        """Return the lanes that a worker owns; see the function `lanes_of`."""
        return lanes_of(rank, world_size, self.num_lanes, self.num_ghosts)

    def ghost_of(self, lane: int) -> int:
        """Return the ghost group of a lane; 0 where there are no ghost batches."""
        return lane % self.num_ghosts if self.num_ghosts else 0

    def given_before(self, t: int) -> Positions:
        """Return how many rows each lane has given before batch t, (lanes,); `num_batches` stands for the end."""
        return self._given(min(t * self.global_batch, self.num_rows))

    def _given(self, rows: int) -> Positions:
        """Return how many rows each lane has given once `rows` rows were given in all."""
        return (rows + np.arange(self.num_lanes)) // self.num_lanes

    def _spans(self, t: int) -> list[tuple[int, int]]:
        self._check(t)
        return list(zip(self.given_before(t).tolist(), self.given_before(t + 1).tolist(), strict=True))

    def _check(self, t: int) -> None:
        if not 0 <= t < self.num_batches:
            raise IndexError(f"batch {t} is not in 0 to {self.num_batches - 1}")

    def _lane_size(self, lane: int) -> int:
        return (self.num_rows + lane) // self.num_lanes

    def _lane_rows(self, lane: int, start: int, end: int) -> Positions:
        """Return rows start to end of a lane, from the windows they fall into."""
        if start >= end:
            return np.empty(0, dtype=np.int64)
        offset = int(self._lane_ends[lane]) - self._lane_size(lane)
        first_group, last_group = self._lane_groups(lane)
        parts = []
        at = start
        while at < end:
            group = int(np.searchsorted(self._ends, offset + at, side="right"))
            window = (group - first_group) // self._window_groups
            rows, window_start = self._window(lane, window, first_group, last_group)
            parts.append(rows[at - window_start : end - window_start])
            at = window_start + len(rows)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _lane_groups(self, lane: int) -> tuple[int, int]:
        """Return the first and the last row group, in the epoch's order, that a lane has rows of."""
        end = int(self._lane_ends[lane])
        bounds = [end - self._lane_size(lane), end - 1]
        first, last = np.searchsorted(self._ends, bounds, side="right")
        return int(first), int(last)

    def _make_window(self, lane: int, window: int, first_group: int, last_group: int) -> tuple[Positions, int]:
        """Return the permuted rows of a window of a lane, and its first row's offset in the lane."""
        lane_end = int(self._lane_ends[lane])
        lane_start = lane_end - self._lane_size(lane)
        first = first_group + window * self._window_groups
        last = min(first + self._window_groups - 1, last_group)
        begin = lane_start
        pieces = []
        for group in range(first, last + 1):
            group_start = int(self._ends[group - 1]) if group else 0
            low, high = max(group_start, lane_start), min(int(self._ends[group]), lane_end)
            if group == first:
                begin = low
            shift = int(self._starts[group]) - group_start
            pieces.append(np.arange(low + shift, high + shift))
        rows = np.concatenate(pieces)
        return rows[np.argsort(keyed_hash(*self._key, _ROWS, rows), kind="stable")], begin - lane_start


def make_lanes(global_batch: int, ghost_size: int = 0) -> tuple[int, int]:
    """Return the number of lanes and of ghost groups (0 without ghost batches) for the batch sizes.

    Raises:
        ConfigError: the ghost size does not divide the global batch size.
    """
    if not ghost_size:
        return min(MAX_LANES, global_batch), 0
    if ghost_size < 0 or global_batch % ghost_size:
        raise ConfigError(
            f"ghost batches of {ghost_size} rows do not divide the global batch size {global_batch}",
            mend=f"choose a divisor of {global_batch}",
        )
    ghosts = global_batch // ghost_size
    return ghosts * max(1, MAX_LANES // ghosts), ghosts


def lanes_of(rank: int, world_size: int, num_lanes: int, num_ghosts: int = 0) -> list[int]:
    """Return the lanes of a worker: every lane, or every whole ghost group, whose number is rank modulo world size.

    Raises:
        ConfigError: there are more workers than lanes or ghost groups, so that some would have nothing to do.
    """
    owned = num_ghosts or num_lanes
    if world_size > owned:
        kind = "ghost batches" if num_ghosts else "lanes (the smaller of 64 and the global batch size)"
        raise ConfigError(
            f"{world_size} workers cannot share {owned} {kind}",
            mend=f"use at most {owned} workers, or a larger global batch size",
        )
    return [lane for lane in range(num_lanes) if (lane % num_ghosts if num_ghosts else lane) % world_size == rank]


def sharing_efficiency(world_size: int, num_lanes: int, num_ghosts: int = 0) -> float:
    """Return what share of the workers' time a batch uses: the slowest owns the most lanes, the rest wait for it.

    48 workers share 64 lanes at 0.67, since some own two of them and most own one.
    """
    owned = num_ghosts or num_lanes
    return owned / (world_size * -(-owned // world_size))
