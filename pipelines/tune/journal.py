"""What became of each trial: one JSON file per trial, created when it starts and replaced when it ends.

The journal and the trials' own folders are the whole state of a sweep. Nothing is pickled, and Ray's experiment state
is thrown away: a sweep is resumed by reading this.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.errors import AlreadyExists, DataError
from pipelines.storage import Storage

FORMAT_VERSION = 1
FOLDER = "journal"

Status = Literal["running", "finished", "stopped", "failed", "refused"]


@dataclass(frozen=True)
class TrialEntry:
    """One trial as far as it has come."""

    trial: str
    """Four digits, counted from 0001; also its folder under `trials/`."""
    params: dict[str, Any]
    """The values sampled for it, by path."""
    status: Status = "running"
    """running: not ended, or its end was not written down; finished: all epochs done; stopped: fell behind;
    failed: ended by an error; refused: the sampled values make no possible training."""
    reason: str = ""
    """Why it was stopped, failed or refused."""
    epochs: int = 0
    """Epochs done."""
    val_top1: float | None = None
    """Best top-1 on val over its epochs; None before the first."""
    best_epoch: int = 0
    """The epoch of that figure, counted from 1; its weights are the trial's model."""
    mlflow_run_id: str = ""
    """Its MLflow run; empty before it started, or where nothing is tracked."""

    @property
    def is_over(self) -> bool:
        """Whether a rerun leaves the trial alone. A failed one is tried again: its cause may be mended."""
        return self.status in ("finished", "stopped", "refused")


class Journal:
    """The entries of a sweep, in its output folder."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def open(self, trial: str, params: dict[str, Any]) -> TrialEntry:
        """Return the standing entry of a trial, or begin one.

        Raises:
            DataError: the standing entry cannot be read, or is of other values.
        """
        entry = TrialEntry(trial, params)
        try:
            self._storage.create(_path(trial), _encode(entry))
            return entry
        except AlreadyExists:
            standing = self._read(trial)
        if standing.params != params:
            raise DataError(
                f"{self._storage.address(_path(trial))} is of values {standing.params}, not of {params}",
                mend="choose another --out",
            )
        return standing

    def write(self, entry: TrialEntry) -> None:
        """Replace a trial's entry."""
        self._storage.put(_path(entry.trial), _encode(entry))

    def _read(self, trial: str) -> TrialEntry:
        address = self._storage.address(_path(trial))
        try:
            values = json.loads(self._storage.read(_path(trial)))
            version = values.pop("format_version")
            if version > FORMAT_VERSION:
                raise DataError(f"{address} has format version {version}, newer than this program reads")
            return TrialEntry(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{address} is no journal entry: {error}",
                mend="delete that file: the trial then goes on from its own records",
            ) from error


def _path(trial: str) -> str:
    return f"{FOLDER}/trial-{trial}.json"


def _encode(entry: TrialEntry) -> bytes:
    return json.dumps({"format_version": FORMAT_VERSION, **asdict(entry)}, indent=1).encode()
