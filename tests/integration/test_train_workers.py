"""Training in real Ray Train workers: as many as there are, dying or not, they come to the same figures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.errors import ClusterError, ConfigError, DataError, InputError
from pipelines.package.describe import parse_description
from pipelines.ray_runtime import RayConfig, ray_session
from pipelines.stage_output import read_catalog
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig, open_client
from pipelines.train import replay, stage
from pipelines.train.checkpoint import load_latest
from pipelines.train.config import ReplayConfig, TrainConfig
from pipelines.train.deliver import deliver
from pipelines.train.group import train_in_workers
from pipelines.train.loop import fit_local
from pipelines.train.outcome import read_outcome
from pipelines.train.records import EpochRecord, read_records
from pipelines.train.state import OPTIMIZER, WEIGHTS
from resnet_models.state_dict import unpack_weights
from tests.unit.train.test_replay import trained
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def tracking(mlflow_uri: str) -> dict[str, Any]:
    return {"uri": mlflow_uri, "experiment": "train-workers"}


def one_thread(dataset: str, **changes: Any) -> TrainConfig:
    """One worker of one thread: sums in the same order as in this process, so the same bits."""
    return make_config(dataset, cpus_per_worker=1, loader_threads=1, **changes)


def test_two_workers_publish_what_one_process_computes(
    dataset: str, tracking: dict[str, Any], tmp_path: Path, one_torch_thread: None
) -> None:
    config = one_thread(dataset, num_workers=2, epochs=3, ema_decay=0.9, out=str(tmp_path / "run"), tracking=tracking)
    result = stage.run(config)
    alone = fit_local(config, Storage.open(tmp_path / "alone"), device="cpu")

    run = Storage.open(config.out)
    catalog = read_catalog(run)
    assert catalog is not None
    for ours, theirs in zip(catalog["records"], alone.records, strict=True):
        assert ours["id_trace"] == theirs.id_trace
        assert ours["train_loss"] == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours["val_loss"] == pytest.approx(theirs.val_loss, rel=1e-3)
        assert ours["val_top1"] * 21 == pytest.approx(round(ours["val_top1"] * 21))  # 21 rows, each counted once

    description = parse_description(run.read("model/model.json"), "model")
    assert description["classes"] == ["a", "b", "c"]
    assert description["train_key"] == catalog["key"] == result.key
    assert description["weights_sha256"] == catalog["model"]["weights_sha256"]
    assert set(unpack_weights(run.read("model/weights.safetensors"))) >= {"head.weight", "stem.norm.running_mean"}
    assert run.read("figures/curves.png")[:4] == b"\x89PNG"
    assert run.read("figures/mosaic.jpg")[:2] == b"\xff\xd8"

    client = open_client(tracking["uri"])
    mlflow_run = client.get_run(catalog["mlflow_run_id"])
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["optimizer.lr"] == "0.1"
    history = client.get_metric_history(mlflow_run.info.run_id, "val_top1")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert mlflow_run.inputs.dataset_inputs[0].dataset.digest == catalog["dataset"]["fingerprint"][:36]
    names = {file.path for file in client.list_artifacts(mlflow_run.info.run_id, "figures")}
    assert names == {"figures/curves.png", "figures/mosaic.jpg"}
    assert result.figures["val_top1"] == catalog["best"]["val_top1"]

    found = replay.run(ReplayConfig(run=config.out, workers=1, tracking=TrackingConfig(**tracking)))
    assert found.figures["ids"] == "agree"
    assert client.get_run(mlflow_run.info.run_id).data.tags["replay"] == "agrees with 1 workers"
    assert [file.path.split("/")[0] for file in client.list_artifacts(mlflow_run.info.run_id, "replay")] == ["replay"]

    again = stage.run(config)
    assert again.skipped
    assert again.figures == result.figures
    with pytest.raises(InputError, match=r"holds another train \(key [0-9a-f]{32}\)"):
        stage.run(config.model_copy(update={"seed": 1}))


@pytest.mark.slow
def test_as_many_workers_as_there_are_compute_the_same(dataset: str, tmp_path: Path, one_torch_thread: None) -> None:
    config = one_thread(dataset, num_workers=4, min_workers=1, epochs=3, out=str(tmp_path / "run"))
    stage.run(config)
    alone = fit_local(config, Storage.open(tmp_path / "alone"), device="cpu")
    records = read_records(Storage.open(config.out), 3)
    assert [record.id_trace for record in records] == [record.id_trace for record in alone.records]
    for ours, theirs in zip(records, alone.records, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)


@pytest.mark.slow
def test_workers_replay_what_one_worker_did(dataset: str, tmp_path: Path) -> None:
    config = one_thread(dataset, epochs=3, out=str(tmp_path / "run"))
    stage.run(config)
    before = {file.path: file.modified for file in Storage.open(config.out).list()}
    found = replay.run(ReplayConfig(run=config.out, workers=2, window=5))
    assert found.figures["ids"] == "agree"
    after = {file.path: file.modified for file in Storage.open(config.out).list()}
    assert {path: time for path, time in after.items() if not path.startswith("replay/")} == before


def test_a_store_that_was_away_gets_the_whole_run_later(dataset: str, tracking: dict[str, Any], tmp_path: Path) -> None:
    run = trained(make_config(dataset), Storage.open(tmp_path / "run"))
    run.put("figures/curves.png", b"a picture")
    with pytest.raises(InputError, match="no finished training run"):
        deliver(str(tmp_path), TrackingConfig(**tracking))
    sent = deliver(run.uri, TrackingConfig(**tracking))
    assert sent.figures["epochs_sent"] == 2
    assert deliver(run.uri, TrackingConfig(**tracking)).figures["epochs_sent"] == 0
    client = open_client(tracking["uri"])
    recorded = client.get_run(str(sent.figures["mlflow_run_id"]))
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["weights_sha256"] == "0" * 64
    for metric, steps in (("val_top1", [1, 2]), ("best_epoch", [2])):
        history = client.get_metric_history(recorded.info.run_id, metric)
        assert [point.step for point in history] == steps
    assert [file.path for file in client.list_artifacts(recorded.info.run_id, "figures")] == ["figures/curves.png"]


def test_workers_that_are_killed_or_told_to_end_are_replaced_until_the_follower_ends_the_run(
    dataset: str, tmp_path: Path, one_torch_thread: None
) -> None:
    config = one_thread(dataset, epochs=3000)
    run, whole = Storage.open(tmp_path / "run"), Storage.open(tmp_path / "whole")
    signals = [signal.SIGKILL, signal.SIGTERM]
    ended: list[int] = []
    epochs: list[int] = []

    def end_two(record: EpochRecord) -> bool:
        epochs.append(record.epoch)
        if len(ended) < 2 and record.epoch >= 3 and (standing := [pid for pid in train_workers() if pid not in ended]):
            os.kill(standing[0], signals[len(ended)])
            ended.append(standing[0])
        return len(ended) < 2  # the third one finds that the run is to end after its first epoch

    with ray_session(RayConfig()) as session:
        train_in_workers(config, run, session, on_epoch=end_two)
    outcome = read_outcome(config, run)
    assert outcome is not None
    assert outcome.stopped
    assert len(ended) == 2
    assert epochs == list(range(1, outcome.epochs + 1))
    expected = fit_local(config, whole, device="cpu", on_epoch=lambda record: record.epoch < outcome.epochs)
    assert [record.id_trace for record in outcome.records] == [record.id_trace for record in expected.records]
    ours, theirs = load_latest(run), load_latest(whole)
    assert ours is not None
    assert theirs is not None
    assert ours.files[WEIGHTS] == theirs.files[WEIGHTS]
    assert ours.files[OPTIMIZER] == theirs.files[OPTIMIZER]


def test_a_diverged_run_ends_at_once_in_our_own_words(dataset: str, tracking: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(
        dataset,
        out=str(tmp_path / "run"),
        tracking=tracking,
        optimizer={"lr": 1e30},
        schedule={"name": "constant", "warmup_epochs": 0},
    )
    with pytest.raises(DataError, match=r"the loss became (nan|inf) before step \d+, in epoch 1"):
        stage.run(config)
    run_id = json.loads(Storage.open(config.out).read("run.json"))["mlflow_run_id"]
    assert open_client(tracking["uri"]).get_run(run_id).info.status == "FAILED"


def test_what_cannot_be_had_is_refused_before_workers_start(dataset: str, tmp_path: Path) -> None:
    import torch

    out = str(tmp_path / "run")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="use_gpu is true and torch can use no GPU here"):
            stage.run(make_config(dataset, use_gpu=True, out=out))
    with pytest.raises(ConfigError, match="num_workers is 21; a global batch of 20 is shared by 20 at most"):
        stage.run(make_config(dataset, num_workers=21, out=out))
    assert not Path(out).exists()
    with pytest.raises(ClusterError, match="training with 3 workers needs 3 CPU, and the cluster has 2"):
        stage.run(make_config(dataset, num_workers=3, out=out))


def train_workers() -> list[int]:
    """Return the Ray Train workers that descend from this process, and nobody else's."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found
