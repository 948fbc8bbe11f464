"""Ray Tune's part: it places trials on the cluster, runs them side by side, and is told which to end.

Nothing that Tune writes is kept: its folder is a temporary one, and a resumed sweep is a new Tune run over the trials
that the journal does not call ended.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pipelines import capacity
from pipelines.errors import Superseded
from pipelines.progress import Progress
from pipelines.ray_runtime import RaySession
from pipelines.redact import is_secret_name
from pipelines.train.group import choose_gpu
from pipelines.train.worker import rebuild_failure
from pipelines.tune.config import TuneConfig
from pipelines.tune.sweep import Sweep, trial_job
from pipelines.tune.trial import JOB, TrialActor, make_driver

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files that nobody would read
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep at once; it is resumed from the journal
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Share:
    """What each trial gets of the cluster, and how many run at once."""

    cpus: int
    """CPUs of each training process."""
    use_gpu: bool
    concurrency: int


def run_trials(config: TuneConfig, sweep: Sweep, session: RaySession, begin: Callable[[], None]) -> None:
    """Run every trial that has not ended, until all have.

    Args:
        config: the sweep.
        sweep: its state.
        session: the Ray that is connected.
        begin: takes the sweep for this command; called when nothing is left that may refuse it.

    Raises:
        ClusterError: not even one trial fits the cluster.
        Superseded: another sweep runs in the folder now.
        PipelineError: journal or tracking store refused; the sweep can be resumed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    keep_secrets_out_of_tune()
    share = divide(config, len(sweep.unfinished()), session)
    begin()
    jobs = [
        trial_job(
            plan,
            sweep.run_of(plan.trial),
            owner=sweep.owner_of(plan.trial),
            workers=config.workers_per_trial,
            cpus=share.cpus,
            use_gpu=share.use_gpu,
            timeout_s=config.epoch_timeout_s,
        )
        for plan in sweep.unfinished()
    ]
    if not jobs:  # the last of them ended by what stood in its folder
        return
    observer = _Observer(sweep)
    scratch = tempfile.mkdtemp(prefix="resnet-tune-")
    try:
        with Progress(len(sweep.entries), label="tune", unit="trials") as progress:
            sweep.show(progress)
            scheduler = _Scheduler(sweep, observer, gently=config.workers_per_trial > 1)
            _make_tuner(config, share, session, jobs, scheduler, observer, scratch).fit()
        if observer.fault is not None:
            raise observer.fault
    finally:
        sweep.close(is_superseded=isinstance(observer.fault, Superseded))
        shutil.rmtree(scratch, ignore_errors=True)


def keep_secrets_out_of_tune() -> None:
    """Keep Tune from copying storage secrets into its actors' runtime environment, which Ray logs in the clear.

    Trials get them as every worker does, from the hook of `ray_runtime`, or inherit them.
    """
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
        [name for name in class_cache.ENV_VARS_TO_PROPAGATE if is_secret_name(name)]
    )


def divide(config: TuneConfig, num_trials: int, session: RaySession) -> Share:
    """Share the cluster out over the trials that are left.

    One CPU for each of many trials does more in the same time than many CPUs for each of a few; so CPUs are doubled
    up only where there are more of them than trials.

    Raises:
        ClusterError: not even one trial fits.
    """
    workers = config.workers_per_trial
    at_once = min(num_trials, config.max_concurrent_trials or num_trials)
    training = config.train.model_copy(update={"num_workers": workers})
    use_gpu = choose_gpu(training, session)
    if use_gpu:
        at_once = min(at_once, max(1, math.floor(session.num_gpus / workers)))
    cpus = capacity.cpus_per_worker(
        at_once * workers, session.num_cpus, requested=config.cpus_per_worker, node_cpus=session.node_cpus
    )
    if workers > 1:
        return Share(cpus, use_gpu, capacity.tune_concurrency(session.num_cpus, workers, cpus, limit=at_once))
    largest = max(session.node_cpus, default=session.num_cpus)  # a process cannot span two nodes
    capacity.check_fits(what="a trial of one worker", need={"CPU": float(cpus)}, have={"CPU": largest})
    return Share(cpus, use_gpu, max(1, min(at_once, math.floor(session.num_cpus / cpus))))


def _make_tuner(
    config: TuneConfig,
    share: Share,
    session: RaySession,
    jobs: list[str],
    scheduler: TrialScheduler,
    observer: Callback,
    scratch: str,
) -> tune.Tuner:
    if config.workers_per_trial == 1:
        trainable: Any = TrialActor
        resources = {"cpu": float(share.cpus)} | ({"gpu": 1.0} if share.use_gpu else {})
    else:
        trainable = make_driver(session)
        resources = {"cpu": capacity.DRIVER_CPUS}
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={JOB: tune.grid_search(jobs)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=share.concurrency,
            reuse_actors=config.workers_per_trial == 1,
            trial_name_creator=lambda trial: f"trial-{trial.trial_id}",
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=scratch,
            verbose=0,
            callbacks=[observer],
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


class _Observer(Callback):  # type: ignore[misc]  # Ray is untyped here
    """Tells the sweep what Tune sees. A fault of our own is kept and raised after Tune has wound down."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.fault: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings into a folder that is thrown away

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Pick up the records behind a report."""
        if taken := result.get("superseded"):
            self.fault = self.fault or rebuild_failure(taken)
        self.tell(lambda: self.sweep.follow(_name(trial)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Write down how a trial ended."""
        name, last = _name(trial), trial.last_result
        if failure := last.get("failure"):
            self.tell(lambda: self.sweep.end(name, "failed", failure))
        elif self.sweep.is_stopped(name):
            self.tell(lambda: self.sweep.await_best(name))
            self.tell(lambda: self.sweep.end(name, "stopped"))
        else:
            self.tell(lambda: self.sweep.end(name, "finished"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Write down that a trial's process died too often."""
        lines = str(trial.get_pickled_error() or "its process died").strip().splitlines()
        attempts = trial.run_metadata.num_failures
        self.tell(lambda: self.sweep.end(_name(trial), "failed", f"{lines[-1].strip()} ({attempts} attempts)"))

    def tell(self, act: Any) -> None:
        """Have the sweep do something, unless it is broken already."""
        if self.fault is not None:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised again by run_trials; inside Tune it would count as a trial's
            self.fault = error


class _Scheduler(FIFOScheduler):  # type: ignore[misc]  # Ray is untyped here
    """Ends a trial when the sweep says so, and all of them once something of ours is broken.

    Args:
        gently: ask a trial's workers to end instead of ending the process that drives them. If Tune ended it, the
            workers' CPUs would stay reserved: what frees them then (Train's placement group cleaner) asks the
            dashboard, which an embedded cluster has none of, and the next trial would wait for ever.
    """

    def __init__(self, sweep: Sweep, observer: _Observer, *, gently: bool) -> None:
        super().__init__()
        self.sweep = sweep
        self.observer = observer
        self.gently = gently

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide after an epoch."""
        if self.observer.fault is not None:
            return str(TrialScheduler.STOP)
        name = _name(trial)
        if "val_top1" not in result or not self.sweep.should_stop(name, result["epoch"], result["val_top1"]):
            return str(TrialScheduler.CONTINUE)
        if not self.gently:
            return str(TrialScheduler.STOP)
        self.observer.tell(lambda: self.sweep.ask_to_end(name))
        return str(TrialScheduler.CONTINUE)


def _name(trial: Any) -> str:
    return str(json.loads(trial.config[JOB])["trial"])
