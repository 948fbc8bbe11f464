"""Runs `fit` in Ray Train workers and follows it from here."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines import capacity
from pipelines.errors import ClusterError, ConfigError, PipelineError, StorageError, Unfinished
from pipelines.ray_runtime import RaySession
from pipelines.storage import Storage
from pipelines.train import startup
from pipelines.train.checkpoint import committed_steps
from pipelines.train.config import TrainConfig
from pipelines.train.follow import Follower
from pipelines.train.notice import DRIVER_POLL_S, NOTICE, catching_sigterm
from pipelines.train.owner import Claim, check_owner, note_path
from pipelines.train.records import EpochRecord
from pipelines.train.worker import FAILURE, STOP, read_failure, rebuild_failure, train_worker

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_LOGGER = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Deaths of workers in a row that a run survives; each costs the work since the last checkpoint and a restart. Ray
counts them; where it gives up and a checkpoint has come since it began to count, it begins anew (`_Fitting`)."""
RAY_MODULES = ("ray.train.v2.api.data_parallel_trainer", "pipelines.train.ray_backend")
"""What `train_in_workers` imports of Ray: 2 s, in which Ray's processes come up as well."""
_POLL_S = DRIVER_POLL_S
_NOTES = (STOP, FAILURE, NOTICE)
_LONGEST_REFUSAL_S = 10.0
"""Seconds within which what may refuse the command has done so; a server that hangs refuses nothing."""


@dataclass(frozen=True)
class Ended:
    """How the workers ended."""

    returned: dict[str, Any]
    """What rank 0 returned."""
    was_told: bool
    """Whether SIGTERM came to this process."""


def train_in_workers(
    config: TrainConfig,
    run: Storage,
    session: RaySession,
    *,
    on_epoch: Callable[[EpochRecord], bool] | None = None,
    meanwhile: Callable[[], object] = lambda: None,
    inside_tune: bool = False,
    ends_at_s: float = math.inf,
    claim: Claim | None = None,
    owner: str = "",
    window: Mapping[str, int] | None = None,
) -> Ended:
    """Train in `config.num_workers` Ray Train workers until all epochs are done, or something ends the run.

    The calling thread follows the run, so `on_epoch` is called in it. A worker that dies is replaced, and the group
    goes on from its newest checkpoint.

    Args:
        config: the run, its dataset pinned and absolute.
        run: storage of the run; every worker must reach it.
        session: the Ray that is connected.
        on_epoch: called with each epoch's record, earlier ones of a resumed run first; False ends the run.
        meanwhile: done in a thread while the workers come up, before any `on_epoch`; what it raises ends the run.
        inside_tune: ask for a little less than whole CPUs, so that the trial's driver fits beside its workers.
        ends_at_s: Unix time at which the run leaves a checkpoint and stops.
        claim: the command's claim on the run, made once `meanwhile` has refused nothing; None: one of its own.
        owner: token of the command, where it has claimed the run already (`claim_run`): word that it has left for the
            workers stands then, from an attempt before.
        window: which steps to do once more, instead of training (`loop.replay`).

    Raises:
        ClusterError: the workers do not fit the cluster, or died too often without a new checkpoint.
        Superseded: another command has claimed the run.
        PipelineError: what ended the training.
    """
    use_gpu = choose_gpu(config, session)
    cpus = capacity.cpus_per_worker(
        config.num_workers, session.num_cpus, requested=config.cpus_per_worker, node_cpus=session.node_cpus
    )
    resources = capacity.worker_resources(cpus, use_gpu=use_gpu, inside_tune=inside_tune)
    least = fewest_workers(config)
    capacity.check_fits(
        what=f"training with {least} workers",
        need={name: amount * least for name, amount in resources.items()},
        have={"CPU": session.num_cpus, "GPU": session.num_gpus},
    )
    capacity.check_places(
        what=f"training with {least} workers",
        workers=least,
        cpus=resources["CPU"],
        node_cpus=session.node_cpus,
    )
    if owner:
        check_owner(run, owner)
        claim = None
    elif window is None:
        claim = claim or Claim(run)
    owner = claim.token if claim else owner or secrets.token_hex(16)  # a replay leaves the run to whoever has it
    settings: dict[str, Any] = {
        "config": config.model_dump_json(),
        "run": run.uri,
        "threads": cpus,
        "use_gpu": use_gpu,
        "ends_at_s": ends_at_s,
        "owner": owner,
        "awaits_claim": claim is not None,
    }
    if window:
        settings["window"] = dict(window)

    def on_record(record: EpochRecord) -> None:
        if claim and claim.find_successor():
            return  # it may be the newer command's record; the workers of this one end in a moment
        if on_epoch is not None and not on_epoch(record):
            run.put(note_path(STOP, owner), b"{}")

    # Ray writes its own notes where the driver is and nowhere else as long as nothing is reported to it (its storage
    # is checked by the driver and by uploads of checkpoints only), so a folder here serves for any number of nodes.
    scratch = tempfile.mkdtemp(prefix="resnet-train-")
    try:
        startup.mark("workers asked for")
        settings["marks"] = startup.marks()
        fitting = _Fitting(
            lambda: _make_trainer((least, config.num_workers), resources, settings, scratch),
            run,
            owner,
        )
        is_passed_on = False
        # A replay leaves no checkpoint, and so nothing is gained by letting it go on.
        catching = nullcontext(threading.Event()) if window else catching_sigterm()
        with catching as told, ThreadPoolExecutor(1) as beside, Follower(run, on_record) as follower:
            doing, begun_s = beside.submit(meanwhile), time.monotonic()
            while not fitting.is_done(_POLL_S):
                if has_begun := doing.done():
                    doing.result()
                is_time = has_begun or time.monotonic() - begun_s > _LONGEST_REFUSAL_S
                if claim and not claim.is_made and is_time:
                    claim.make(_NOTES)
                if has_begun:
                    follower.poll()
                if told.is_set() and not is_passed_on:
                    is_passed_on = _pass_on(run, owner)
            doing.result()
        _raise_failure(run, owner, fitting)
        return Ended(fitting.returned, was_told=told.is_set())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if claim or window:  # a trial may be tried again, and then finds what was left
            with suppress(StorageError):
                run.delete(*(note_path(note, owner) for note in _NOTES))


def _pass_on(run: Storage, owner: str) -> bool:
    """Leave the workers word that they are to end; return whether it is there, else it is tried again."""
    try:
        run.put(note_path(NOTICE, owner), b"{}")
    except StorageError as error:
        _LOGGER.warning("the workers cannot be told to end yet; trying again: %s", error)
        return False
    return True


def fewest_workers(config: TrainConfig) -> int:
    """Return how many workers a run needs at least."""
    return config.min_workers or config.num_workers


def choose_gpu(config: TrainConfig, session: RaySession) -> bool:
    """Return whether workers get GPUs; a GPU that lies idle is said aloud.

    Raises:
        ConfigError: GPUs are asked for and there are not enough.
    """
    if config.use_gpu is False:
        return False
    if config.use_gpu is True and session.num_gpus < fewest_workers(config):
        raise ConfigError(
            f"use_gpu is true for {fewest_workers(config)} workers, and the cluster has {session.num_gpus:g} GPUs",
            mend="set use_gpu=false, or lower num_workers",
        )
    if session.num_gpus < fewest_workers(config) and not _has_nvidia_driver():
        return False  # without importing torch, for which nothing else waits here
    if session.num_nodes == 1:  # workers run on this machine, with this torch
        if config.use_gpu is True:
            capacity.check_gpu(use_gpu=True)
        elif not warn_unusable_gpu():
            return False
    return session.num_gpus >= fewest_workers(config)


def warn_unusable_gpu() -> bool:
    """Return whether torch can use a GPU on this machine; warn where one is there that it cannot use."""
    import torch

    if torch.cuda.is_available():
        return True
    if _has_nvidia_driver():
        _LOGGER.warning(
            "an NVIDIA driver is loaded, but torch %s can use no GPU: training runs on CPUs; `resnet doctor` says more",
            torch.__version__,
        )
    return False


def _has_nvidia_driver() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")


class _Fitting:
    """`trainer.fit()` in a thread, so that the caller's thread can follow the run and be interrupted.

    A run of days on machines that are taken away loses many workers: deaths count only as long as it gets no further.

    Args:
        make_trainer: makes Ray's trainer, anew for every time that it is fitted.
        run: storage of the run.
        owner: token of the command.
    """

    def __init__(self, make_trainer: Callable[[], DataParallelTrainer], run: Storage, owner: str) -> None:
        self.returned: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._make_trainer, self._run_storage, self._owner = make_trainer, run, owner
        trainer = make_trainer()
        # A daemon: after an interrupt nobody waits for it, and Ray's shutdown ends what it waits for.
        self._thread = threading.Thread(target=self._run, args=(trainer,), name="trainer", daemon=True)
        self._thread.start()

    def is_done(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, trainer: DataParallelTrainer) -> None:
        try:
            safe_step = _safe_step(self._run_storage)
            while True:
                try:
                    self.returned = trainer.fit().return_value or {}
                    return
                except Exception as error:
                    reached = _step_to_go_on_from(self._run_storage, self._owner, error)
                    if reached <= safe_step:
                        raise
                    _LOGGER.warning(
                        "workers died more than %d times, and the run came as far as step %d meanwhile: it goes on",
                        *(MAX_FAILURES, reached),
                    )
                    safe_step, trainer = reached, self._make_trainer()
        except BaseException as error:  # noqa: BLE001 - a thread's boundary; the caller's thread raises it again
            self.error = error


def _safe_step(run: Storage) -> int:
    """Return the step of the newest checkpoint; -1 without one."""
    return max(committed_steps(run), default=-1)


def _step_to_go_on_from(run: Storage, owner: str, error: Exception) -> int:
    """Return the step of the newest checkpoint where workers only died, or were told to end; else -1."""
    causes = [_cause(failure) for failure in getattr(error, "worker_failures", {}).values()]
    if not causes or any(isinstance(cause, PipelineError) and not isinstance(cause, Unfinished) for cause in causes):
        return -1  # something is wrong with the run
    try:
        is_called_off = any(run.exists(note_path(note, owner)) for note in _NOTES)
        return -1 if is_called_off else _safe_step(run)
    except StorageError:  # the error that ended the workers says more
        return -1


def _cause(failure: BaseException) -> BaseException:
    """Return what a worker raised, which Ray wraps."""
    cause: BaseException = getattr(failure, "_base_exc", failure)
    return cause


def _make_trainer(
    workers: tuple[int, int], resources: dict[str, float], settings: dict[str, Any], scratch: str
) -> DataParallelTrainer:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from pipelines.train.ray_backend import WorkerConfig

    return DataParallelTrainer(
        train_worker,
        train_loop_config=settings,
        backend_config=WorkerConfig(has_group=workers[1] > 1 or "GPU" in resources),
        scaling_config=ScalingConfig(
            num_workers=workers if workers[0] < workers[1] else workers[1],
            use_gpu="GPU" in resources,
            resources_per_worker=dict(resources),
        ),
        run_config=RunConfig(
            name=f"train-{uuid.uuid4().hex[:12]}",  # never one that Ray would take for a run to restore
            storage_path=scratch,
            failure_config=FailureConfig(
                max_failures=MAX_FAILURES, controller_failure_limit=capacity.CONTROLLER_FAILURE_LIMIT
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _raise_failure(run: Storage, owner: str, fitting: _Fitting) -> None:
    """Raise what ended the training, in our own words where it is ours."""
    failure = fitting.returned.get("failure") or (read_failure(run, owner) if fitting.error else None)
    if failure:
        raise rebuild_failure(failure) from fitting.error
    if fitting.error is None:
        return
    causes = getattr(fitting.error, "worker_failures", {}) or {0: fitting.error}
    for cause in causes.values():
        inner = _cause(cause)
        if isinstance(inner, PipelineError):
            raise inner from fitting.error
    lines = str(fitting.error).strip().splitlines() or [type(fitting.error).__name__]
    raise ClusterError(
        f"training ended (lost workers are replaced {MAX_FAILURES} times from a checkpoint to the next):"
        f" {lines[-1].strip()}",
        mend="run the same command again to go on from the last checkpoint; RESNET_RAY_LOGS=1 shows the workers' logs",
    ) from fitting.error
