"""`resnet train`, its driver killed without warning, then told to end: each time the same run is gone on with."""

from __future__ import annotations

import json
import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from pipelines.storage import Storage
from pipelines.tracking import open_client
from pipelines.train.checkpoint import load_latest
from pipelines.train.loop import fit_local
from pipelines.train.state import OPTIMIZER, WEIGHTS
from tests.e2e.resnet_process import ResnetProcess, resnet_process
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = pytest.mark.e2e

EPOCHS = 200


def start_training(place: Path, mlflow_uri: str, *words: str) -> AbstractContextManager[ResnetProcess]:
    return resnet_process(place, "train", *words, MLFLOW_TRACKING_URI=mlflow_uri)


def record_files(place: Path) -> list[Path]:
    return sorted((place / "killed" / "records").glob("epoch-*.json"))


@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_or_told_to_end_goes_on_from_its_checkpoint_in_the_same_mlflow_run(
    tmp_path: Path, mlflow_uri: str, one_torch_thread: None
) -> None:
    write_dataset(tmp_path / "dataset")
    config = make_config(
        str(tmp_path / "dataset"), epochs=EPOCHS, cpus_per_worker=1, loader_threads=1, checkpoint_every_s=0.0
    )
    values = config.model_dump(mode="json", exclude={"tracking", "ray", "dataset", "out"})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    words = ["tiny.yaml", "--dataset", "dataset", "--out", "killed", "ray.num_cpus=1", "tracking.experiment=train-kill"]
    with start_training(tmp_path, mlflow_uri, *words) as process:
        process.wait_until(lambda: len(record_files(tmp_path)) >= 5)
        process.kill()
        assert not (tmp_path / "killed" / "_catalog.json").exists()
    first_run = json.loads((tmp_path / "killed" / "run.json").read_text())
    standing = {path: path.read_bytes() for path in record_files(tmp_path)[:4]}

    reached = len(record_files(tmp_path))
    with start_training(tmp_path, mlflow_uri, *words) as process:
        process.wait_until(lambda: len(record_files(tmp_path)) >= reached + 5)
        os.kill(process.process.pid, signal.SIGTERM)
        _, error = process.process.communicate(timeout=60)
    assert process.process.returncode == 75, error
    assert "the run was told to end (SIGTERM) after" in error
    assert "Traceback" not in error
    client = open_client(mlflow_uri)
    assert client.get_run(first_run["mlflow_run_id"]).info.status == "KILLED"
    standing |= {path: path.read_bytes() for path in record_files(tmp_path)}

    with start_training(tmp_path, mlflow_uri, "--resume", "killed") as process:
        result = process.finish()
    assert not result["skipped"]
    assert result["figures"]["epochs"] == EPOCHS
    # Epochs finished before the ends were not trained again: their records are the very same files.
    assert {path: path.read_bytes() for path in standing} == standing
    assert len(record_files(tmp_path)) == EPOCHS

    experiment = client.get_experiment_by_name("train-kill")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [first_run["mlflow_run_id"]] == [result["figures"]["mlflow_run_id"]]
    assert runs[0].info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "val_top1")]
    assert steps == list(range(1, EPOCHS + 1))

    fit_local(config, Storage.open(tmp_path / "whole"), device="cpu")
    ours, theirs = (load_latest(Storage.open(tmp_path / out)) for out in ("killed", "whole"))
    assert ours is not None
    assert theirs is not None
    assert {name: ours.files[name] for name in (WEIGHTS, OPTIMIZER)} == {
        name: theirs.files[name] for name in (WEIGHTS, OPTIMIZER)
    }
