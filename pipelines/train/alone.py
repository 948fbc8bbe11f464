"""Runs `fit` in this very process, without Ray: the shortest way to the first step for one worker."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable

from pipelines import capacity
from pipelines.errors import ConfigError, PipelineError
from pipelines.redact import redact
from pipelines.storage import Storage
from pipelines.train import startup
from pipelines.train.config import TrainConfig
from pipelines.train.follow import Follower, is_same
from pipelines.train.group import warn_unusable_gpu
from pipelines.train.notice import Notice, catching_sigterm
from pipelines.train.owner import Claim
from pipelines.train.process_memory import keep_freed_memory
from pipelines.train.records import EpochRecord

_LOGGER = logging.getLogger(__name__)

_POLL_S = 0.5


def check_alone(config: TrainConfig) -> None:
    """Refuse what takes several processes, and say where a cluster that is named goes unused.

    Raises:
        ConfigError: more than one worker is asked for.
    """
    if config.num_workers > 1:
        raise ConfigError(
            f"local is true and num_workers is {config.num_workers}: without Ray there is this process alone",
            mend="set num_workers=1, or local=false",
        )
    # Told and not refused: a run's address serves its other stages, and RAY_ADDRESS every command of a shell.
    if named := config.ray.address or os.environ.get("RAY_ADDRESS", ""):
        setting = "ray.address" if config.ray.address else "RAY_ADDRESS"
        _LOGGER.warning(
            "local is true: the training runs in this process, not in the cluster that %s names (%s)",
            *(setting, redact(named)),
        )


def train_alone(
    config: TrainConfig,
    run: Storage,
    *,
    on_epoch: Callable[[EpochRecord], object],
    on_start: Callable[[], object],
    claim: Claim,
    ends_at_s: float = math.inf,
) -> bool:
    """Train in this process until all epochs are done, the time is up or SIGTERM comes; follow it in a thread.

    Returns whether SIGTERM came.

    Args:
        config: the run, its dataset pinned and absolute.
        run: storage of the run.
        on_epoch: called with each epoch's record, earlier ones of a resumed run first, in a thread of its own; nothing
            waits for it.
        on_start: called once after the first step, in the same thread; what it refuses is said, and training goes on.
        claim: the command's claim on the run, made here.
        ends_at_s: Unix time at which the run leaves a checkpoint and stops.

    Raises:
        PipelineError: what ended the training.
        Exception: what `on_epoch` raised again when it was called once more, after the training.
    """
    import torch

    from pipelines.train.collectives import World
    from pipelines.train.loop import fit
    from pipelines.train.machine_use import MachineUse
    from pipelines.train.precision import resolve_device

    startup.mark("torch imported")
    torch.set_num_threads(config.cpus_per_worker or config.ray.num_cpus or capacity.available_cpus())
    keep_freed_memory()
    if config.use_gpu is True:
        capacity.check_gpu(use_gpu=True)
    elif config.use_gpu == "auto":
        warn_unusable_gpu()
    ended = threading.Event()
    handed: dict[int, EpochRecord] = {}
    faults: list[Exception] = []
    has_begun = False

    def hand_on(record: EpochRecord) -> None:
        if claim.find_successor():
            return  # it may be the newer command's record; this one ends in a moment
        on_epoch(record)
        handed[record.epoch] = record

    def begin() -> None:
        nonlocal has_begun
        if has_begun:
            return
        try:
            on_start()
        except PipelineError as error:
            _LOGGER.warning("%s", error)
        has_begun = True

    def follow() -> None:
        try:
            with Follower(run, hand_on) as follower:
                while not ended.wait(_POLL_S):
                    if startup.has_passed("first step"):
                        begin()
                    follower.poll()
                begin()
        except Exception as fault:  # noqa: BLE001 - a thread's boundary; what it left undone is done after the training
            faults.append(fault)
            _LOGGER.warning("the run is not followed any more; its figures are handed on at its end: %s", fault)

    following = threading.Thread(target=follow, name="follower", daemon=True)
    device = resolve_device("cpu" if config.use_gpu is False else "auto")
    with catching_sigterm() as told, MachineUse(run, 0, device):
        claim.make()
        following.start()
        try:
            outcome = fit(
                config,
                run,
                world=World(),
                device=device,
                ends_at_s=ends_at_s,
                notice=Notice(told.is_set),
                owner=claim.token,
            )
        finally:
            ended.set()
            following.join()
        if faults:
            begin()
            for record in outcome.records:
                if not is_same(handed.get(record.epoch), record):
                    hand_on(record)
    return told.is_set()
