"""What a run has come to, and whether anything is left of it to do."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.storage import Storage
from pipelines.train.checkpoint import Checkpoint, load_latest
from pipelines.train.config import TrainConfig
from pipelines.train.records import EpochRecord, read_records
from pipelines.train.state import Best, Cursor, read_cursor


@dataclass(frozen=True)
class FitOutcome:
    """What a run came to."""

    epochs: int
    """Finished epochs."""
    best: Best
    """The epoch whose weights are kept."""
    records: list[EpochRecord]
    """One per finished epoch."""
    stopped: bool = False
    """Whether work is left, because `on_epoch` or the time ended it."""


def is_over(config: TrainConfig, cursor: Cursor) -> bool:
    """Return whether a run has nothing left to do: all epochs done, or none of the last ones was better."""
    waited = cursor.epoch - cursor.best.epoch
    return cursor.epoch >= config.epochs or 0 < config.patience_epochs <= waited


def read_outcome(config: TrainConfig, run: Storage) -> FitOutcome | None:
    """Return what a run has come to by its newest checkpoint, or None where there is none.

    It is `stopped` while epochs are left.
    """
    newest = load_latest(run)
    return outcome_of(config, run, newest) if newest else None


def outcome_of(config: TrainConfig, run: Storage, newest: Checkpoint) -> FitOutcome:
    """Return what a run has come to by one of its checkpoints."""
    cursor = read_cursor(newest)
    records = read_records(run, cursor.epoch)
    return FitOutcome(cursor.epoch, cursor.best, records, stopped=not is_over(config, cursor))
