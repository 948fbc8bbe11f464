"""Which states of a run are kept: checkpoints and records, started at a step, learnt of later, all workers alike.

Rank 0 writes; the others hear what became of a checkpoint, because which epoch is the best must be the same for all.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch

from pipelines.errors import StorageError, Superseded
from pipelines.storage import Storage
from pipelines.train.checkpoint import (
    Checkpoint,
    amend_checkpoint,
    committed_steps,
    discard_checkpoints,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from pipelines.train.collectives import World
from pipelines.train.feed import TrainFeed
from pipelines.train.owner import superseded
from pipelines.train.records import EpochRecord, ProgressNote, delete_records, write_progress, write_record
from pipelines.train.run_writer import RunWriter
from pipelines.train.startup import START, mark, to_json
from pipelines.train.state import Best, Cursor, TrainState
from pipelines.train.step_log import StepLog, write_step_log
from pipelines.train.waiting import wait_mend

_LOGGER = logging.getLogger(__name__)

PROGRESS_S = 2.0
"""Seconds between two notes of where the run is."""
_PROMPT_S = 1.0
"""Seconds that a checkpoint may take before storage counts as slow and an epoch's end does not wait for it."""

_BETTER_S = 60.0
"""Seconds that a checkpoint in flight may take before a better epoch's end does not wait for it either."""


def stop_if(successor: Superseded | None, run: Storage, world: World, device: torch.device) -> None:
    """Stop all workers where rank 0 has found another command's note; every one of them calls this.

    Raises:
        Superseded: it has.
    """
    if world.sum_values([float(successor is not None)], device)[0]:
        raise successor or superseded(run)


def agree_on_checkpoint(
    run: Storage, world: World, device: torch.device, *, below: int | None = None
) -> Checkpoint | None:
    """Return the newest whole checkpoint as rank 0 sees it, or None; all workers must start from the same one."""
    newest = load_latest(run, below=below) if world.rank == 0 else None
    (step,) = world.sum_values([float(newest.step if newest else -1) if world.rank == 0 else 0.0], device)
    return newest or (load_checkpoint(run, int(step)) if step >= 0 else None)


class Keeper:
    """One process's part in keeping a run; every process calls `take_stock`, `save` and `finish` alike.

    Args:
        run: storage of the run.
        world: the processes that train together.
        device: where their sums are taken.
        owner: rank 0's token of the command that trains (`RunWriter`).
    """

    def __init__(self, run: Storage, world: World, device: torch.device, owner: str = "") -> None:
        self._run = run
        self._world = world
        self._device = device
        self._writer = RunWriter(run, owner) if world.rank == 0 else None
        self._safe_best = self._best_in_flight = Best()
        self._saved_step = -1
        self._has_started = False
        self._saved_s = time.perf_counter()
        self._progress_s = -math.inf  # the first steps are told at once

    def is_due(self, every_s: float) -> bool:
        """Return whether rank 0 wants a checkpoint: so many seconds have passed, and none is in flight.

        Where one is wanted at every opportunity (0 s), the one before is waited for.
        """
        if self._writer is None or time.perf_counter() - self._saved_s < every_s:
            return False
        return not self._writer.is_busy or every_s == 0

    def begin_at(self, best: Best) -> None:
        """Take the best epoch of the state that the run starts or goes back to; none is in flight."""
        self._safe_best = self._best_in_flight = best

    def drop_records(self) -> None:
        """Let the checkpoint in flight be finished, and forget records that are not written yet.

        Raises:
            Superseded: the run is another command's, and nothing in it is to be taken back.
        """
        successor = None
        if self._writer is not None:
            self._writer.wait()
            self._writer.take_failure()
            self._writer.drop_records()
            successor = self._writer.find_successor()
        stop_if(successor, self._run, self._world, self._device)

    def go_back(self, state: TrainState, identity: dict[str, Any]) -> None:
        """Have storage hold the run as it is at the checkpoint that it went back to.

        With the lower rate beside it, so that a run that is killed now does not diverge once more. The checkpoint is
        not written anew: other workers may be reading it, and a full disk would leave none. What cannot be done is
        said; the next checkpoint makes up for it.
        """
        cursor = state.cursor
        self.begin_at(cursor.best)
        if self._writer is None:
            return
        try:
            discard_checkpoints(self._run, above=cursor.step)
            delete_records(self._run, above=cursor.epoch)
            if cursor.step in committed_steps(self._run):
                amend_checkpoint(self._run, cursor.step, cursor.after_return())
            else:  # the start, of which none is taken otherwise
                save_checkpoint(self._run, cursor.step, state.to_files(identity))
        except StorageError as failure:
            _LOGGER.warning(
                "that the run went back to step %d could not be written; training goes on: %s", cursor.step, failure
            )

    def take_stock(self, cursor: Cursor, *, must_wait: bool, is_better: bool = False) -> bool:
        """Learn what became of the checkpoint in flight; return whether it still is, as storage is slow.

        It is given a second since its start; a minute where the present epoch is better than those before; where it
        must be known (`must_wait`), as long as it takes.

        Where it could not be written, training goes on from the one before it: the best epoch is then one whose
        weights are safe, as weights that nobody has cannot be the ones to keep.

        Raises:
            Superseded: the run is another command's; raised by all workers.
        """
        lost = busy = 0.0
        successor: Superseded | None = None
        if self._writer is not None:
            age_s = time.perf_counter() - self._saved_s
            allowed_s = _BETTER_S if is_better else _PROMPT_S
            self._writer.wait(math.inf if must_wait else max(0.0, allowed_s - age_s))
            busy = float(self._writer.is_busy)
            failure = None if busy else self._writer.take_failure()
            successor = failure if isinstance(failure, Superseded) else self._writer.met_successor
            if failure is not None and successor is None:
                lost = 1.0
                _LOGGER.warning(
                    "the checkpoint of step %d could not be written; training goes on: %s", self._saved_step, failure
                )
        lost, busy, is_over = self._world.sum_values([lost, busy, float(successor is not None)], self._device)
        if is_over:
            raise successor or superseded(self._run)
        if lost:
            self._best_in_flight = cursor.best = self._safe_best
        elif not busy:
            self._safe_best = self._best_in_flight
        return busy > 0

    def save(self, state: TrainState, identity: dict[str, Any]) -> None:
        """Start to write a checkpoint; none may be in flight. Takes as long as copying the tensors."""
        self._saved_s = time.perf_counter()
        self._saved_step = state.cursor.step
        self._best_in_flight = state.cursor.best
        if self._writer is not None:
            snapshot = state.snapshot(identity, into=self._writer.spare)
            # The best epoch of the checkpoint before as well: a run that diverges may go back to that one.
            self._writer.start(snapshot, keep=(state.cursor.best.step, self._safe_best.step))

    def leave_out(self, step: int) -> None:
        """Say that no checkpoint is taken of a step, as storage is slow."""
        if self._writer is not None:
            _LOGGER.warning(
                "the checkpoint of step %d is still being written after %.0f s; none is taken of step %d",
                *(self._saved_step, time.perf_counter() - self._saved_s, step),
            )

    def keep_record(self, record: EpochRecord, steps: StepLog) -> None:
        """Write the record of an epoch and its steps, before any checkpoint that is taken later."""
        if self._writer is not None:
            # The record first: after a kill in between, the epoch is done again and writes the same figures.
            write_record(self._writer.later, record)
            write_step_log(self._writer.later, record.epoch, steps)

    def settle_records(self) -> None:
        """Have the records written now: whoever is told of an epoch next may look for them."""
        if self._writer is not None:
            self._writer.settle_records()

    def note_start(self) -> None:
        """Keep what the start took, after the first step."""
        if self._writer is not None and not self._has_started:
            mark("first step")
            self._writer.note_progress(START, to_json())  # a run without it is whole
        self._has_started = True

    def note_progress(
        self, cursor: Cursor, *, feed: TrainFeed, epochs: int, is_due: bool = False, loss: float = math.nan
    ) -> None:
        """Say where the run is, every two seconds or where it is due."""
        now_s = time.perf_counter()
        if self._writer is None or not (is_due or now_s - self._progress_s >= PROGRESS_S):
            return
        self._progress_s = now_s
        sums = cursor.sums
        note = ProgressNote(
            epoch=min(cursor.epoch + 1, epochs),
            epochs=epochs,
            step=cursor.step,
            images=cursor.epoch * feed.num_rows + int(sums.rows),
            total=epochs * feed.num_rows,
            images_per_s=sums.rows / max(sums.train_s, 1e-9),
            loss=sums.loss / sums.rows if sums.rows else loss,
            wait_fraction=min(1.0, sums.wait_s / max(sums.train_s, 1e-9)) if sums.rows else None,
            wait_mend=wait_mend(feed),
        )
        write_progress(self._writer.later, note)

    def finish(self, state: TrainState, identity: dict[str, Any]) -> None:
        """Return when the state as it is now, and every record, is safe.

        Raises:
            StorageError: it cannot be made safe; the run can be gone on with from an earlier checkpoint.
            Superseded: the run is another command's; raised by all workers.
        """
        if self._saved_step not in (-1, state.cursor.step):
            self.take_stock(state.cursor, must_wait=True)
            self.save(state, identity)
        successor = None
        if self._writer is not None:
            try:
                self._writer.finish()
            except Superseded as failure:
                successor = failure
        stop_if(successor, self._run, self._world, self._device)

    def close(self, patience_s: float) -> None:
        """Let what is being written be finished, within so many seconds."""
        if self._writer is not None:
            self._writer.close(patience_s)
