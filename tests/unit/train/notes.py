"""Records and notes of progress as a run writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipelines.storage import Storage
from pipelines.train.records import EpochRecord, ProgressNote, write_progress

NOTE = ProgressNote(
    epoch=1,
    epochs=9,
    step=4,
    images=5,
    total=100,
    images_per_s=9.0,
    loss=1.25,
    wait_fraction=0.125,
    wait_mend="loader_threads=8 decodes faster",
)


def make_record(epoch: int, **changes: Any) -> EpochRecord:
    """Return a record; `changes` are fields of it."""
    record = EpochRecord(epoch, 4 * epoch, 1.0, 0.5, 1.0, 0.5 + epoch / 100, 0.1, 100.0, 1.0, 0.0, "0" * 16)
    return replace(record, **changes)


def note_progress(run: Storage, **changes: Any) -> None:
    """Write a note of progress; `changes` are fields of it."""
    write_progress(run, replace(NOTE, **changes))
