"""A run's models in a real store: as many as are wanted, ranked, whatever was killed, lost or dropped before."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds
from typing_extensions import override

from pipelines import tracking_models
from pipelines.errors import Unfinished
from pipelines.storage import Storage
from pipelines.tracking import RUN_KEY_TAG, RunLog, TrackingConfig, open_client
from pipelines.tracking_models import ModelSet, RankedModel
from pipelines.train import stage
from pipelines.train.checkpoint import committed_steps
from pipelines.train.deliver import deliver
from pipelines.train.step import Step
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = pytest.mark.integration

DATA = ("digits", "f" * 64)


@pytest.fixture
def log(mlflow_uri: str, request: pytest.FixtureRequest) -> Iterator[RunLog]:
    tracking = TrackingConfig(uri=mlflow_uri, experiment=request.node.name)
    with RunLog.open(tracking, run_name="r", tags={RUN_KEY_TAG: "k"}) as log:
        for epoch in (1, 2, 3):
            log.log_metrics({"val_top1": epoch / 10, "val_loss": 1.0 / epoch}, step=epoch)
        yield log


def ranked(*epochs: int) -> list[RankedModel]:
    return [
        RankedModel(f"epoch-{e:04d}", f"commit-{e}", e, {"val_top1": e / 10, "val_loss": 1.0 / e}, {"epoch": str(e)})
        for e in epochs
    ]


def told(log: RunLog, models: ModelSet, *epochs: int, is_final: bool = False) -> bool:
    record = models.replace(ranked(*epochs), is_final=is_final)
    if record is not None:
        log.put(record)
    return record is not None


def look(log: RunLog) -> list[tuple[str, str, str]]:
    """Return (name, status, rank) of all models of the experiment, by the figure that decides on the run's data."""
    by_top1 = {"field_name": "metrics.val_top1", "ascending": False, "dataset_name": DATA[0],
               "dataset_digest": DATA[1][:36]}  # fmt: skip
    found = open_client(log.uri).search_logged_models([log.experiment_id], order_by=[by_top1])
    return [(model.name, str(model.status), model.tags[tracking_models.RANK_TAG]) for model in found]


def test_those_that_are_kept_stand_ranked_and_the_others_are_gone(log: RunLog) -> None:
    models, client = ModelSet("k", "checkpoint", DATA), open_client(log.uri)
    assert told(log, models, 2, 1)
    assert not told(log, models, 2, 1)  # nothing new
    assert look(log) == [("epoch-0002", "READY", "1"), ("epoch-0001", "READY", "2")]
    told(log, models, 3, 2)
    assert look(log) == [("epoch-0003", "READY", "1"), ("epoch-0002", "READY", "2")]
    again = ModelSet("k", "checkpoint", DATA)  # of a command that goes on, or of `resnet track`, twice
    for _ in range(2):
        told(log, again, 3, 2, is_final=True)
        again = ModelSet("k", "checkpoint", DATA)
    found = client.search_logged_models([log.experiment_id])
    outputs = client.get_run(log.run_id).outputs.model_outputs
    assert sorted(output.model_id for output in outputs) == sorted(model.model_id for model in found)
    # A model's figures are points of its run as well: those that stood there already.
    assert [point.step for point in client.get_metric_history(log.run_id, "val_top1")] == [1, 2, 3]
    assert {model.name: [(m.key, m.step) for m in model.metrics] for model in found}["epoch-0003"] == [
        ("val_top1", 3), ("val_loss", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("call", ["create_logged_model", "log_batch", "finalize_logged_model", "delete_logged_model"])
def test_an_answer_that_is_lost_leaves_one_model_each(log: RunLog, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    models = ModelSet("k", "checkpoint", DATA)
    told(log, models, 2, 1)
    real, lost = getattr(MlflowClient, call), []

    def lose(self: Any, *arguments: Any, **options: Any) -> Any:
        answer = real(self, *arguments, **options)
        if not lost:
            lost.append(answer)
            raise ConnectionError("answer lost")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, lose)
        told(log, models, 3, 1)
    assert log.num_waiting == 1
    told(log, models, 3, 2)
    log._retry_at = 0.0
    log.log_tags({"a": "b"})
    assert (len(lost), log.num_waiting) == (1, 0)
    assert look(log) == [("epoch-0003", "READY", "1"), ("epoch-0002", "READY", "2")]


def test_a_set_that_waits_does_not_overtake_the_figures_of_its_models(
    log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModelSet("k", "checkpoint", DATA)
    told(log, models, 1)

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_logged_models", refuse)
        told(log, models, 2, 1)
        log.log_metrics({"val_top1": 0.4, "val_loss": 0.25}, step=4)
        told(log, models, 4, 2)
    log.end()
    assert look(log) == [("epoch-0004", "READY", "1"), ("epoch-0002", "READY", "2")]
    points = open_client(log.uri).get_metric_history(log.run_id, "val_top1")
    assert [point.step for point in points] == [1, 2, 3, 4]


def test_a_model_with_other_figures_is_another_one(log: RunLog) -> None:
    """A run that goes back may have been looked at between an epoch's checkpoint and its new record."""
    models = ModelSet("k", "checkpoint", DATA)
    told(log, models, 2, 1)
    anew = {"val_top1": 0.15, "val_loss": 0.75}
    log.log_metrics(anew, step=2)
    record = models.replace([replace(ranked(2)[0], metrics=anew), *ranked(1)])
    assert record is not None
    log.put(record)
    assert look(log) == [("epoch-0002", "READY", "1"), ("epoch-0001", "READY", "2")]
    found = open_client(log.uri).search_logged_models([log.experiment_id])
    figures = {model.name: {metric.key: metric.value for metric in model.metrics} for model in found}
    assert figures == {"epoch-0002": anew, "epoch-0001": {"val_top1": 0.1, "val_loss": 1.0}}


class _Without(BaseHTTPRequestHandler):
    """Answers what a server of MLflow 2 does about logged models (a page of Flask's), or a store that has none."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if getattr(self.server, "is_old", False):
            self.send_error(404)
            return
        answer = json.dumps({"error_code": "NOT_IMPLEMENTED", "message": "no logged models here"}).encode()
        self.send_response(501)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    @override
    def log_message(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.parametrize("is_old", [True, False])
def test_a_server_without_logged_models_gets_all_else(
    log: RunLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_old: bool
) -> None:
    with HTTPServer(("127.0.0.1", 0), _Without) as server:
        server.is_old = is_old  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        old = RestStore(lambda: MlflowHostCreds(f"http://127.0.0.1:{server.server_port}"))

        def ask(self: Any, *arguments: Any, **options: Any) -> Any:
            return old.search_logged_models(*arguments, **options)

        monkeypatch.setattr(MlflowClient, "search_logged_models", ask)
        models = ModelSet("k", "checkpoint", DATA)
        told(log, models, 2, 1)
        log.log_metrics({"val_top1": 0.4, "val_loss": 0.25}, step=4)
        told(log, models, 2, 1, is_final=True)
        log.end()
        server.shutdown()
    assert log.num_waiting == 0
    client = open_client(log.uri)
    assert client.get_run(log.run_id).info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(log.run_id, "val_top1")] == [1, 2, 3, 4]
    refused = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(refused) == 1
    assert "MLflow refused models of run 'r': this server keeps no logged models (MLflow 3 does): " in refused[0]


def test_a_training_stopped_and_gone_on_with_is_told_once(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second command finds what the first one told, which was stopped in the middle of an epoch."""
    dataset = write_dataset(tmp_path / "dataset")
    tracking = {"uri": mlflow_uri, "experiment": "stopped"}
    config = make_config(dataset, epochs=4, local=True, out=str(tmp_path / "run"), tracking=tracking)
    run, take, steps = Storage.open(config.out), Step.__call__, []

    def stop_at_ten(self: Step, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 10:
            signal.raise_signal(signal.SIGTERM)
        return take(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", stop_at_ten)
        patch.setattr("pipelines.train.loop._SYNC_S", 0.0)
        with pytest.raises(Unfinished):
            stage.run(config)
    client = open_client(mlflow_uri)
    experiment = client.get_experiment_by_name("stopped").experiment_id
    (first,) = client.search_runs([experiment])
    assert first.info.status == "KILLED"
    kept = committed_steps(run)
    assert kept[-1] == 10
    known = sorted(int(model.params["step"]) for model in client.search_logged_models([experiment]))
    assert known == [step for step in kept if step in (4, 8)]  # the third epoch has no figures yet
    run.put("system/worker-00000-0.json", b"")  # as a power cut leaves it; the run is published all the same
    stage.run(config)
    for _ in range(2):
        (last,) = client.search_runs([experiment])
        assert (last.info.run_id, last.info.status) == (first.info.run_id, "FINISHED")
        for name in ("step_loss", "step_lr", "step_images_per_s"):
            points = client.get_metric_history(first.info.run_id, name)
            assert [point.step for point in points] == list(range(1, 17)), name
        found = client.search_logged_models([experiment])
        assert sorted(int(model.params["step"]) for model in found) == committed_steps(run)
        best = json.loads(run.read("_catalog.json"))["best"]["epoch"]
        assert [model.name for model in found if model.tags["resnet.rank"] == "1"] == [f"epoch-{best:04d}"]
        assert any(name.startswith("system/worker_0/") for name in last.data.metrics)
        assert last.data.tags["resnet.version"]
        deliver(config.out, TrackingConfig(**tracking))
