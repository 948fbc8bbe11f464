"""The Ray side of scoring: Ray Data hands units to actors that hold the network; images stay where they are read."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipelines import errors
from pipelines.errors import DataError, PipelineError
from pipelines.image.header import RefusedImage
from pipelines.score.model import PackageRef, load_model
from pipelines.score.unit import FailedAlone, ScoreJob, score_unit
from pipelines.sources.base import Unit

if TYPE_CHECKING:
    import numpy as np

_ALONE_TIMEOUT_S = 120.0
_MAX_BLOCKS = 10_000


def run_units(job: ScoreJob, units: Sequence[Unit], *, num_actors: int, use_gpu: bool) -> Iterator[dict[str, Any]]:
    """Yield the receipt of each unit as it is done, in whatever order.

    Raises:
        PipelineError: what stopped a unit.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = [{"unit": unit.to_text()} for unit in units]
    reports = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS)).map_batches(
        UnitScorer,
        batch_size=1,
        # One unit at a time: an actor that queued the next one would keep it from an idle neighbour.
        compute=ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=1),
        fn_constructor_kwargs={"job": job},
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )
    for row in reports.iter_rows():
        report: dict[str, Any] = json.loads(row["report"])
        if fault := report.get("fault"):
            kind = getattr(errors, fault["kind"], DataError)
            raise kind(fault["what"], where=fault["where"], mend=fault["mend"])
        yield report


class UnitScorer:
    """Loads the network once, then scores the units it is handed; image bytes never leave the process.

    Args:
        job: the run.
    """

    def __init__(self, job: ScoreJob) -> None:
        self._job = job

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Score the units of a batch; return their receipts as JSON.

        A fault that a user can mend comes back as words: raised here, Ray would wrap it and its exit code be lost.
        """
        reports: list[dict[str, Any]] = []
        for text in batch["unit"]:
            unit = Unit.from_text(str(text))
            try:
                reports.append(self._score(unit))
            except PipelineError as error:
                fault = {"kind": type(error).__name__, "what": error.what, "where": error.where, "mend": error.mend}
                reports.append({"unit": unit.index, "fault": fault})
        return {"report": [json.dumps(report) for report in reports]}

    def _score(self, unit: Unit) -> dict[str, Any]:
        model = load_model(self._job.package)
        alone = functools.partial(predict_alone, self._job.package)
        return score_unit(unit, self._job, model, alone)


def predict_alone(package: PackageRef, data: bytes) -> np.ndarray:
    """Score one image file in a Ray process of its own, which may die.

    Raises:
        FailedAlone: it died, gave no answer in time, or refused the image.
    """
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(_predict_here).remote(package, data)
    try:
        reason, answer = ray.get(task, timeout=_ALONE_TIMEOUT_S)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise FailedAlone("KILLED_WORKER", f"its process died ({type(error).__name__})") from error
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(task, force=True)
        raise FailedAlone("TIMEOUT", f"no answer within {_ALONE_TIMEOUT_S:.0f} s") from error
    if reason:
        raise FailedAlone(reason, answer)
    result: np.ndarray = answer
    return result


def _predict_here(package: PackageRef, data: bytes) -> tuple[str, Any]:
    """Return ("", probabilities), or a reason and a message."""
    model = load_model(package)
    try:
        return "", model.predict_one(data)
    except RefusedImage as refused:
        return refused.reason, refused.message
    except (RuntimeError, ValueError, ArithmeticError) as error:
        return "MODEL_ERROR", str(error) or type(error).__name__
