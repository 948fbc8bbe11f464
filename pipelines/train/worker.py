"""What runs in each Ray Train worker: `loop.fit` over the group that Ray has set up, and how it ends.

Checkpoints and records go to our own storage. Nothing is reported to Ray: a report waits for the controller's poll,
and its snapshot file is not atomic, so it is never what a run resumes from.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from typing import Any

from pipelines import errors
from pipelines.errors import ConfigError, DataError, InputError, NotFound, PipelineError, StorageError, Unfinished
from pipelines.storage import Storage
from pipelines.train import notice, startup
from pipelines.train.config import TrainConfig
from pipelines.train.owner import await_claim, note_path
from pipelines.train.process_memory import keep_freed_memory

STOP = "_work/stop.json"
"""Written by the driver to end a run after the present epoch."""
FAILURE = "_work/failure.json"
"""Written by the worker that met an error which trying again would only meet again."""

_LOOK_S = 0.1
_DRIVER_S = notice.DRIVER_POLL_S + 1.0
"""Seconds that a worker which was told to end waits for word that the run is: the driver's next look, and its note."""
_FAILURE_PARTS = ("type", "what", "where", "mend")
_PERMANENT = (ConfigError, InputError, DataError)


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as one worker.

    Args:
        settings: `config` (JSON text of a TrainConfig, its dataset pinned and absolute), `run` (address of the run's
            storage) and `threads` (torch threads); `ends_at_s`: Unix time to stop at; `owner`: the driver's token, and
            `awaits_claim` where the driver claims the run a little later (`Claim`); with `window` (the arguments of
            `loop.replay`) those steps are done once more instead.

    Returns:
        `failure` with the parts of an error that ended the run for good; of a window its `steps`, and the `workers`,
        `device` and `precision` that did them; else empty.

    Raises:
        Unfinished: this worker was told to end, and nothing ended the run (`_is_over`): Ray replaces it, and the group
            goes on.
    """
    startup.begin(settings.get("marks", ()))
    startup.mark("worker entered")
    import torch

    from pipelines.train.collectives import World
    from pipelines.train.loop import fit, replay
    from pipelines.train.machine_use import MachineUse
    from pipelines.train.precision import resolve_device, resolve_precision

    startup.mark("torch imported")
    config = TrainConfig.model_validate_json(settings["config"])
    run = Storage.open(settings["run"])
    torch.set_num_threads(settings["threads"])
    keep_freed_memory()
    world, owner = World.current(), settings.get("owner", "")
    if world.rank == 0 and settings.get("awaits_claim"):
        await_claim(run, owner)
    if failure := read_failure(run, owner):
        return {"failure": failure}
    try:
        device = resolve_device("auto" if settings["use_gpu"] else "cpu")
        if window := settings.get("window"):
            steps = replay(config, run, **window, world=world, device=device)
            # What a certificate says of a replay is what those know who did it, not the driver.
            precision = resolve_precision(config.precision, device).name
            return {"steps": steps, "workers": world.size, "device": device.type, "precision": precision}
        noting = notice.noted_in(run, owner) if world.rank == 0 else nullcontext(notice.is_terminated)
        with noting as is_noted, MachineUse(run, world.rank, device):
            outcome = fit(
                config,
                run,
                world=world,
                device=device,
                on_epoch=lambda _: not _stands(run, STOP, owner),
                ends_at_s=settings.get("ends_at_s", math.inf),
                notice=notice.Notice(lambda: notice.is_terminated() or is_noted(), _is_draining),
                owner=owner,
            )
        if outcome.stopped:
            world.sum_values([0.0], device)  # whoever leaves ends the group: not before rank 0's checkpoint is safe
            if notice.is_terminated() and not _is_over(run, owner, settings.get("ends_at_s", math.inf)):
                raise Unfinished(
                    "workers were told to end (SIGTERM) more often than they are replaced",
                    where=run.uri,
                    mend="the same command goes on from the checkpoint that was left",
                )
    except errors.Superseded as error:  # met by all workers together; the run, and notes in it, are the newer command's
        return {"failure": describe_failure(error)}
    except _PERMANENT as error:
        failure = describe_failure(error)
        if world.size == 1:
            return {"failure": failure}
        # The others may be waiting for this worker, so it has to die for Ray to end them; the next attempt of the
        # group finds the note and ends at once, all together.
        run.put(note_path(FAILURE, owner), json.dumps(failure).encode())
        raise
    return {}


def _is_over(run: Storage, owner: str, ends_at_s: float) -> bool:
    """Return whether the run has ended for all: by the driver's note, which is waited for a moment, or by its time.

    The driver may have been told together with this worker, and then sees it a little later.
    """
    until_s = time.monotonic() + _DRIVER_S
    while not (time.time() >= ends_at_s or any(_stands(run, note, owner) for note in (notice.NOTICE, STOP))):
        if time.monotonic() >= until_s:
            return False
        time.sleep(_LOOK_S)
    return True


def _stands(run: Storage, note: str, owner: str) -> bool:
    """Return whether the driver has left a note; storage that is away says nothing."""
    try:
        return run.exists(note_path(note, owner))
    except StorageError:
        return False


def _is_draining() -> bool:
    """Return whether a node of the run's workers is being taken away.

    Read where Ray's watcher puts it: the public `ray.train.get_preemption_info` waits for all workers.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    except (ImportError, AttributeError, RuntimeError):  # not in a worker of Ray Train
        return False


def describe_failure(error: PipelineError) -> dict[str, str]:
    """Return an error as JSON values."""
    return {"type": type(error).__name__, "what": error.what, "where": error.where, "mend": error.mend}


def rebuild_failure(failure: dict[str, str]) -> PipelineError:
    """Return the error that `describe_failure` took apart; one of an unknown kind as a DataError."""
    kind = getattr(errors, failure["type"], DataError)
    error = kind(failure["what"], where=failure["where"], mend=failure["mend"])
    assert isinstance(error, PipelineError)
    return error


def read_failure(run: Storage, owner: str) -> dict[str, str] | None:
    """Return a worker's note of the error that ended this command's run; None without one, or where it is damaged.

    Without it an attempt meets the error itself, and the driver has it from Ray.
    """
    try:
        failure = json.loads(run.read(note_path(FAILURE, owner)))
    except (NotFound, ValueError):
        return None
    is_whole = isinstance(failure, dict) and all(isinstance(failure.get(part), str) for part in _FAILURE_PARTS)
    return failure if is_whole else None
