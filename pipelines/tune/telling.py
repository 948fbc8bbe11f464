"""What MLflow is told of a sweep and its trials: each is a training below the sweep's run, told as trainings are.

The trials' folders are the truth. While MLflow is away at a trial's end, a note in its folder says so, and the end of
the sweep tells it, of whatever command; later `resnet track` does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import NotFound, StorageError
from pipelines.plots.params import describe_params
from pipelines.storage import Storage
from pipelines.tracking import RUN_KEY_TAG, RunLog, RunStatus, TrackingConfig
from pipelines.tracking_records import Point, points_record
from pipelines.train.config import TrainConfig
from pipelines.train.environment import PATH as ENVIRONMENT
from pipelines.train.plan import TrainPlan
from pipelines.train.records import EpochRecord, work_span
from pipelines.train.teller import Teller, run_key
from pipelines.tune.journal import Status, TrialEntry
from pipelines.tune.plan import TunePlan

_LOGGER = logging.getLogger(__name__)

UNTOLD = "_work/untold.json"
"""Stands in the folder of a trial that has ended and of which MLflow lacks something."""


@dataclass(frozen=True)
class SweepLog:
    """Where trials are recorded in MLflow: below the sweep's own run."""

    tracking: TrackingConfig
    parent: Callable[[], str]
    """Gives the id of the sweep's run: empty while MLflow has been away from the start."""
    key: str
    """Key of the sweep at its place; with the trial's name it finds the trial's run again."""
    dataset: str = ""
    """Address and version of the data of all trials."""
    inputs: Mapping[str, str] = field(default_factory=lambda: {"dataset": ""})
    started_s: float = 0.0
    """Unix time at which the sweep was begun first; samples of what machines did are counted from there."""

    def open(
        self,
        entry: TrialEntry,
        training: TrainConfig,
        run: Storage,
        *,
        attach: bool = False,
        is_over: bool = False,
        patience_s: float = 0.0,
    ) -> TrialLog:
        """Create or resume a trial's run; with `attach`, add to one that has ended.

        Args:
            entry: the trial as far as it has come.
            training: its config.
            run: its folder.
            attach: leave status and times of the run as they are.
            is_over: the trial has ended some time ago, which its records say.
            patience_s: seconds that the end of the run waits for a server that is away.
        """
        key_tag = {RUN_KEY_TAG: f"{self.key}-{entry.trial}"}
        sampled = describe_params(entry.params)
        log = RunLog.open(
            self.tracking,
            run_name=f"trial {entry.trial}",
            run_id=entry.mlflow_run_id,
            parent_run_id=self.parent(),  # attached too: it may have been begun when the sweep had no run yet
            tags=key_tag if attach else {**key_tag, "stage": "trial", "trial": entry.trial, "sampled": sampled},
            attach=attach,
            span_s=work_span(run) if is_over else None,
            is_background=not attach,
            patience_s=patience_s,
            is_met=True,
        )
        config = training.model_copy(update={"tracking": self.tracking, "out": run.uri})
        plan = TrainPlan("trial", f"{self.key}-{entry.trial}", dict(self.inputs), run.uri, dataset=self.dataset)
        return TrialLog(log, Teller(log, run, config, plan, self.started_s), run)


class TrialLog:
    """The MLflow run of one trial."""

    def __init__(self, log: RunLog, teller: Teller, run: Storage) -> None:
        self._log = log
        self._teller = teller
        self._run = run
        self._num_told = 0
        self.num_new = 0
        """Epochs told that MLflow had not."""

    @property
    def run_id(self) -> str:
        """Id of the run; empty while MLflow has been away from the start, or nothing is tracked."""
        return self._log.run_id

    def begin(self) -> None:
        """Tell the trial's settings, and look at its folder from now on."""
        self._teller.begin()
        self._log.log_tags({"mlflow.source.name": "resnet tune"})
        self._teller.tell_start()
        self._teller.follow()

    def tell(self, records: Sequence[EpochRecord]) -> None:
        """Tell the epochs that were not told yet; those that MLflow has are left alone."""
        for record in records[self._num_told :]:
            self.num_new += self._teller.tell_epoch(record)
            self._num_told += 1

    def end(self, status: RunStatus, tags: Mapping[str, str]) -> bool:
        """Tell what is left in the folder, and close the run; return whether MLflow has all, else a note stands."""
        is_whole = True
        try:
            # Which checkpoints stay is known at the end of the sweep, and outputs of a run cannot be taken back.
            self._teller.tell_rest(are_models_final=False)
        except StorageError as error:
            _LOGGER.warning("what the trial in %s left cannot be told to MLflow yet: %s", self._run.uri, error)
            is_whole = False
        self._log.log_tags(tags)
        self._log.end(status, waits=True)  # a failed trial is told as a finished one is
        if is_whole and not self._log.num_waiting:
            self._run.delete(UNTOLD)
            return True
        self._run.put(UNTOLD, b"{}")
        return False

    def interrupt(self, *, keeps_status: bool = False) -> None:
        """Close the run of a trial that a rerun of the sweep goes on with, or with `keeps_status` somebody else."""
        self._teller.close()
        if keeps_status:
            self._log.leave()
        self._log.end("KILLED")

    def settle_models(self, kept: Sequence[EpochRecord]) -> bool:
        """Tell which models the ended trial is left with; return whether MLflow knows.

        Args:
            kept: records of the epochs whose checkpoints stay, as far as they stand; none: the models go.
        """
        self._teller.settle_models(kept)
        self._log.end()
        return not self._log.num_waiting


def keep_environment(sweep: Storage, run: Storage) -> None:
    """Keep with a trial by what its sweep trains; no trial ends for want of it."""
    try:
        run.put(ENVIRONMENT, sweep.read(ENVIRONMENT))
    except NotFound:  # begun by an earlier release
        return
    except StorageError as error:
        _LOGGER.warning("by what a trial is trained cannot be written down: %s", error)


def status_of(entry_status: Status) -> RunStatus:
    """Return how the MLflow run of a trial ends."""
    return "FAILED" if entry_status == "failed" else "FINISHED"


def sweep_log(
    tracking: TrackingConfig, log: RunLog, plan: TunePlan, store: Storage, standing: Mapping[str, Any]
) -> SweepLog:
    """Return where the trials of a sweep are recorded, whose own run is `log`'s."""
    started_s = float(standing.get("started_s", 0.0))  # an earlier release wrote none
    return SweepLog(tracking, log.reach, run_key(plan, store), plan.dataset, plan.inputs, started_s)


def tell_outcome(
    log: RunLog, pictures: Mapping[str, bytes], board: Sequence[Any], best: Mapping[str, Any], weights_sha256: str
) -> None:
    """Tell what a sweep came to.

    Args:
        log: its run.
        pictures: by path.
        board: its trials, as the catalog lists them.
        best: the winner, as the catalog has it.
        weights_sha256: of the winner's model.
    """
    for path, data in pictures.items():
        log.log_file(path, data)
    log.log_file("trials.json", json.dumps(board, indent=1).encode())
    figures = {"best_val_top1": best["val_top1"], "best_epoch": best["epoch"]}
    log.put(points_record([Point(0, figures)], may_stand=True, exact=figures))  # of a sweep killed before the catalog
    log.log_params({"best": {"trial": best["trial"], **best["params"]}})
    log.log_tags({"weights_sha256": weights_sha256, "best_trial": best["trial"]})
