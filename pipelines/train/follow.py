"""The driver's view of a run: what workers write to storage, picked up as it appears there."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pipelines.errors import DataError, StorageError
from pipelines.progress import Progress
from pipelines.storage import Storage
from pipelines.train.records import EpochRecord, ProgressNote, count_records, read_progress, read_record

_LOGGER = logging.getLogger(__name__)

WORTH_MENDING = 0.1
"""Share of an epoch's time waited for data from which on it is said what would mend it; less is any feed's price."""


class Follower:
    """Hands on each new epoch record, in order, says a line of each epoch, and keeps the progress line.

    A record that was replaced, since the run went back, is handed on once more, with those after it.

    Args:
        run: storage of the run.
        on_record: called with each record once.
    """

    def __init__(self, run: Storage, on_record: Callable[[EpochRecord], None]) -> None:
        self._run = run
        self._on_record = on_record
        self._next_epoch = 1
        self._handed: list[EpochRecord] = []
        self._images = 0
        self._progress: Progress | None = None
        self._note: ProgressNote | None = None
        self._unsaid: list[EpochRecord] = []
        self._latest: EpochRecord | None = None
        self._has_warned = False
        self._standing, self._num_standing = self._read_standing()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._look()
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)

    def _read_standing(self) -> tuple[ProgressNote | None, int]:
        """Return an earlier attempt's note and epochs, which are no progress of this one, and are not said again."""
        try:
            return read_progress(self._run), count_records(self._run)
        except StorageError:
            return None, 0

    def poll(self) -> None:
        """Look once at what has appeared; what cannot be read for a while is looked at again later.

        A damaged record too: the run goes on without it, and whoever needs it at the end refuses it.
        """
        try:
            self._look()
        except (StorageError, DataError) as error:
            if not self._has_warned:
                self._has_warned = True
                _LOGGER.warning("the run cannot be followed at the moment; it goes on: %s", error)

    def _look(self) -> None:
        try:
            self._hand_on()
        finally:
            self._show()

    def _hand_on(self) -> None:
        # A run that diverged goes back and does epochs again: theirs are then other records.
        while self._handed and not is_same(read_record(self._run, self._handed[-1].epoch), self._handed[-1]):
            self._next_epoch = self._handed.pop().epoch
            self._num_standing = min(self._num_standing, self._next_epoch - 1)
        while (record := read_record(self._run, self._next_epoch)) is not None:
            self._on_record(record)  # where it fails, the record is handed on once more
            self._next_epoch += 1
            self._handed.append(record)
            self._latest = record
            if record.epoch > self._num_standing:
                self._unsaid.append(record)

    def _show(self) -> None:
        note = read_progress(self._run)
        is_new = note is not None and note != self._standing
        if note is not None and is_new:
            self._standing = self._note = note
            if self._progress is None:
                self._progress = Progress(note.total, label="train")
                self._progress.start_at(note.images)
                self._images = note.images
        if self._progress is None or self._note is None:
            return  # lines wait for the first note, which says how many epochs there are
        for record in self._unsaid:
            self._progress.say(epoch_line(record, self._note))
        self._unsaid.clear()
        if is_new:
            # After a restart the run stands behind what was shown; the line then waits until it is caught up.
            self._progress.advance(max(0, self._note.images - self._images), **self._figures(self._note))
            self._images = max(self._images, self._note.images)

    def _figures(self, note: ProgressNote) -> dict[str, object]:
        """Return what stands behind done, rate and time left."""
        figures: dict[str, object] = {"epoch": note.epoch, "step": note.step, "loss": f"{note.loss:.3f}"}
        waited = note.wait_fraction
        if self._latest is not None:
            figures["val"] = f"{self._latest.val_score:.1%}"
            waited = self._latest.data_wait_fraction if waited is None else waited
        return figures if waited is None else figures | {"data-wait": f"{waited:.0%}"}


def epoch_line(record: EpochRecord, note: ProgressNote) -> str:
    """Return what is said of a finished epoch; where it waited for data for long, with what would mend it."""
    name = "val_top1" if record.val_top1 is not None else "val_map"
    line = (
        f"train: epoch {record.epoch}/{note.epochs}, loss {record.train_loss:.3f}, {name} {record.val_score:.1%},"
        f" {record.images_per_s:,.0f} images/s, waited for data {record.data_wait_fraction:.0%} of the time"
    )
    if record.data_wait_fraction < WORTH_MENDING:
        return line
    return f"{line}; to wait less: {note.wait_mend}"


def is_same(standing: EpochRecord | None, handed: EpochRecord) -> bool:
    """Return whether a record says what was handed on; one that a replaced worker wrote again has other times."""
    if standing is None:
        return False
    are_near = math.isclose(standing.train_loss, handed.train_loss, rel_tol=1e-3)
    return are_near and standing.lr == handed.lr and standing.val_figures() == handed.val_figures()
