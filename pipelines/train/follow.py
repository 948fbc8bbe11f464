"""The driver's view of a run: what workers write to storage, picked up as it appears there."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from pipelines.errors import StorageError
from pipelines.progress import Progress
from pipelines.storage import Storage
from pipelines.train.records import EpochRecord, read_progress, read_record

_LOGGER = logging.getLogger(__name__)


class Follower:
    """Hands on each new epoch record, in order, and keeps the progress line.

    A record that was replaced, since the run went back, is handed on once more, with those after it.

    Args:
        run: storage of the run.
        on_record: called with each record once.
        first_epoch: the first epoch to hand on.
        total_images: images of the whole run, 0 where not known yet.
    """

    def __init__(self, run: Storage, on_record: Callable[[EpochRecord], None], *, first_epoch: int = 1) -> None:
        self._run = run
        self._on_record = on_record
        self._next_epoch = first_epoch
        self._handed: list[EpochRecord] = []
        self._images = 0
        self._progress: Progress | None = None
        self._latest: EpochRecord | None = None
        self._has_warned = False
        self._standing = self._read_standing()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._look()
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)

    def _read_standing(self) -> dict[str, Any] | None:
        """Return an earlier attempt's note, which is no progress of this one; without it the line begins too far on."""
        try:
            return read_progress(self._run)
        except StorageError:
            return None

    def poll(self) -> None:
        """Look once at what has appeared; storage that cannot be read for a while is looked at again later."""
        try:
            self._look()
        except StorageError as error:
            if not self._has_warned:
                self._has_warned = True
                _LOGGER.warning("the run cannot be followed at the moment; it goes on: %s", error)

    def _look(self) -> None:
        # A run that diverged goes back and does epochs again: theirs are then other records.
        while self._handed and not is_same(read_record(self._run, self._handed[-1].epoch), self._handed[-1]):
            self._next_epoch = self._handed.pop().epoch
        while (record := read_record(self._run, self._next_epoch)) is not None:
            self._on_record(record)  # where it fails, the record is handed on once more
            self._next_epoch += 1
            self._handed.append(record)
            self._latest = record
        self._show()

    def _show(self) -> None:
        note = read_progress(self._run)
        if note is None or note == self._standing:
            return
        self._standing = note
        if self._progress is None:
            self._progress = Progress(int(note["total"]), label="train")
            self._progress.start_at(int(note["images"]))
            self._images = int(note["images"])
        extra = {"epoch": note["epoch"], "loss": f"{note['loss']:.3f}"}
        if self._latest is not None:
            extra["val"] = f"{self._latest.val_score:.1%}"
        # After a restart the run stands behind what was shown; the line then waits until it is caught up.
        self._progress.advance(max(0, int(note["images"]) - self._images), **extra)
        self._images = max(self._images, int(note["images"]))


def is_same(standing: EpochRecord | None, handed: EpochRecord) -> bool:
    """Return whether a record says what was handed on; one that a replaced worker wrote again has other times."""
    if standing is None:
        return False
    return standing.lr == handed.lr and math.isclose(standing.train_loss, handed.train_loss, rel_tol=1e-3)
