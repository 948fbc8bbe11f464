"""Trials that end while MLflow is away: their runs are whole before the sweep is published, of whatever command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.storage import Storage
from pipelines.tracking import RunLog, TrackingConfig, open_client
from pipelines.train.config import TrainConfig
from pipelines.train.step_log import StepLog, write_step_log
from pipelines.tune.space import TrialPlan
from pipelines.tune.sweep import Sweep
from pipelines.tune.telling import UNTOLD, SweepLog
from tests.unit.tune.test_sweep import write_trial

pytestmark = pytest.mark.integration


def open_sweep(store: Storage, log: SweepLog) -> Sweep:
    training = TrainConfig(dataset="d", epochs=2)
    return Sweep([TrialPlan(f"{number:04d}", {"a": number}, training) for number in (1, 2)], store, None, log)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_trial_that_ends_while_mlflow_is_away_is_told_later(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    store = Storage.open(tmp_path)
    tracking = TrackingConfig(uri=mlflow_uri, experiment=f"untold-{is_killed}")
    with RunLog.open(tracking, run_name="tune") as parent:
        log = SweepLog(tracking, parent.reach, f"key-{is_killed}", "/data/d@v1", {"dataset": "f" * 64}, 0.0)
        sweep = open_sweep(store, log)
        for trial in ("0001", "0002"):
            write_trial(store, trial, [0.2, 0.6])
            for epoch in (1, 2):
                steps = StepLog(first=10 * epoch - 9)
                for _ in range(10):
                    steps.add(1.0, 0, images_per_s=5.0)
                write_step_log(sweep.run_of(trial), epoch, steps)
        log_batch, calls = MlflowClient.log_batch, []

        def fall_silent(self: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:  # the first epoch, of whichever
                log_batch(self, *arguments, **options)  # and this answer is lost
            if len(calls) >= 3:
                raise ConnectionError("away")
            return log_batch(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", fall_silent)
            sweep.end("0001", "finished")
        assert store.exists(f"trials/0001/{UNTOLD}")
        if is_killed:
            sweep.close()
            sweep = open_sweep(store, log)
            assert [plan.trial for plan in sweep.unfinished()] == ["0002"]  # the journal says what became of it
        sweep.end("0002", "failed", "no reason")
        assert not store.exists(f"trials/0002/{UNTOLD}")
        sweep.tell_untold()
        for _ in range(2):  # killed before the catalog, a sweep settles once more
            sweep.settle_models("0001")
    assert not store.exists(f"trials/0001/{UNTOLD}")
    client = open_client(mlflow_uri)
    runs = client.search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    by_trial = {run.data.tags["trial"]: run for run in runs}
    assert {trial: run.info.status for trial, run in by_trial.items()} == {"0001": "FINISHED", "0002": "FAILED"}
    assert {trial: sweep.entries[trial].mlflow_run_id for trial in by_trial} == {
        trial: run.info.run_id for trial, run in by_trial.items()
    }
    for trial, run in by_trial.items():
        for name, steps_told in {"val_top1": [1, 2], "step_loss": list(range(1, 21))}.items():
            points = client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in points] == steps_told, (trial, name)
    found = client.search_logged_models([parent.experiment_id])
    assert sorted((each.source_run_id, each.name, each.tags["resnet.rank"]) for each in found) == [
        (by_trial["0001"].info.run_id, "epoch-0001", "2"),
        (by_trial["0001"].info.run_id, "epoch-0002", "1"),
    ]
    assert len(by_trial["0001"].outputs.model_outputs) == 2


def test_trials_begun_before_the_sweep_has_a_run_are_put_below_it(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage.open(tmp_path)
    tracking = TrackingConfig(uri=mlflow_uri, experiment="early-trials")
    create_run = MlflowClient.create_run

    def be_away_for_the_sweep(self: Any, *arguments: Any, **options: Any) -> Any:
        if options["run_name"] == "tune":
            raise ConnectionError("away")
        return create_run(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", be_away_for_the_sweep)
        parent = RunLog.open(
            tracking, run_name="tune", is_deferred=True
        )  # a database that fails at the start is refused
        sweep = open_sweep(store, SweepLog(tracking, parent.reach, "early", "/data/d@v1", {"dataset": "f" * 64}, 0.0))
        write_trial(store, "0001", [0.2, 0.6])
        sweep.end("0001", "finished")
    monkeypatch.setattr("pipelines.tracking.time.monotonic", lambda clock=time.monotonic: clock() + 3600)
    write_trial(store, "0002", [0.4])
    sweep.end("0002", "finished")
    assert parent.run_id
    sweep.settle_models("0001")
    parent.end()
    runs = open_client(mlflow_uri).search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert sorted(run.data.tags["trial"] for run in runs) == ["0001", "0002"]
