"""What is sent to an MLflow run: each record one call, which can be made again without doubling anything."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose, isnan
from pathlib import Path, PurePosixPath
from sys import float_info
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.redact import flatten, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_TAG = 5000
"""Characters of a tag value; the longest that every MLflow backend keeps whole."""
_MAX_VALUE = 6000  # characters of a parameter value (mlflow/utils/validation.py)
_BATCH = 100  # parameters or tags a call
_METRIC_BATCH = 1000
_NEAR = 1e-3  # what is done once more by another number of workers differs in last digits
_LARGEST = float_info.max  # what MLflow's database keeps in place of infinity
MAX_DIGEST = 36
_TEXT_SUFFIXES = (".yaml", ".yml", ".json", ".txt", ".md", ".toml")


@dataclass
class Place:
    """A run in a store, as long as every call to it is answered: what it holds is then known."""

    client: MlflowClient
    run_id: str
    _known: dict[str, dict[int, tuple[int, float]]] = field(default_factory=dict)

    def newest(self, metric: str) -> dict[int, tuple[int, float]]:
        """Return {step: (newest timestamp in ms, its value)} of a metric in the store; asked once, then kept up."""
        if metric not in self._known:
            history = sorted(self.client.get_metric_history(self.run_id, metric), key=lambda point: point.timestamp)
            self._known[metric] = {point.step: (point.timestamp, float(point.value)) for point in history}
        return self._known[metric]

    def is_near(self, metric: str, step: int, value: float, *, within: float = _NEAR) -> bool:
        """Return whether the store has this value for a step, relatively `within`."""
        _, standing = self.newest(metric).get(step, (0, None))
        if standing is None or isnan(value):
            return standing is not None and isnan(standing)
        return isclose(standing, min(max(value, -_LARGEST), _LARGEST), rel_tol=within)

    def note(self, metric: str, step: int, stamp_ms: int, value: float) -> None:
        """Take down what was sent."""
        if metric in self._known:
            self._known[metric][step] = (stamp_ms, value)


@dataclass
class Record:
    """One call to MLflow, kept until it was answered."""

    what: str
    send: Callable[[Place, bool], None]
    """Called with the run, and with whether it may hold the record already."""
    tried: bool = False
    steps: tuple[tuple[str, int], ...] = ()
    """(metric, step) pairs it holds."""


def params_record(params: Mapping[str, Any]) -> Record:
    """Return parameters; one that stands with another value becomes a tag `resumed.<name>`."""
    flat = {key[:250]: value[:_MAX_VALUE] for key, value in flatten(params).items()}

    def send(place: Place, tried: bool) -> None:
        from mlflow.entities import Param, RunTag

        client, run_id = place.client, place.run_id
        standing = client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in flat.items() if key not in standing]
        changed = [
            RunTag(f"resumed.{key}"[:250], value[:MAX_TAG])
            for key, value in flat.items()
            if standing.get(key, value) != value
        ]
        for start in range(0, len(new), _BATCH):
            client.log_batch(run_id, params=new[start : start + _BATCH], synchronous=True)
        for start in range(0, len(changed), _BATCH):
            client.log_batch(run_id, tags=changed[start : start + _BATCH], synchronous=True)

    return Record("parameters", send)


def tags_record(tags: Mapping[str, str]) -> Record:
    """Return tags; later values replace earlier ones."""
    clean = {key: redact(value, name=key)[:MAX_TAG] for key, value in tags.items()}

    def send(place: Place, tried: bool) -> None:
        from mlflow.entities import RunTag

        place.client.log_batch(
            place.run_id, tags=[RunTag(key, value) for key, value in clean.items()], synchronous=True
        )

    return Record("tags", send)


@dataclass(frozen=True)
class Point:
    """Figures of one step."""

    step: int
    figures: Mapping[str, float]
    at_s: float = 0.0
    """Unix time; 0: when the record is made."""


def metrics_record(metrics: Mapping[str, float], step: int, timestamp_s: float | None) -> Record:
    """Return the figures of one step, which no earlier process has sent."""
    return points_record([Point(step, metrics, timestamp_s or 0.0)])


def points_record(
    points: Sequence[Point], *, may_stand: bool = False, told_by: str = "", exact: Collection[str] = ()
) -> Record:
    """Return the figures of several steps as one record; those that the run holds already are not sent once more.

    Args:
        points: the figures.
        may_stand: an earlier process may have sent them.
        told_by: the figure by which tries are told apart, such as a loss. Where the run holds quite another one for a
            step, it is of a try that was gone back behind: all of the new one's are added, and are what MLflow shows.
            Times and speeds of the same work done twice differ always.
        exact: figures that stand only with this very value: what weights are chosen by.
    """
    now_s = time.time()
    values = [
        (name, float(value), int((point.at_s or now_s) * 1000), point.step)
        for point in points
        for name, value in point.figures.items()
    ]

    tries = {point.step: point.figures[told_by] for point in points if told_by in point.figures}

    def stands(place: Place, name: str, value: float, step: int) -> bool:
        if step in tries and not place.is_near(told_by, step, float(tries[step])):
            return False
        return place.is_near(name, step, value, within=0.0) if name in exact else step in place.newest(name)

    def send(place: Place, tried: bool) -> None:
        from mlflow.entities import Metric

        due = values
        if tried:  # an earlier process, or an attempt whose answer was lost, may have written these
            due = [each for each in values if not stands(place, each[0], each[1], each[3])]
        for start in range(0, len(due), _METRIC_BATCH):
            batch = due[start : start + _METRIC_BATCH]
            place.client.log_batch(place.run_id, metrics=[Metric(*value) for value in batch], synchronous=True)
        for name, value, stamp_ms, step in due:
            place.note(name, step, stamp_ms, value)

    return Record("metrics", send, tried=may_stand, steps=tuple((name, step) for name, _, _, step in values))


def dataset_record(name: str, uri: str, digest: str, context: str) -> Record:
    """Return a dataset as the input of a run."""
    source = json.dumps({"uri": redact(uri)})
    kind = urlsplit(uri).scheme or "local"

    def send(place: Place, tried: bool) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest[:MAX_DIGEST], source_type=kind, source=source)
        place.client.log_inputs(place.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    return Record("dataset", send)


def file_record(artifact_path: str, data: bytes) -> Record:
    """Return a file of a run; text files are redacted."""
    path = PurePosixPath(artifact_path)
    if path.suffix in _TEXT_SUFFIXES:
        data = redact(data.decode("utf-8", errors="surrogateescape")).encode("utf-8", errors="surrogateescape")
    folder = None if str(path.parent) == "." else str(path.parent)

    def send(place: Place, tried: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="resnet-") as scratch:
            local = Path(scratch, path.name)
            local.write_bytes(data)
            place.client.log_artifact(place.run_id, str(local), folder)

    return Record(f"file {artifact_path}", send)
