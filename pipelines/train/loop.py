"""The training loop: plain torch, one process or many, read from top to bottom.

    fit -> for each epoch: for each batch: step; every second or so: sync; then evaluate, record, checkpoint

What it writes to the run's storage (records, checkpoints) is the truth; whoever starts `fit` on the same storage again
goes on from the newest whole checkpoint, to the same bits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipelines.storage import Storage
from pipelines.train import startup
from pipelines.train.assemble import assemble
from pipelines.train.batch import Batch
from pipelines.train.checkpoint import Checkpoint, load_checkpoint
from pipelines.train.collectives import World, join_trace, split_trace
from pipelines.train.config import TrainConfig
from pipelines.train.divergence import Diverged, Spiked
from pipelines.train.evaluation import evaluate, train_figures
from pipelines.train.feed import OpenRows, SplitRows, opened_once
from pipelines.train.keeper import Keeper, agree_on_checkpoint, stop_if
from pipelines.train.notice import Notice
from pipelines.train.outcome import FitOutcome, is_over, outcome_of
from pipelines.train.owner import claim_run, find_successor
from pipelines.train.precision import resolve_device
from pipelines.train.records import EpochRecord, ValFigures, read_records
from pipelines.train.schedule import rate_at
from pipelines.train.state import Best, EpochSums, add_exactly, read_cursor
from pipelines.train.step_log import StepLog
from pipelines.train.transfer import set_training

_LOGGER = logging.getLogger(__name__)

OnEpoch = Callable[[EpochRecord], bool]
"""Called with each finished epoch, once its record is in storage; False ends the run after it."""

_SYNC_S = 1.0
"""Seconds between the moments when workers add up their figures and agree what to do."""
_PATIENCE_S = 30.0
"""Seconds that a run which ends by an error waits for what is being written."""
_NO_NOTICE = Notice()


def fit_local(
    config: TrainConfig,
    run: Storage,
    *,
    on_epoch: OnEpoch | None = None,
    device: str = "auto",
    open_rows: OpenRows = SplitRows,
    owner: str = "",
) -> FitOutcome:
    """Train in this process alone, from the newest checkpoint in `run` if there is one.

    Args:
        config: the run; `num_workers` and where to run are not looked at.
        run: storage of the run.
        on_epoch: called after each epoch; False ends the run.
        device: `auto`, `cpu`, `cuda` or another torch name.
        open_rows: opens a split, given what `SplitRows` is given.
        owner: as `fit`.

    Raises:
        InputError: the dataset cannot be trained on.
        DataError: the loss stopped being a number, an image cannot be decoded, or the checkpoints are of another run.
    """
    startup.begin()
    here = resolve_device(device)
    return fit(config, run, world=World(), device=here, on_epoch=on_epoch, open_rows=open_rows, owner=owner)


def fit(
    config: TrainConfig,
    run: Storage,
    *,
    world: World,
    device: torch.device,
    on_epoch: OnEpoch | None = None,
    open_rows: OpenRows = SplitRows,
    ends_at_s: float = math.inf,
    notice: Notice = _NO_NOTICE,
    owner: str = "",
) -> FitOutcome:
    """Train as one of the processes of `world`; every one of them calls this.

    `on_epoch` is called by rank 0. At the Unix time `ends_at_s`, or where `notice` to any process calls it off, the run
    leaves a checkpoint and stops where it is. `owner` is the token of the command that trains, where it has claimed the
    run already (`claim_run`).

    Raises:
        Superseded: another command has claimed the run since; this one begins no checkpoint after that.
    """
    successor = find_successor(run, owner) if world.rank == 0 and owner else None
    stop_if(successor, run, world, device)
    if world.rank == 0 and not owner:
        owner = claim_run(run)
    newest = agree_on_checkpoint(run, world, device)
    if newest and is_over(config, read_cursor(newest)):  # do not even read the data
        return outcome_of(config, run, newest)
    loop = _Loop(config, run, world, device, newest, open_rows, ends_at_s, notice, owner)
    try:
        return loop.run_epochs(on_epoch)
    except Exception:
        loop.keeper.close(_PATIENCE_S)
        raise
    finally:
        loop.keeper.close(0.0)


def replay(
    config: TrainConfig, run: Storage, *, step: int, steps: int, world: World, device: torch.device
) -> dict[int, tuple[float, str]]:
    """Do the steps after a checkpoint once more and return {step: (loss, id trace)} of each; the run is left alone.

    Every process of `world` calls this, as `fit`.

    Args:
        config: the run.
        run: its storage.
        step: the step of a kept checkpoint.
        steps: how many steps to do; fewer where the run ends.
        world: the processes that share each batch, any number of them.
        device: where the network is.

    Raises:
        DamagedCheckpoint: the checkpoint is not whole.
        DataError: the checkpoint is of another run, or the loss stopped being a number.
    """
    return _Loop(config, run, world, device, load_checkpoint(run, step)).repeat_steps(steps)


class _Loop:
    """One process's part of a run."""

    def __init__(
        self,
        config: TrainConfig,
        run: Storage,
        world: World,
        device: torch.device,
        newest: Checkpoint | None,
        open_rows: OpenRows = SplitRows,
        ends_at_s: float = math.inf,
        notice: Notice = _NO_NOTICE,
        owner: str = "",
    ) -> None:
        self.config, self.run, self.world, self.device = config, run, world, device
        self._ends_at_s, self._notice = ends_at_s, notice
        self.keeper = Keeper(run, world, device, owner)
        self._open_rows = opened_once(open_rows)  # going back to the start takes the same rows
        self._assemble(newest)
        # Of this worker's steps since the last sync: sum of losses and right answers; rows, those of all, id trace.
        self._local: list[Tensor] = []
        self._shares: list[tuple[int, int, int]] = []
        self._wait_s = 0.0
        self._sync_every = 1
        self._is_late = self._is_replay = self._has_drained = False
        self._mark_s = time.perf_counter()
        startup.mark("data read")

    def _assemble(self, newest: Checkpoint | None) -> None:
        """Take the parts of the run as they were at a checkpoint, or at the start."""
        parts = assemble(self.config, self.world, self.device, newest, self._open_rows)
        self.train_rows, self.val_rows, self.feed = parts.train_rows, parts.val_rows, parts.feed
        self.state, self._step, self.precision = parts.state, parts.step, parts.precision
        self._frozen, self.identity = parts.frozen, parts.identity
        self.keeper.begin_at(self.state.cursor.best)

    def run_epochs(self, on_epoch: OnEpoch | None) -> FitOutcome:
        stopped = False
        while not is_over(self.config, self.state.cursor) and not stopped:
            try:
                if not self._train_epoch():
                    break
                self._refuse_spike()
                val = self._evaluate()
            except Diverged as diverged:
                self._roll_back(diverged)
                continue
            record = self._finish_epoch(val)
            go_on = time.time() < self._ends_at_s and not self._notice.is_called_off()
            if self.world.rank == 0 and on_epoch is not None:
                self.keeper.settle_records()
                go_on = on_epoch(record) and go_on
            stopped = self.world.sum_values([float(not go_on)], self.device)[0] > 0  # anybody's wish
        self.keeper.finish(self.state, self.identity)
        cursor = self.state.cursor
        records = read_records(self.run, cursor.epoch)
        return FitOutcome(cursor.epoch, cursor.best, records, stopped=not is_over(self.config, cursor))

    def _refuse_spike(self) -> None:
        """Refuse an epoch whose loss is far above that of the one before."""
        cursor, factor = self.state.cursor, self.config.divergence.spike_factor
        loss = cursor.sums.loss / cursor.sums.rows
        if factor and cursor.last_loss and loss > factor * cursor.last_loss:
            raise Spiked.at(cursor, self.config, loss)

    def _roll_back(self, error: Diverged) -> None:
        """Go back to the newest checkpoint whose weights are numbers, with a lower rate.

        From a checkpoint that was gone back to before, and led here again, further back: to the start at last. Behind
        an epoch whose loss jumped, since its own checkpoints hold what made it jump.

        Raises:
            DataError: it has been done as often as is allowed.
        """
        config, before = self.config.divergence, self.state.cursor
        if before.rollbacks >= config.rollbacks:
            raise error
        self.keeper.drop_records()
        limits = [before.returned_to] if before.returned_to >= 0 else []
        limits += [before.steps.first] if isinstance(error, Spiked) else []
        step = min(limits, default=None)
        while checkpoint := agree_on_checkpoint(self.run, self.world, self.device, below=step):
            self.state.load_files(checkpoint, self.identity)
            step = checkpoint.step
            if self.state.is_finite():
                break
        else:
            self._assemble(None)
        cursor = self.state.cursor
        cursor.returned_to = cursor.step
        cursor.rollbacks, cursor.rate_scale = before.rollbacks + 1, before.rate_scale * config.rate_factor
        self._local.clear()
        self._shares.clear()
        self._wait_s = 0.0
        if self.world.rank == 0:
            _LOGGER.warning(
                "%s: back to step %d (%d of %d times), the rate from now on times %g",
                *(error.what, cursor.step, cursor.rollbacks, config.rollbacks, cursor.rate_scale),
            )
        self.keeper.go_back(self.state, self.identity)

    def repeat_steps(self, number: int) -> dict[int, tuple[float, str]]:
        """Do the next steps, reading the figures of each; nothing is evaluated or written."""
        cursor, done = self.state.cursor, dict[int, tuple[float, str]]()
        self._is_replay = True
        while cursor.epoch < self.config.epochs:
            set_training(self.state.network, self._frozen)
            for batch in self.feed.batches(cursor.epoch + 1, cursor.batch):
                self._take(batch)
                self._sync()
                done[cursor.step] = cursor.steps.losses[-1], cursor.steps.traces[-1]
                if len(done) == number:
                    return done
            self._turn_epoch()
        return done

    def _train_epoch(self) -> bool:
        """Do what is left of the running epoch; return False where the time is up before its end."""
        cursor = self.state.cursor
        set_training(self.state.network, self._frozen)
        self._mark_s = time.perf_counter()
        for batch in self._timed(self.feed.batches(cursor.epoch + 1, cursor.batch)):
            self._take(batch)
            is_last = cursor.batch == self.feed.num_batches
            if is_last or len(self._shares) >= self._sync_every:
                wants_checkpoint = self._sync()
                if (self._is_late or wants_checkpoint) and not is_last:
                    self._save(wait=True)
                if self._is_late and not is_last:
                    return False
        return True

    def _take(self, batch: Batch) -> None:
        """Take one step on the global batch, of which this worker holds `batch`."""
        cursor, config = self.state.cursor, self.config
        rate = rate_at(config.schedule, step=cursor.step, steps_per_epoch=self.feed.num_batches, epochs=config.epochs)
        self._local.append(self._step(batch, rate * cursor.rate_scale))
        self._shares.append((len(batch.targets), batch.global_rows, batch.trace))
        cursor.batch += 1
        cursor.step += 1

    def _sync(self) -> bool:
        """Add up figures over workers, check them, note progress; return whether rank 0 wants a checkpoint."""
        local = torch.stack(self._local).cpu().double()  # waits for the device; Apple's GPUs have no float64
        loss, right = add_exactly(local)
        now_s = time.perf_counter()
        spent_s, self._mark_s = now_s - self._mark_s, now_s
        wants = self.keeper.is_due(self.config.checkpoint_every_s)
        is_draining = self._notice.is_draining()
        wants, self._has_drained = wants or (is_draining and not self._has_drained), is_draining
        is_late = (self.world.rank == 0 and time.time() >= self._ends_at_s) or self._notice.is_called_off()
        number, own_rows = len(self._shares), sum(share for share, _, _ in self._shares)
        limbs = [limb for _, _, trace in self._shares for limb in split_trace(trace)]
        mine = [loss, right, float(own_rows), spent_s, self._wait_s, float(wants), float(is_late)]
        totals = self.world.sum_values([*mine, *local[:, 0].tolist(), *limbs], self.device)
        loss, right, rows, spent_s, wait_s, wanted, late, *by_step = totals
        self._is_late = late > 0
        if not math.isfinite(loss):
            raise Diverged.at(self.state.cursor, self.config, loss)
        cursor, sums = self.state.cursor, self.state.cursor.sums
        sums.loss, sums.right, sums.rows = sums.loss + loss, sums.right + right, sums.rows + rows
        sums.train_s += spent_s / self.world.size
        sums.wait_s += wait_s / self.world.size
        speed = rows * self.world.size / max(spent_s, 1e-9)
        for index, (_, of_all, _) in enumerate(self._shares):
            trace = join_trace(by_step[number + 4 * index : number + 4 * index + 4])
            cursor.steps.add(by_step[index] / of_all, trace, cursor.rate_scale, speed)
            sums.trace = (sums.trace + trace) % 2**64
        cursor.elapsed_s += spent_s / self.world.size
        # From summed figures, so that all workers choose the same number.
        step_s = spent_s / self.world.size / number
        self._sync_every = max(1, min(100, int(_SYNC_S / max(step_s, 1e-6))))
        self._local.clear()
        self._shares.clear()
        self._wait_s = 0.0
        if not self._is_replay:
            self.keeper.note_start()
            self.keeper.note_progress(cursor, feed=self.feed, epochs=self.config.epochs)
        return wanted > 0

    def _evaluate(self) -> ValFigures:
        """Return what the weights are worth on val.

        Raises:
            Diverged: they are no numbers; their last step broke them, and no step came after it to show.
        """
        val = evaluate(
            self.state.network,
            self.state.kept_weights(),
            self.val_rows,
            self._step.prepare,
            world=self.world,
            device=self.device,
            precision=self.precision,
        )
        loss = val["val_loss"] if self.state.is_finite() else math.nan
        if not math.isfinite(loss):
            raise Diverged.at(self.state.cursor, self.config, loss, name="the loss on val")
        return val

    def _finish_epoch(self, val: ValFigures) -> EpochRecord:
        """Record an epoch that was evaluated, and checkpoint."""
        config, cursor, sums = self.config, self.state.cursor, self.state.cursor.sums
        now_s = time.perf_counter()
        cursor.elapsed_s += now_s - self._mark_s
        record = EpochRecord(
            epoch=cursor.epoch + 1,
            step=cursor.step,
            train_loss=sums.loss / sums.rows,
            **train_figures(sums.right / sums.rows, is_multi=self.val_rows.targets.ndim == 2, pieces=cursor.pieces),
            **val,
            lr=float(self.state.optimizer.param_groups[0]["lr"]),
            images_per_s=sums.rows / max(sums.train_s, 1e-9),
            elapsed_s=cursor.elapsed_s,
            data_wait_fraction=min(1.0, sums.wait_s / max(sums.train_s, 1e-9)),
            id_trace=f"{sums.trace:016x}",
        )
        steps, cursor.last_loss, cursor.returned_to = cursor.steps, record.train_loss, -1
        self.keeper.keep_record(record, steps)
        self._turn_epoch()
        is_better = cursor.best.is_beaten_by(record.val_score, record.val_loss)
        is_busy = self.keeper.take_stock(cursor, must_wait=is_over(config, cursor), is_better=is_better)
        if not is_busy and cursor.best.is_beaten_by(record.val_score, record.val_loss):
            cursor.best = Best(record.epoch, cursor.step, record.val_score, record.val_loss)
        self.keeper.note_progress(cursor, feed=self.feed, epochs=config.epochs, is_due=True, loss=record.train_loss)
        if is_busy:
            self.keeper.leave_out(cursor.step)
        else:
            self._save(wait=False)
        return record

    def _turn_epoch(self) -> None:
        """Go on to the next epoch."""
        cursor = self.state.cursor
        cursor.epoch, cursor.batch = cursor.epoch + 1, 0
        cursor.sums, cursor.steps = EpochSums(), StepLog(first=cursor.step + 1)

    def _save(self, *, wait: bool) -> None:
        """Start a checkpoint; with `wait` one may still be in flight."""
        started_s = time.perf_counter()
        if wait:
            self.keeper.take_stock(self.state.cursor, must_wait=True)
        self.keeper.save(self.state, self.identity)
        self._mark_s = time.perf_counter()
        self.state.cursor.elapsed_s += self._mark_s - started_s

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and add up the time spent waiting for them."""
        while True:
            started_s = time.perf_counter()
            batch = next(batches, None)
            self._wait_s += time.perf_counter() - started_s
            if batch is None:
                return
            yield batch
