"""Attempts at a unit: each notes that it begins, so that the next one knows how many never came to an end."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.storage import Storage


@dataclass(frozen=True)
class Attempt:
    """One attempt: its name, which is in the names of its files, and how many earlier ones died."""

    name: str
    died: int


@contextlib.contextmanager
def begin_attempt(store: Storage, run_id: str, unit: int) -> Iterator[Attempt]:
    """Note an attempt at a unit; only a process that dies inside leaves the note, an error ends it in order."""
    folder = f"_work/{run_id}/attempts/unit-{unit:06d}"
    attempt = Attempt(secrets.token_hex(4), len(store.list(folder)))
    store.put(f"{folder}/{attempt.name}", b"", lasts=False)  # a power cut is no fault of the unit's
    try:
        yield attempt
    except Exception:
        store.delete(f"{folder}/{attempt.name}")  # nothing in the unit is suspect
        raise
