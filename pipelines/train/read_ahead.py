"""Pixels of large splits in training: row groups are read before batches need them, and kept until they are used up.

A split is walked in windows of row groups (`dataset/order.py`), and all lanes come to the end of theirs at nearly the
same time. What was used longest ago is then the wrong thing to drop: it may be a group whose rows are still to come.
Here each row is dropped once it was given, so that a window makes room for the next one while it is walked, and a row
group is read once (again where two lanes meet in it).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from pipelines.dataset.order import WINDOW_GROUPS, EpochOrder, make_lanes
from pipelines.train.collectives import World
from pipelines.train.pixels import Decoder, EncodedPixels, PixelsOnDemand, Positions
from pipelines.train.sampling import Sample

_READERS = 16
"""Row groups read at a time: with 30 ms a request the first batch of 256, from 213 groups, is there in 0.5 s."""

_PLANNED_AT_ONCE = 8
"""Batches looked through for each batch that is made: finding one takes a millisecond, and the first one must not wait
for that of a whole window."""


class _Group:
    """The images of a row group, or what is left of them."""

    def __init__(self, images: Future[list[bytes | None]], places: int, until: int) -> None:
        self.images, self.left, self.until = images, places, until


class PixelsAhead(EncodedPixels):
    """The pixels of an epoch by place: the position of a row, or, where rows are sampled, of one of its copies.

    One thread uses it: for each batch in turn `prepare`, then `take` or `crop`, then `release`.

    Args:
        decoder: of the split.
        source: gives row groups, to several threads at once.
        order: the epoch.
        group_sizes: rows of each row group.
        sample: the copies of rows that the epoch reads; None: each row once.
        places_of: places that a batch takes.
        partners_of: places that it looks at besides; None: no others.
        start: the first of the batches to come.
        groups: row groups whose places are kept at a time; what the batch at hand needs is read in any case.
    """

    def __init__(
        self,
        decoder: Decoder,
        source: PixelsOnDemand,
        order: EpochOrder,
        group_sizes: Sequence[int],
        sample: Sample | None,
        *,
        places_of: Callable[[int], Positions],
        partners_of: Callable[[int], Positions] | None,
        start: int,
        groups: int,
    ) -> None:
        self._sizes = sample.group_sizes if sample else group_sizes
        super().__init__(decoder, self._sizes)
        self._source, self._sample, self._row_ends = source, sample, np.cumsum(group_sizes)
        self._places_of, self._partners_of = places_of, partners_of
        self._num_batches = order.num_batches
        self._limit = groups * -(-order.num_rows // len(group_sizes))
        # A window is walked within so many batches. What is left then of a row group that was needed at its start are
        # rows of another worker, of another window of our own, or of before the first batch.
        window_rows = groups_of_window(order.num_lanes) * max(self._sizes)
        self._window_batches = -(-window_rows * order.num_lanes // order.global_batch) + 1
        # For so many batches a row that was given may be looked at again, as the partner of the next one of its lane.
        self._looks_back = -(-order.num_lanes // order.global_batch) if partners_of else 0
        self._places: dict[int, Positions] = {}  # of the batches planned, which are found lane by lane
        self._groups: dict[int, _Group] = {}
        self.held = 0
        """Places that are kept, or have been asked for."""
        self._planned = start - 1
        self._coming: deque[int] = deque()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")

    def __enter__(self) -> PixelsAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.shutdown(cancel_futures=True)

    def prepare(self, batch: int) -> None:
        """Ask for the row groups of a batch, and of as many later ones as there is room for, in the order of need."""
        horizon = min(batch + self._window_batches, max(batch - 1, self._planned) + _PLANNED_AT_ONCE)
        while self._next_group(horizon):
            group = self._coming[0]
            if self._planned > batch and not self._has_room(self._sizes[group], batch):
                return
            self._coming.popleft()
            self._ask(group)

    def release(self, batch: int) -> None:
        """Drop places that batches up to this one have given and that no later one looks at."""
        places = self._places.pop(batch - self._looks_back, None)
        if places is None:  # of before the first
            return
        numbers, which = np.unique(self._groups_of(places), return_inverse=True)
        found = [self._groups.get(number) for number in numbers.tolist()]
        for place, index in zip((places - self._ends[numbers][which]).tolist(), which.tolist(), strict=True):
            if group := found[index]:
                group.images.result()[place] = None
                group.left -= 1
                self.held -= 1
                if not group.left:
                    del self._groups[int(numbers[index])]

    def _group(self, group: int) -> Sequence[bytes]:
        if group not in self._groups:
            self._ask(group)
        return self._groups[group].images.result()  # type: ignore[return-value]  # what is asked for is still there

    def _next_group(self, horizon: int) -> bool:
        """Return whether a row group is to be read, looking through the batches up to the horizon for one."""
        while not self._coming:
            batch = self._planned + 1
            if batch > horizon or batch >= self._num_batches:
                return False
            self._planned = batch
            places = self._places[batch] = self._places_of(batch)
            if self._partners_of:
                places = np.concatenate([places, self._partners_of(batch)])
            found = np.unique(self._groups_of(places)).tolist()
            self._coming.extend(group for group in found if group not in self._groups)
        return True

    def _has_room(self, places: int, batch: int) -> bool:
        if self.held + places <= self._limit:
            return True
        for number in [number for number, group in self._groups.items() if group.until < batch]:
            self.held -= self._groups.pop(number).left
        return self.held + places <= self._limit

    def _ask(self, group: int) -> None:
        until = self._planned + self._window_batches
        self._groups[group] = _Group(self._readers.submit(self._read, group), self._sizes[group], until)
        self.held += self._sizes[group]

    def _read(self, group: int) -> list[bytes | None]:
        """Return the encoded image of every place of a row group; copies of a row share it."""
        images = self._source.group(group)
        if self._sample is None:
            return [*images]
        end = int(self._ends[group])
        rows = self._sample.rows[end - self._sizes[group] : end] - self._row_ends[group]
        return [images[row] for row in rows.tolist()]


def groups_of_window(lanes: int) -> int:
    """Return how many row groups a window of one lane holds."""
    return max(2, WINDOW_GROUPS // lanes)


def window_groups_of(global_batch: int, world: World) -> int:
    """Return how many row groups the windows of one worker's lanes hold together."""
    lanes, _ = make_lanes(global_batch)
    return -(-lanes // world.size) * groups_of_window(lanes)
