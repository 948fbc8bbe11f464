"""What is sent to an MLflow run: each record one call, which can be made again without doubling anything."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
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
_MAX_DIGEST = 36
_TEXT_SUFFIXES = (".yaml", ".yml", ".json", ".txt", ".md", ".toml")


@dataclass
class Place:
    """A run in a store, for one round of sending."""

    client: MlflowClient
    run_id: str
    _known: dict[str, set[int]] = field(default_factory=dict)

    def steps(self, metric: str) -> set[int]:
        """Return the steps at which the store holds a metric; asked once."""
        if metric not in self._known:
            self._known[metric] = {point.step for point in self.client.get_metric_history(self.run_id, metric)}
        return self._known[metric]


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


def metrics_record(metrics: Mapping[str, float], step: int, timestamp_s: float | None) -> Record:
    """Return the figures of one step; those that the run holds already are not sent once more."""
    values = {name: float(value) for name, value in metrics.items()}
    stamp_ms = int((time.time() if timestamp_s is None else timestamp_s) * 1000)

    def send(place: Place, tried: bool) -> None:
        from mlflow.entities import Metric

        due = values
        if tried:  # an earlier process, or an attempt whose answer was lost, may have written this step
            due = {name: value for name, value in values.items() if step not in place.steps(name)}
        batch = [Metric(name, value, stamp_ms, step) for name, value in due.items()]
        for start in range(0, len(batch), _METRIC_BATCH):
            place.client.log_batch(place.run_id, metrics=batch[start : start + _METRIC_BATCH], synchronous=True)
        if tried:
            for name in due:
                place.steps(name).add(step)

    return Record("metrics", send, steps=tuple((name, step) for name in values))


def dataset_record(name: str, uri: str, digest: str, context: str) -> Record:
    """Return a dataset as the input of a run."""
    source = json.dumps({"uri": redact(uri)})
    kind = urlsplit(uri).scheme or "local"

    def send(place: Place, tried: bool) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest[:_MAX_DIGEST], source_type=kind, source=source)
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
