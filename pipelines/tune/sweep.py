"""The driver's side of a sweep: it reads what trials leave in their folders, decides, and writes it down.

Trials write their own folders and nothing else; journal and MLflow are written here alone, by one process.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pipelines.errors import Superseded
from pipelines.progress import Progress
from pipelines.storage import Storage
from pipelines.train.checkpoint import committed_steps
from pipelines.train.config import TrainConfig
from pipelines.train.owner import OWNER, check_owner, claim_run, find_successor, note_path
from pipelines.train.records import EpochRecord, read_record
from pipelines.train.teller import PATIENCE_S
from pipelines.train.worker import STOP
from pipelines.tune.journal import Journal, Status, TrialEntry
from pipelines.tune.search import Asha
from pipelines.tune.space import TrialPlan
from pipelines.tune.telling import UNTOLD, SweepLog, TrialLog, keep_environment, status_of

_LOGGER = logging.getLogger(__name__)

TRIALS = "trials"
_CHECKPOINT_S = 60.0
"""Seconds that a stopped trial's checkpoint in flight is waited for; other trials' reports wait meanwhile."""
_LOOK_S = 0.2


@dataclass
class _Trial:
    """A trial that has not ended."""

    plan: TrialPlan
    entry: TrialEntry
    run: Storage
    records: list[EpochRecord] = field(default_factory=list)
    log: TrialLog | None = None


class Sweep:
    """The state of a sweep while it runs; all of it can be had again from the output folder.

    Args:
        trials: every trial of the sweep.
        storage: output folder.
        asha: the stopping rule; None lets every trial have all its epochs.
        log: where trials are recorded.
        is_over: the sweep is published, and merely looked at; else its failed trials are open again.
    """

    def __init__(
        self,
        trials: Sequence[TrialPlan],
        storage: Storage,
        asha: Asha | None,
        log: SweepLog,
        *,
        is_over: bool = False,
    ) -> None:
        self.entries: dict[str, TrialEntry] = {}
        self.records: dict[str, list[EpochRecord]] = {}
        self._open: dict[str, _Trial] = {}
        self._plans = {plan.trial: plan for plan in trials}
        self._stopped: dict[str, str] = {}  # with the reason
        self._undecided: dict[str, tuple[int, float]] = {}  # last epoch and its top-1
        self._owner = ""
        self._owners: dict[str, str] = {}  # of trials
        self._storage = storage
        self._journal = Journal(storage)
        self._asha = asha
        self._log = log
        self._is_over = is_over
        self._progress: Progress | None = None
        for plan in trials:
            self._resume(plan)
        if asha is not None:
            self._replay(asha)

    def run_of(self, trial: str) -> Storage:
        """Return the storage of a trial's run folder."""
        return self._storage.child(f"{TRIALS}/{trial}")

    def best_of(self, trial: str) -> EpochRecord | None:
        """Return a trial's best epoch: of those whose weights are kept, where any are."""
        records = self.records.get(trial, [])
        return best_record(records, committed_steps(self.run_of(trial))) if records else None

    def claim(self) -> None:
        """Take the sweep's folder and those of unfinished trials, whoever had them.

        Behind all that may refuse the command. Here and not in the trials' processes: those that Tune starts anew are
        of this sweep. Of two commands that do so at once the one has the sweep whose note stands in its folder; it then
        sees to it that the trials' folders say the same.

        Raises:
            Superseded: another command has taken the sweep in that very moment.
        """
        token = secrets.token_hex(16)
        for trial in self._open:
            self._owners[trial] = claim_run(self.run_of(trial), token)
        self._owner = claim_run(self._storage, token)
        for trial in self._owners:
            run = self.run_of(trial)
            self.check_owner()
            if find_successor(run, token):
                claim_run(run, token)
                if self.find_successor():
                    run.put(OWNER, self._storage.read(OWNER))  # it was the newer command's already
        self.check_owner()
        self._decide_undecided()

    def find_successor(self) -> Superseded | None:
        """Return what there is to say if a newer command has the sweep by now; storage that is away says nothing."""
        return find_successor(self._storage, self._owner) if self._owner else None

    def check_owner(self) -> None:
        """Refuse to go on where another command has taken the sweep's folder since.

        Raises:
            Superseded: it has.
        """
        check_owner(self._storage, self._owner)

    def owner_of(self, trial: str) -> str:
        """Return the token that a trial's processes carry."""
        return self._owners[trial]

    def unfinished(self) -> list[TrialPlan]:
        """Return the trials that have to be run, in order."""
        return [trial.plan for trial in self._open.values()]

    def show(self, progress: Progress) -> None:
        """Keep a progress line over trials from now on."""
        self._progress = progress
        progress.start_at(len(self.entries) - len(self._open))

    def should_stop(self, trial: str, epoch: int, val_top1: float) -> bool:
        """Return whether a trial ends after this epoch because it has fallen behind."""
        if self._asha is None or trial in self._stopped or not self._asha.should_stop(trial, epoch, val_top1):
            return False
        self._stopped[trial] = f"behind at epoch {epoch} with {val_top1:.1%}"
        return True

    def is_stopped(self, trial: str) -> bool:
        """Return whether `should_stop` has ended the trial."""
        return trial in self._stopped

    def ask_to_end(self, trial: str) -> None:
        """Have a trial's workers end after the epoch they are at, and so give back what they hold."""
        self.run_of(trial).put(note_path(STOP, self._owners[trial]), b"{}")

    def follow(self, trial: str) -> None:
        """Pick up the epoch records that a trial has written since the last time."""
        standing = self._open[trial]
        self._read_new(standing)
        self._tell_new(standing)
        if self._progress is not None:
            best = max((r.val_score for records in self.records.values() for r in records), default=0.0)
            self._progress.advance(0, best=f"{best:.1%}", trial=f"{trial} epoch {len(standing.records)}")

    def await_best(self, trial: str) -> None:
        """Wait, within bounds, until the weights of a stopped trial's best epoch are safe; it may be the winner.

        The checkpoint of its last epoch may be in flight, and Tune gives processes 15 s at the end of a sweep.
        """
        standing = self._open[trial]
        self._read_new(standing)
        best = best_record(standing.records)
        if best is None:
            return
        # The last epoch's checkpoint stands after the best one's, or that one was lost for good.
        wanted, ends_s = {best.step, standing.records[-1].step}, time.monotonic() + _CHECKPOINT_S
        while wanted.isdisjoint(committed_steps(standing.run)):
            if time.monotonic() >= ends_s:
                _LOGGER.warning("trial %s: the checkpoint of its best epoch is not there yet", trial)
                return
            time.sleep(_LOOK_S)

    def end(self, trial: str, status: Status, reason: str = "") -> None:
        """Write down what became of a trial; MLflow first, so that what the journal calls ended is whole there.

        Raises:
            Superseded: the trial is another command's, and so is its entry.
        """
        standing = self._open[trial]
        if trial in self._owners:
            check_owner(standing.run, self._owners[trial])
        self._read_new(standing)
        self._tell_new(standing)
        assert standing.plan.config is not None
        if status == "stopped" and len(standing.records) == standing.plan.config.epochs:
            status = "finished"  # workers that were asked to end had just done so
        if status == "stopped":
            reason = reason or self._stopped[trial]
        assert standing.log is not None
        standing.log.end(status_of(status), {"status": status, "reason": reason})
        standing.run.delete(note_path(STOP, self._owners.get(trial, "")))
        entry = replace(standing.entry, status=status, reason=reason, mlflow_run_id=standing.log.run_id)
        if best := self.best_of(trial):
            epochs = standing.records[-1].epoch
            entry = replace(entry, epochs=epochs, val_top1=best.val_score, best_epoch=best.epoch)
        self._set(entry)
        del self._open[trial]
        if status == "failed":
            _LOGGER.warning("trial %s failed: %s", trial, reason)
        if self._progress is not None:
            self._progress.advance(1)

    def close(self, *, is_superseded: bool = False) -> None:
        """Mark the runs of trials that are still open as interrupted; a rerun of the sweep goes on with them.

        With `is_superseded`, or where that is so, another command does, and tells their status.
        """
        is_superseded = is_superseded or self.find_successor() is not None
        logs = [standing.log for standing in self._open.values() if standing.log is not None]
        if logs:  # side by side: each may wait some seconds for a server that hangs
            with ThreadPoolExecutor(len(logs), thread_name_prefix="interrupt") as pool:
                list(pool.map(lambda log: log.interrupt(keeps_status=is_superseded), logs))

    def tell_untold(self, *, tells_all: bool = False) -> int:
        """Tell MLflow of trials that ended while it was away; it is waited for, once.

        With `tells_all`, of every trial, whatever is known of what MLflow has. Returns how many epochs it had not.
        """
        num_new = 0
        for trial, run in self._ended_runs():
            if not (tells_all or run.exists(UNTOLD)):
                continue
            entry = self.entries[trial]
            log = self._log.open(entry, self._training_of(trial), run, is_over=True, patience_s=PATIENCE_S)
            log.begin()
            log.tell(self.records[trial])
            is_told = log.end(status_of(entry.status), {"status": entry.status, "reason": entry.reason})
            num_new += log.num_new
            self._set(replace(entry, mlflow_run_id=log.run_id))
            if not is_told:
                break
        return num_new

    def is_untold(self) -> bool:
        """Return whether MLflow lacks something of a trial that has ended."""
        return any(run.exists(UNTOLD) for _, run in self._ended_runs())

    def settle_models(self, winner: str) -> bool:
        """Have MLflow name the winner's checkpoints as models, and none of those that are about to be deleted.

        Returns whether MLflow knows.
        """
        for trial, run in self._ended_runs():
            log = self._log.open(self.entries[trial], self._training_of(trial), run, attach=True)
            if not log.settle_models(self.records[trial] if trial == winner else ()):
                _LOGGER.warning("MLflow may show models of trials whose checkpoints are deleted, until `resnet track`")
                return False
        return True

    def _ended_runs(self) -> list[tuple[str, Storage]]:
        """Return the folders of trials that MLflow knows, or is to know."""
        if not self._log.tracking.enabled:
            return []
        return [(trial, self.run_of(trial)) for trial in self.records if trial not in self._open]

    def _training_of(self, trial: str) -> TrainConfig:
        training = self._plans[trial].config
        assert training is not None
        return training

    def _resume(self, plan: TrialPlan) -> None:
        entry = self._journal.open(plan.trial, plan.params)
        if plan.config is None:
            if entry.status != "refused":
                entry = replace(entry, status="refused", reason=plan.refusal)
                self._journal.write(entry)
                _LOGGER.warning("trial %s is not run: %s", plan.trial, plan.refusal)
            self.entries[plan.trial] = entry
            return
        standing = _Trial(plan, entry, self.run_of(plan.trial))
        self.entries[plan.trial] = entry
        self.records[plan.trial] = standing.records
        self._read_new(standing)
        if not (entry.is_over or self._is_over):
            if entry.status == "failed":
                self._set(replace(entry, status="running", reason=""))
                standing.entry = self.entries[plan.trial]
            self._open[plan.trial] = standing

    def _replay(self, asha: Asha) -> None:
        """Give the rule what was recorded before; on trials that a crash left at a rung it decides at `claim`."""
        for trial, records in self.records.items():
            curve = [(record.epoch, record.val_score) for record in records]
            standing = self._open.get(trial)
            # Without its checkpoint, an epoch has to be done again before the trial can end there.
            if standing and records and records[-1].step in committed_steps(standing.run):
                self._undecided[trial] = curve.pop()
            asha.replay({trial: curve})

    def _decide_undecided(self) -> None:
        """End the trials that an earlier command left at a rung, where the rule says so."""
        for trial, (epoch, val_top1) in self._undecided.items():
            if self.should_stop(trial, epoch, val_top1):
                self.end(trial, "stopped")
        self._undecided.clear()

    def _read_new(self, standing: _Trial) -> None:
        while (record := read_record(standing.run, len(standing.records) + 1)) is not None:
            standing.records.append(record)

    def _tell_new(self, standing: _Trial) -> None:
        if standing.log is None:
            keep_environment(self._storage, standing.run)
            standing.log = self._log.open(standing.entry, self._training_of(standing.plan.trial), standing.run)
            standing.log.begin()
        if standing.log.run_id != standing.entry.mlflow_run_id:
            standing.entry = replace(standing.entry, mlflow_run_id=standing.log.run_id)
            self._set(standing.entry)
        standing.log.tell(standing.records)

    def _set(self, entry: TrialEntry) -> None:
        self._journal.write(entry)
        self.entries[entry.trial] = entry


def best_record(records: Sequence[EpochRecord], kept_steps: Collection[int] = ()) -> EpochRecord | None:
    """Return the epoch whose weights a training keeps: highest top-1 on val, then lowest loss, then the first.

    Where checkpoints of epochs stand (`kept_steps`), the best of those: what could not be written is not chosen.
    """
    kept = [record for record in records if record.step in kept_steps]
    return max(kept or records, key=lambda r: (r.val_score, -r.val_loss, -r.epoch), default=None)


def trial_job(
    plan: TrialPlan, run: Storage, *, owner: str, workers: int, cpus: int, use_gpu: bool, timeout_s: float
) -> str:
    """Return all that a trial's process needs to know, as JSON text."""
    assert isinstance(plan.config, TrainConfig)
    config = plan.config.model_copy(update={"num_workers": workers, "cpus_per_worker": cpus, "out": run.uri})
    return json.dumps(
        {
            "trial": plan.trial,
            "config": config.model_dump(mode="json"),
            "run": run.uri,
            "owner": owner,
            "cpus": cpus,
            "use_gpu": use_gpu,
            "timeout_s": timeout_s,
        }
    )
