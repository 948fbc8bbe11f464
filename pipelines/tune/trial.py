"""What runs in a trial's process: one epoch at a time in a reused actor, or a whole Ray Train run of several workers.

Either writes the trial's folder through `Storage` and reports `{trial, epoch, val_top1}` to Tune, which is all that
the stopping rule needs. A fault of the training itself is reported as `failure` and ends the trial; a process that
dies, or storage that does not answer, is left to Tune to try again. One whose folder a newer command has taken reports
`superseded`, which ends the sweep.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from pipelines.errors import ClusterError, PipelineError, StorageError, Superseded
from pipelines.ray_runtime import RaySession
from pipelines.storage import Storage
from pipelines.train.config import TrainConfig
from pipelines.train.process_memory import keep_freed_memory
from pipelines.train.worker import describe_failure
from pipelines.tune.stepwise import Stalled, StepwiseFit

_LOGGER = logging.getLogger(__name__)

JOB = "job"
_LAST_CHECKPOINT_S = 120.0
"""Seconds that the end of a process waits for its trial's last checkpoint on a slow store."""
_RETRIED = (StorageError, ClusterError)


class TrialActor(tune.Trainable):  # type: ignore[misc]  # Ray is untyped here
    """A process that runs one-worker trials one after the other.

    Ray, torch and the decoded dataset stay in memory between trials: starting them anew costs 7 seconds and more.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first trial."""
        self._fit: StepwiseFit[Any, Any] | None = None
        self._rows = RowsCache()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process; False has Tune replace the process instead."""
        if self._fit is not None and not self._fit.stop():
            return False
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch, or report the end."""
        assert self._fit is not None
        try:
            record, _ = self._fit.next(self._job["timeout_s"])
        except Superseded as error:
            return {"trial": self._job["trial"], "superseded": describe_failure(error), "done": True}
        except _RETRIED:
            raise
        except Exception as error:
            if isinstance(error, Stalled):
                raise  # only a new process ends what hangs
            return {"trial": self._job["trial"], "failure": describe(error), "done": True}
        if record is None:
            return {"trial": self._job["trial"], "done": True}
        return {"trial": self._job["trial"], "epoch": record.epoch, "val_top1": record.val_score}

    def cleanup(self) -> None:
        """End the training thread, which waits between epochs, and let it finish what it writes."""
        if self._fit is not None:
            self._fit.stop(timeout_s=_LAST_CHECKPOINT_S)

    def _begin(self, config: dict[str, Any]) -> None:
        import torch

        from pipelines.train.loop import fit_local
        from pipelines.train.machine_use import MachineUse
        from pipelines.train.precision import resolve_device

        self._job = json.loads(config[JOB])
        training = TrainConfig.model_validate_json(json.dumps(self._job["config"]))
        run = Storage.open(self._job["run"])
        device = "auto" if self._job["use_gpu"] else "cpu"
        torch.set_num_threads(self._job["cpus"])
        keep_freed_memory()

        def fit(on_epoch: Callable[[Any], bool]) -> Any:
            with MachineUse(run, 0, resolve_device(device)) as use:

                def after_epoch(record: Any) -> bool:
                    use.settle()  # before the sweep hears of the epoch, after which it may end the trial
                    return on_epoch(record)

                return fit_local(
                    training, run, on_epoch=after_epoch, device=device, open_rows=self._rows, owner=self._job["owner"]
                )

        self._fit = StepwiseFit(fit)


class RowsCache:
    """Keeps the decoded splits of the last dataset, so that only an actor's first trial decodes them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {}

    def __call__(self, dataset: Any, split: str, **how: Any) -> Any:
        """Open a split as `SplitRows` does, or return the one at hand."""
        from pipelines.train.feed import SplitRows

        standing_how, standing = self._kept.get((dataset.ref, split), ({}, None))
        # How much is read ahead depends on the batch size, and matters only where pixels are not kept.
        is_alike = standing_how.get("stored", False) == how.get("stored", False)
        if standing is not None and (standing_how == how or (standing.is_cached and is_alike)):
            return standing
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] == dataset.ref and key[1] != split}
        rows = SplitRows(dataset, split, **how)
        self._kept[dataset.ref, split] = (how, rows)
        return rows


def make_driver(session: RaySession) -> Callable[[dict[str, Any]], None]:
    """Return the function that runs a trial of several workers as a Ray Train run of its own."""

    def drive_trial(config: dict[str, Any]) -> None:
        from pipelines.train.group import train_in_workers

        job = json.loads(config[JOB])
        training = TrainConfig.model_validate_json(json.dumps(job["config"]))
        run = Storage.open(job["run"])

        def on_epoch(record: Any) -> bool:
            tune.report({"trial": job["trial"], "epoch": record.epoch, "val_top1": record.val_score})
            return True  # the sweep's driver tells the workers to stop, through the run folder

        try:
            train_in_workers(training, run, session, on_epoch=on_epoch, inside_tune=True, owner=job["owner"])
        except Superseded as error:
            tune.report({"trial": job["trial"], "superseded": describe_failure(error)})
        except _RETRIED:
            raise
        except Exception as error:  # noqa: BLE001 - boundary of the process: the sweep goes on without this trial
            tune.report({"trial": job["trial"], "failure": describe(error)})

    return drive_trial


def describe(error: BaseException) -> str:
    """Say in one line what ended a trial; for what is no error of ours, also where it happened."""
    if isinstance(error, PipelineError):
        return error.what
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0] if message else ''}{place}"[:500]
