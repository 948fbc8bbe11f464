"""The logged models of a run: those that are wanted stand in MLflow, READY and ranked, and no others of the run do.

What is sent is not "add this" or "delete that" but the whole set, compared with what the store holds: after a kill, an
outage or an answer that was lost, the next message comes to the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.redact import redact
from pipelines.tracking_answers import NotOfferedError, foreign_answer
from pipelines.tracking_records import MAX_DIGEST, MAX_TAG, Place, Record

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

SET_TAG = "resnet.model_set"
"""Tag of every model of a set: the key of the run, which outlives a run that is deleted in MLflow's pages."""
IDENTITY_TAG = "resnet.model_identity"
RANK_TAG = "resnet.rank"
"""Tag that says the model's place in its set, from 1."""
_NOT_OFFERED = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")  # by a server older than logged models, or a store without


@dataclass(frozen=True)
class RankedModel:
    """What MLflow is to know of one model; its files stay where they are."""

    name: str
    identity: str
    """Says which of the set it is. A model of another identity under the same name is another one, and so is one with
    other figures: those that a model has in MLflow cannot be taken back."""
    step: int
    """Step of the run's figures that are the model's."""
    metrics: Mapping[str, float]
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class ModelSet:
    """The models that a run has at the moment.

    Args:
        key: key of the run.
        model_type: what MLflow's pages say they are.
        dataset: name and digest of what the metrics are of, as the run's input says it.
    """

    def __init__(self, key: str, model_type: str, dataset: tuple[str, str]) -> None:
        self._key = key
        self._type = model_type
        self._dataset = dataset[0], dataset[1][:MAX_DIGEST]
        self._models: tuple[RankedModel, ...] | None = None
        self._is_final = False
        self._number = 0
        self._lock = threading.Lock()

    def replace(self, models: Sequence[RankedModel], *, is_final: bool = False) -> Record | None:
        """Take the models that there are from now on, the best first; return what to send, None where nothing is new.

        Args:
            models: the models.
            is_final: the run will have no others; only then they become its outputs, which cannot be taken back.
        """
        with self._lock:
            if self._models == tuple(models) and self._is_final == is_final:
                return None
            self._models, self._is_final = tuple(models), is_final
            self._number += 1
            number = self._number

        def send(place: Place, tried: bool) -> None:
            # Of several that waited for a server only the last counts. It is not sent in the place of the first: the
            # run's own figures of its models were put in between.
            if number == self._number:
                run = place.client.get_run(place.run_id)  # a server that does not answer this one is away
                with _said_not_offered():
                    self._settle(place, run, tuple(models), is_final=is_final)

        return Record("models", send)

    def _settle(self, place: Place, run: Run, models: Sequence[RankedModel], *, is_final: bool) -> None:
        from mlflow.entities import LoggedModelOutput

        client = place.client
        standing: dict[str, LoggedModel] = {}
        wanted = {_identify(model) for model in models}
        for model in self._search(place, run.info.experiment_id):
            identity = model.tags.get(IDENTITY_TAG, "")
            if identity in wanted and identity not in standing and model.source_run_id == place.run_id:
                standing[identity] = model
            else:
                client.delete_logged_model(model.model_id)
        ids = []
        for rank, wish in enumerate(models, 1):
            found = standing.get(_identify(wish)) or self._create(place, run.info.experiment_id, wish, rank)
            if str(found.status) != "READY":
                self._log_metrics(place, wish, found.model_id)
                client.finalize_logged_model(found.model_id, "READY")
            if found.tags.get(RANK_TAG) != str(rank):
                client.set_logged_model_tags(found.model_id, {RANK_TAG: str(rank)})
            ids.append((found.model_id, wish.step))
        if is_final:
            outputs = run.outputs.model_outputs if run.outputs else ()
            known = {output.model_id for output in outputs}
            new = [LoggedModelOutput(model_id, step=step) for model_id, step in ids if model_id not in known]
            if new:
                client.log_outputs(place.run_id, new)

    def _search(self, place: Place, experiment_id: str) -> list[LoggedModel]:
        found: list[LoggedModel] = []
        token: str | None = None
        while True:
            page = place.client.search_logged_models(
                [experiment_id], f"tags.`{SET_TAG}` = '{self._key}'", page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _create(self, place: Place, experiment_id: str, wish: RankedModel, rank: int) -> LoggedModel:
        tags = {**wish.tags, SET_TAG: self._key, IDENTITY_TAG: _identify(wish), RANK_TAG: str(rank)}
        return place.client.create_logged_model(
            experiment_id,
            name=wish.name,
            source_run_id=place.run_id,
            tags={name: redact(value, name=name)[:MAX_TAG] for name, value in tags.items()},
            params={name: redact(value, name=name)[:MAX_TAG] for name, value in wish.params.items()},
            model_type=self._type,
        )

    def _log_metrics(self, place: Place, wish: RankedModel, model_id: str) -> None:
        """Give the model its figures.

        MLflow writes a model's figures into its run as well. They stand there already: at the same time stamp MLflow
        knows them for the same.
        """
        from mlflow.entities import Metric

        name, digest = self._dataset
        now_ms = int(time.time() * 1000)
        metrics: list[Any] = []
        for metric, value in wish.metrics.items():
            stamp_ms, _ = place.newest(metric).get(wish.step, (now_ms, value))
            metrics.append(Metric(metric, value, stamp_ms, wish.step, model_id, name, digest))
        place.client.log_batch(place.run_id, metrics=metrics, synchronous=True)
        for metric in metrics:
            place.note(metric.key, metric.step, metric.timestamp, metric.value)


def _identify(model: RankedModel) -> str:
    figures = json.dumps([model.step, sorted(model.metrics.items())])
    return f"{model.identity}-{hashlib.sha256(figures.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _said_not_offered() -> Iterator[None]:
    """Tell a server that has no logged models from one that is away."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, NotImplementedError) as error:
        if isinstance(error, MlflowException) and not (error.error_code in _NOT_OFFERED or foreign_answer(error)):
            raise
        raise NotOfferedError(f"this server keeps no logged models (MLflow 3 does): {error}") from error
