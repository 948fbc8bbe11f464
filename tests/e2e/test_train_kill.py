"""`resnet train`, its driver killed without warning and the same command given again: the same run, gone on with."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from pipelines.storage import Storage
from pipelines.tracking import open_client
from pipelines.train.checkpoint import load_latest
from pipelines.train.state import OPTIMIZER, WEIGHTS
from tests.e2e.resnet_process import ResnetProcess, resnet_process
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = pytest.mark.e2e

EPOCHS = 80


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train-kill")
    write_dataset(root / "dataset")
    values = make_config("dataset", epochs=EPOCHS, cpus_per_worker=1, loader_threads=1, checkpoint_every_s=0.0)
    config = values.model_dump(mode="json", exclude={"tracking", "ray", "dataset", "out"})
    (root / "tiny.yaml").write_text(yaml.safe_dump(config))
    return root


def train(place: Path, out: str) -> AbstractContextManager[ResnetProcess]:
    words = ["train", "tiny.yaml", "--dataset", "dataset", "--out", out, "ray.num_cpus=1"]
    return resnet_process(place, *words, MLFLOW_TRACKING_URI=f"sqlite:///{place}/mlflow.db")


def record_files(place: Path, out: str) -> list[Path]:
    return sorted((place / out / "records").glob("epoch-*.json"))


@pytest.mark.timeout(600)
def test_a_killed_driver_goes_on_from_its_checkpoint_in_the_same_mlflow_run(place: Path) -> None:
    with train(place, "killed") as process:
        process.wait_until(lambda: len(record_files(place, "killed")) >= 5)
        process.kill()
        assert not (place / "killed" / "_catalog.json").exists()
    first_run = json.loads((place / "killed" / "run.json").read_text())
    standing = {path: path.read_bytes() for path in record_files(place, "killed")[:4]}

    with train(place, "killed") as process:
        result = process.finish()
    assert not result["skipped"]
    assert result["figures"]["epochs"] == EPOCHS
    # Epochs finished before the kill were not trained again: their records are the very same files.
    assert {path: path.read_bytes() for path in standing} == standing
    assert len(record_files(place, "killed")) == EPOCHS

    client = open_client(f"sqlite:///{place}/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name == "resnet-pipelines"]
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [first_run["mlflow_run_id"]] == [result["figures"]["mlflow_run_id"]]
    assert runs[0].info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "val_top1")]
    assert steps == list(range(1, EPOCHS + 1))

    with train(place, "whole") as process:
        process.finish()
    ours, theirs = (load_latest(Storage.open(place / out)) for out in ("killed", "whole"))
    assert ours is not None
    assert theirs is not None
    assert {name: ours.files[name] for name in (WEIGHTS, OPTIMIZER)} == {
        name: theirs.files[name] for name in (WEIGHTS, OPTIMIZER)
    }
    with train(place, "killed") as process:
        assert process.finish()["skipped"]
