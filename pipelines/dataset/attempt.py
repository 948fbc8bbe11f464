"""Attempts at a unit: each notes that it begins, so that the next one knows how many never came to an end."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.storage import Storage


def new_driver() -> str:
    """Return a name that no other driver of a run has."""
    return secrets.token_hex(4)


@dataclass(frozen=True)
class Attempt:
    """One attempt: its name, which is in the names of its files, and how many earlier ones died."""

    name: str
    died: int


@contextlib.contextmanager
def begin_attempt(store: Storage, run_id: str, unit: int, driver: str = "") -> Iterator[Attempt]:
    """Note an attempt at a unit; only a process that dies inside leaves the note.

    An end and an error take it away, so that the one folder of a run's notes stays short and is cheap to list.
    Deaths are counted per `driver`: what ended with another driver, or still runs for it, says nothing of the unit.
    """
    folder, of_unit = f"_work/{run_id}/attempts", f"unit-{unit:06d}-{driver}-"
    died = sum(file.path.startswith(f"{folder}/{of_unit}") for file in store.list(folder))
    attempt = Attempt(secrets.token_hex(4), died)
    note = f"{folder}/{of_unit}{attempt.name}"
    store.put(note, b"", lasts=False)  # a power cut is no fault of the unit's
    try:
        yield attempt
    except Exception:
        store.delete(note, lasts=False)  # nothing in the unit is suspect
        raise
    store.delete(note, lasts=False)
