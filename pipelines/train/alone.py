"""Runs `fit` in this very process, without Ray: the shortest way to the first step for one worker."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from pipelines import capacity
from pipelines.errors import ConfigError, PipelineError
from pipelines.storage import Storage
from pipelines.train import startup
from pipelines.train.config import TrainConfig
from pipelines.train.follow import Follower
from pipelines.train.notice import Notice, catching_sigterm
from pipelines.train.records import EpochRecord

_LOGGER = logging.getLogger(__name__)

_POLL_S = 0.5


def check_alone(config: TrainConfig) -> None:
    """Refuse what takes several processes.

    Raises:
        ConfigError: more than one worker is asked for.
    """
    if config.num_workers > 1:
        raise ConfigError(
            f"local is true and num_workers is {config.num_workers}: without Ray there is this process alone",
            mend="set num_workers=1, or local=false",
        )


def train_alone(
    config: TrainConfig,
    run: Storage,
    *,
    on_epoch: Callable[[EpochRecord], object],
    on_start: Callable[[], object],
) -> None:
    """Train in this process until all epochs are done, the time is up or SIGTERM comes; follow it in a thread.

    Args:
        config: the run, its dataset pinned and absolute.
        run: storage of the run.
        on_epoch: called with each epoch's record, earlier ones of a resumed run first, in a thread of its own; nothing
            waits for it.
        on_start: called once after the first step, in the same thread; what it refuses is said, and training goes on.

    Raises:
        PipelineError: what ended the training.
    """
    import torch

    from pipelines.train.collectives import World
    from pipelines.train.loop import fit
    from pipelines.train.precision import resolve_device

    startup.mark("torch imported")
    torch.set_num_threads(config.cpus_per_worker or config.ray.num_cpus or capacity.available_cpus())
    if config.use_gpu is True:
        capacity.check_gpu(use_gpu=True)
    ended = threading.Event()

    def hand_on(record: EpochRecord) -> None:
        on_epoch(record)

    def follow() -> None:
        with Follower(run, hand_on) as follower:
            has_begun = False
            while not ended.wait(_POLL_S):
                if not has_begun and startup.has_passed("first step"):
                    has_begun = True
                    begin()
                follower.poll()
            if not has_begun:
                begin()

    def begin() -> None:
        try:
            on_start()
        except PipelineError as error:
            _LOGGER.warning("%s", error)

    following = threading.Thread(target=follow, name="follower", daemon=True)
    with catching_sigterm() as told:
        following.start()
        try:
            fit(
                config,
                run,
                world=World(),
                device=resolve_device("cpu" if config.use_gpu is False else "auto"),
                ends_at_s=time.time() + config.max_hours * 3600 if config.max_hours else math.inf,
                notice=Notice(told.is_set),
            )
        finally:
            ended.set()
            following.join()
