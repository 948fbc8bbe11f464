"""MLflow after a training that was killed at its end, or went back behind what was told: the folder's figures, once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Storage
from pipelines.tracking import RunLog, TrackingConfig, open_client
from pipelines.train import replay, stage
from pipelines.train.config import ReplayConfig, TrainConfig
from pipelines.train.deliver import deliver
from pipelines.train.plan import plan as make_plan
from pipelines.train.records import EpochRecord
from pipelines.train.teller import Teller, run_tags
from tests.unit.train.test_teller import RECORD
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = pytest.mark.integration


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def tracking(mlflow_uri: str) -> dict[str, Any]:
    return {"uri": mlflow_uri, "experiment": "told-again"}


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    points = open_client(uri).get_metric_history(run_id, metric)
    return [(point.step, point.value) for point in sorted(points, key=lambda point: point.timestamp)]


def test_a_run_killed_before_its_catalog_is_told_once(
    tmp_path: Path, tracking: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    config = make_config(dataset, epochs=2, local=True, out=str(tmp_path / "run"), tracking=tracking)

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stage, "publish_catalog", die)
        with pytest.raises(Killed):
            stage.run(config)
    stage.run(config)
    run_id = json.loads((tmp_path / "run/run.json").read_text())["mlflow_run_id"]
    for metric, number in (("best_epoch", 1), ("best_val_top1", 1), ("train_loss", 2), ("val_top1", 2)):
        assert len(history(config.tracking.uri, run_id, metric)) == number, metric


def tell(config: TrainConfig, records: list[EpochRecord], run_id: str = "") -> str:
    """Tell records as one command does; return the id of the run."""
    plan, store = make_plan(config), Storage.open(config.out)
    with RunLog.open(config.tracking, run_name="r", run_id=run_id, tags=run_tags(plan, store)) as log:
        teller = Teller(log, store, config, plan, 0.0)
        teller.begin()
        for record in records:
            teller.tell_epoch(record)
    return log.run_id


def test_epochs_gone_back_behind_before_the_driver_died_are_told_anew(tmp_path: Path, tracking: dict[str, Any]) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    config = make_config(dataset, epochs=3, out=str(tmp_path / "run"), tracking=tracking)
    diverged = replace(RECORD, epoch=2, step=8, val_top1=0.1, train_loss=float("nan"))
    run_id = tell(config, [RECORD, diverged])
    for _ in range(2):
        tell(config, [RECORD, replace(diverged, val_top1=0.9, train_loss=0.5)], run_id)
    assert history(config.tracking.uri, run_id, "val_top1") == [(1, RECORD.val_top1), (2, 0.1), (2, 0.9)]
    assert [step for step, _ in history(config.tracking.uri, run_id, "train_loss")] == [1, 2, 2]
    assert open_client(config.tracking.uri).get_run(run_id).data.metrics["val_top1"] == 0.9


def test_figures_on_val_of_an_epoch_done_again_replace_those_that_were_told(
    tmp_path: Path, tracking: dict[str, Any]
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    config = make_config(dataset, epochs=3, out=str(tmp_path / "run"), tracking=tracking)
    assert RECORD.val_top1 is not None
    again = replace(
        RECORD, val_top1=RECORD.val_top1 + 1e-3, train_loss=RECORD.train_loss * (1 + 1e-6), images_per_s=99.0
    )
    run_id = tell(config, [RECORD])
    for _ in range(2):
        tell(config, [again], run_id)
    assert history(config.tracking.uri, run_id, "val_top1") == [(1, RECORD.val_top1), (1, again.val_top1)]
    for figure in (
        "train_loss",
        "images_per_s",
        "val_loss",
    ):  # as near as makes no difference, a time, and the same value
        assert history(config.tracking.uri, run_id, figure) == [(1, getattr(RECORD, figure))], figure


@pytest.mark.parametrize("is_first", [True, False], ids=["replayed, then told", "told, then replayed"])
def test_a_certificate_reaches_the_run_that_mlflow_was_told_of_late(
    tmp_path: Path, tracking: dict[str, Any], is_first: bool
) -> None:
    dataset, out = write_dataset(tmp_path / "dataset"), str(tmp_path / "run")
    stage.run(make_config(dataset, epochs=2, local=True, out=out, tracking=tracking | {"enabled": False}))
    late = TrackingConfig(**tracking)
    steps = [lambda: replay.run(ReplayConfig(run=out, tracking=late)), lambda: deliver(out, late)]
    for step in steps if is_first else reversed(steps):
        step()
    client, run_id = open_client(tracking["uri"]), json.loads((tmp_path / "run/run.json").read_text())["mlflow_run_id"]
    assert client.get_run(run_id).data.tags["replay"] == "agrees with 1 workers"
    assert len(client.list_artifacts(run_id, "replay")) == 1
