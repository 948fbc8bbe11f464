"""Tells a run's log what appears in the run's folder, so that MLflow holds what the folder says and nothing else.

The folder is the truth: epochs, steps, what machines did and which checkpoints are kept are read from it, during the
training by a thread of the driver and later by `resnet track`, to the same end. No step and no epoch waits for it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from pipelines.errors import DataError, NotFound, PipelineError, StorageError
from pipelines.metrics.deciding import find_deciding
from pipelines.stage_output import Plan
from pipelines.storage import Storage
from pipelines.tracking import RUN_KEY_TAG, RunLog, TrackingConfig
from pipelines.tracking_models import ModelSet, RankedModel
from pipelines.tracking_records import Point, points_record
from pipelines.train.checkpoint import commit_path, committed_steps
from pipelines.train.config import TrainConfig
from pipelines.train.environment import PATH as ENVIRONMENT
from pipelines.train.environment import environment_tags, read_environment
from pipelines.train.plan import TrainPlan
from pipelines.train.records import EpochRecord
from pipelines.train.samples import SampleReader
from pipelines.train.step_log import StepLog, read_step_log
from pipelines.train.step_points import step_points

_LOGGER = logging.getLogger(__name__)

_LOOK_S = 5.0
"""Seconds between two looks at what is known to be coming: the step logs of epochs that were told."""
_LIST_S = 30.0
"""Seconds between two looks at what must be listed: samples and checkpoints."""
_LONGEST_LOOK_S = 60.0
_MOST_LOOKS = 60
"""Looks at the step log of an epoch that does not come; after these it is looked for once more, at the run's end."""

PATIENCE_S = 90.0
"""Seconds that work which is done waits for an MLflow server that is away, once; after that `resnet track` delivers."""

MODEL_TYPE = "resnet-pipelines checkpoint"


@dataclass
class _Due:
    """The steps of an epoch, which are to be told."""

    may_stand: bool
    """Whether MLflow may have them already."""
    looks: int = 0


class Teller:
    """Tells `log` of a run; entered, it looks from a thread of its own until it is left, and then once more.

    Args:
        log: the run's log.
        run: storage of the run.
        config: the run as it is done: found batch size and rate included.
        plan: what names the run and its data.
        started_s: Unix time at which the run was begun first.
    """

    def __init__(self, log: RunLog, run: Storage, config: TrainConfig, plan: TrainPlan, started_s: float) -> None:
        self._log = log
        self._run = run
        self._config = config
        self._dataset, self._fingerprint = plan.dataset, plan.inputs["dataset"]
        self._records: dict[int, EpochRecord] = {}
        self._told_before: set[int] = set()
        self._handed: set[int] = set()  # epochs, those that the run went back behind too
        self._due: dict[int, _Due] = {}
        self._samples = SampleReader(run, started_s)
        self._models = ModelSet(run_key(plan, run), MODEL_TYPE, (dataset_name(self._dataset), self._fingerprint))
        self._changed = threading.Lock()
        self._looking = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="teller", daemon=True)
        self._is_started = self._is_complete = self._has_told_environment = False
        self._warned: set[type[PipelineError]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the looking, and look once more."""
        self._end_thread()
        if self._is_started:
            self._look_safely()

    def tell_start(self) -> None:
        """Tell the settings and the data."""
        values = self._config.model_dump(mode="json", exclude={"tracking", "ray"})
        tell_settings(self._log, values, dataset=self._dataset, fingerprint=self._fingerprint)

    def begin(self) -> None:
        """Begin to tell: the run is open, and what it holds is asked for."""
        self._told_before = self._log.logged_steps("train_loss")
        try:
            self._tell_environment()
        except StorageError as error:
            self._warn(error)

    def follow(self) -> None:
        """Look at the folder from time to time."""
        if self._config.tracking.enabled and not self._is_started:
            self._is_started = True
            self._thread.start()

    def tell_epoch(self, record: EpochRecord) -> bool:
        """Tell an epoch's figures unless MLflow has them, its steps a little later; return whether it had none."""
        if self._records.get(record.epoch) not in (None, record):
            self._forget(from_epoch=record.epoch)
        is_new = record.epoch not in self._told_before
        # Those that stand are held against: an earlier command may have told a try that the run went back behind.
        point = Point(record.epoch, record.metrics())
        decisive = record.val_figures()
        self._log.put(points_record([point], may_stand=not is_new, told_by="train_loss", exact=decisive))
        with self._changed:  # last: a model of this epoch takes its figures from those that stand in the run
            self._due[record.epoch] = _Due(may_stand=record.epoch not in self._handed)
            self._handed.add(record.epoch)
            self._records[record.epoch] = record
        return is_new

    def _forget(self, *, from_epoch: int) -> None:
        """Forget what was told of epochs that the run has gone back behind: they come anew, or not at all."""
        with self._changed:
            self._records = {epoch: record for epoch, record in self._records.items() if epoch < from_epoch}
            self._due = {epoch: due for epoch, due in self._due.items() if epoch < from_epoch}
        self._told_before = {epoch for epoch in self._told_before if epoch < from_epoch}

    def tell_best(self, best: Mapping[str, Any], weights_sha256: str, *, step: int) -> None:
        """Tell which epoch's weights are kept."""
        deciding = find_deciding(best, "val_")
        figures = {f"best_{deciding}": best[deciding], "best_epoch": best["epoch"]}
        # Those of a command killed before the catalog may stand; it may have kept another epoch, damaged since.
        self._log.put(points_record([Point(step, figures)], may_stand=True, exact=figures))
        self._log.log_tags({"weights_sha256": weights_sha256})

    def tell_rest(self, *, are_models_final: bool = True) -> None:
        """Tell everything that stands in the folder of a run that is over.

        Args:
            are_models_final: no checkpoint will be dropped any more; else `settle_models` is called later.

        Raises:
            StorageError: the folder cannot be read.
        """
        self._end_thread()
        if self._config.tracking.enabled:
            self._look(is_final=True, are_models_final=are_models_final)
        self._is_complete = True

    def settle_models(self, kept: Sequence[EpochRecord]) -> None:
        """Tell which models a run that is over and told ends up with: the best of `kept` first, or none.

        Raises:
            StorageError: the folder cannot be read.
        """
        with self._changed:
            self._records = {record.epoch: record for record in kept}
        if self._config.tracking.enabled:
            self._tell_checkpoints(is_final=bool(kept))

    def tell_last(self) -> None:
        """Tell everything as far as the folder can be read: a training that is done is published all the same."""
        try:
            self.tell_rest()
        except StorageError as error:
            self._is_complete = True
            _LOGGER.warning("MLflow lacks a part of what the run's folder holds; `resnet track` tells it: %s", error)

    def _end_thread(self) -> None:
        self._ended.set()
        if self._is_started:
            self._thread.join(_LONGEST_LOOK_S)

    def _work(self) -> None:
        listed_s = time.monotonic()
        while not self._ended.wait(_LOOK_S):
            must_list = time.monotonic() - listed_s >= _LIST_S
            if must_list:
                listed_s = time.monotonic()
            self._look_safely(must_list=must_list)

    def _look_safely(self, *, must_list: bool = True) -> None:
        """Look, unless all is told; storage that cannot be read is looked at again, at last by `resnet track`."""
        if self._is_complete:
            return
        try:
            self._look(must_list=must_list)
        except StorageError as error:
            self._warn(error)

    def _warn(self, error: PipelineError) -> None:
        if type(error) not in self._warned:
            self._warned.add(type(error))
            _LOGGER.warning("what the run's folder holds cannot be told to MLflow yet: %s", error)

    def _look(self, *, must_list: bool = True, is_final: bool = False, are_models_final: bool = True) -> None:
        with self._looking:
            self._tell_steps(is_final=is_final)
            if must_list:
                self._tell_environment()
                self._tell_checkpoints(is_final=is_final and are_models_final)
                while points := self._samples.read_new():  # last: they keep nothing else back
                    # A sample that an earlier command saw may have been sent: those that stand are asked for.
                    self._log.put(points_record(points, may_stand=True))

    def _tell_environment(self) -> None:
        if self._has_told_environment:
            return
        environment = read_environment(self._run)
        if environment is not None:  # an earlier release kept none
            self._log.log_tags(environment_tags(environment))
            self._log.log_file(ENVIRONMENT, self._run.read(ENVIRONMENT))
        self._has_told_environment = True

    def _tell_steps(self, *, is_final: bool) -> None:
        with self._changed:
            all_due = [(self._records[epoch], due) for epoch, due in self._due.items()]
        for record, due in all_due:
            if due.looks >= _MOST_LOOKS and not is_final:
                continue
            steps = self._read_steps(record.epoch)
            due.looks += 1
            if steps is None:  # written after the record
                continue
            points = step_points(steps, self._config, steps_per_epoch=record.step // record.epoch)
            rate = points[-1].figures["step_lr"] if points else record.lr
            if not (is_final or math.isclose(rate, record.lr, rel_tol=1e-6)):
                continue  # those of a try that was gone back behind; its record is replaced a moment earlier
            self._log.put(points_record(points, may_stand=due.may_stand, told_by="step_loss"))
            with self._changed:
                if self._due.get(record.epoch) is due:
                    del self._due[record.epoch]

    def _read_steps(self, epoch: int) -> StepLog | None:
        try:
            return read_step_log(self._run, epoch)
        except DataError as error:  # curves of the others are drawn
            self._warn(error)
            return None

    def _tell_checkpoints(self, *, is_final: bool) -> None:
        """Tell which checkpoints are kept, the best first.

        Only those of an epoch's end: one in the middle has no figures to be ranked by and serves resuming alone.
        """
        with self._changed:
            by_step = {record.step: record for record in self._records.values()}
        kept: list[tuple[EpochRecord, str]] = []
        for step in committed_steps(self._run):
            if step in by_step:
                try:
                    commit = self._run.read(commit_path(step))
                except NotFound:  # dropped a moment ago
                    continue
                kept.append((by_step[step], hashlib.sha256(commit).hexdigest()))
        kept.sort(key=lambda each: (-each[0].val_score, each[0].val_loss, each[0].epoch))
        record = self._models.replace(self._describe(kept), is_final=is_final)
        if record is not None:
            self._log.put(record)

    def _describe(self, kept: Sequence[tuple[EpochRecord, str]]) -> list[RankedModel]:
        models = []
        for record, digest in kept:
            folder = commit_path(record.step).rpartition("/")[0]
            figures = record.val_figures()
            models.append(
                RankedModel(
                    name=f"epoch-{record.epoch:04d}",
                    identity=digest,
                    step=record.epoch,
                    metrics=figures,
                    params={
                        "epoch": str(record.epoch),
                        "step": str(record.step),
                        "ranked_by": find_deciding(figures, "val_"),
                    },
                    tags={"resnet.checkpoint": self._run.address(folder)},
                )
            )
        return models


def open_log(
    tracking: TrackingConfig,
    plan: Plan,
    run: Storage,
    standing: Mapping[str, Any],
    *,
    span_s: tuple[float, float] | None = None,
    is_background: bool = False,
) -> RunLog:
    """Return the log of a training or a sweep, to be begun when there is time; a standing MLflow run is gone on with.

    Args:
        tracking: where it is recorded.
        plan: what names it.
        run: its folder.
        standing: its `run.json`.
        span_s: when its work was done, where it is over (`RunLog.open`).
        is_background: a thread sends.
    """
    return RunLog.open(
        tracking,
        run_name=f"{plan.stage} {Path(run.uri).name}",
        run_id=str(standing.get("mlflow_run_id", "")),
        tags=run_tags(plan, run),
        span_s=span_s,
        is_background=is_background,
        is_deferred=True,
        patience_s=PATIENCE_S,
    )


def tell_settings(log: RunLog, values: Mapping[str, Any], *, dataset: str, fingerprint: str) -> None:
    """Tell what a training or a sweep is done with.

    Args:
        log: its run.
        values: its settings.
        dataset: address and version of the data.
        fingerprint: of the data.
    """
    log.log_params({name: value for name, value in values.items() if name != "out"})  # a tag says where
    log.log_file("config.yaml", yaml.safe_dump(dict(values), sort_keys=False).encode())
    log.log_dataset(dataset_name(dataset), dataset, fingerprint, "training")


def dataset_name(dataset: str) -> str:
    """Return what a dataset is called in MLflow, from its address and version."""
    return Path(dataset.rpartition("@")[0]).name


def run_key(plan: Plan, run: Storage) -> str:
    """Return what finds a run again in MLflow: its key and its place, since the same training may be done in two."""
    return f"{plan.key}-{hashlib.sha256(run.uri.encode()).hexdigest()[:16]}"


def run_tags(plan: Plan, run: Storage) -> dict[str, str]:
    """Return the tags by which a run is found."""
    return {RUN_KEY_TAG: run_key(plan, run), "stage": plan.stage, "key": plan.key, "out": run.uri}
