"""`resnet tune`, its driver killed without warning and the same command given again: no finished trial runs twice."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from pipelines.tracking import open_client
from pipelines.tune import stage
from pipelines.tune.config import TuneConfig
from tests.e2e.resnet_process import ResnetProcess, resnet_process
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = pytest.mark.e2e

EPOCHS = 12
TRIALS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune-kill")
    write_dataset(root / "dataset")
    training = make_config("dataset", epochs=EPOCHS, loader_threads=1, checkpoint_every_s=0.0)
    config = {
        "train": training.model_dump(mode="json", exclude={"tracking", "ray", "dataset", "out"}),
        "space": {"model.width": {"choice": [0.5, 1.0]}, "optimizer.lr": {"loguniform": [0.05, 0.2]}},
        "num_trials": TRIALS,
        "scheduler": "none",  # with every trial whole, the outcome does not hang on the kill's moment
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(config))
    return root


def tune(place: Path, out: str, mlflow_uri: str) -> AbstractContextManager[ResnetProcess]:
    words = ["tune", "tiny.yaml", "--dataset", "dataset", "--out", out, "ray.num_cpus=1"]
    return resnet_process(place, *words, "tracking.experiment=tune-kill", MLFLOW_TRACKING_URI=mlflow_uri)


def statuses(place: Path, out: str) -> dict[str, str]:
    return {
        path.stem: json.loads(path.read_text())["status"] for path in sorted((place / out / "journal").glob("*.json"))
    }


def record_files(place: Path, out: str, trial: str) -> list[Path]:
    return sorted((place / out / "trials" / trial / "records").glob("epoch-*.json"))


@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_and_runs_no_finished_trial_again(place: Path, mlflow_uri: str, ray_local: None) -> None:
    with tune(place, "killed", mlflow_uri) as process:
        # the first trial has ended, the second is under way
        process.wait_until(lambda: len(record_files(place, "killed", "0002")) >= 3)
        process.kill()
    before = statuses(place, "killed")
    assert before["trial-0001"] == "finished"
    assert before["trial-0002"] == "running"
    assert not (place / "killed" / "_catalog.json").exists()
    first_run = json.loads((place / "killed" / "run.json").read_text())
    # The last record of a running trial may be written anew: its checkpoint may not have been whole.
    standing = record_files(place, "killed", "0001") + record_files(place, "killed", "0002")[:-1]
    stamps = {path: path.stat().st_mtime_ns for path in standing}
    assert len(stamps) >= EPOCHS + 2

    with tune(place, "killed", mlflow_uri) as process:
        result = process.finish()
    assert not result["skipped"]
    assert result["figures"]["finished"] == TRIALS
    assert {path: path.stat().st_mtime_ns for path in standing} == stamps

    client = open_client(mlflow_uri)
    experiment = client.get_experiment_by_name("tune-kill")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [first_run["mlflow_run_id"]] == [result["figures"]["mlflow_run_id"]]
    assert len(runs) == 1 + TRIALS
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run not in parents:
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val_top1")]
            assert steps == list(range(1, EPOCHS + 1))

    values = yaml.safe_load((place / "tiny.yaml").read_text())
    values["train"]["dataset"] = str(place / "dataset")
    values |= {"out": str(place / "whole"), "tracking": {"enabled": False}}
    stage.run(TuneConfig.model_validate_json(json.dumps(values)))
    ours, theirs = (json.loads((place / out / "_catalog.json").read_text()) for out in ("killed", "whole"))
    assert [trial["curve"] for trial in ours["trials"]] == [trial["curve"] for trial in theirs["trials"]]
    assert ours["model"] == theirs["model"]
