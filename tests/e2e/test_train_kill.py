"""`resnet train`, its driver killed without warning and the same command given again: the same run, gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipelines.storage import Storage
from pipelines.tracking import open_client
from pipelines.train.checkpoint import load_latest
from pipelines.train.state import OPTIMIZER, WEIGHTS
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


@contextlib.contextmanager
def command(place: Path, out: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a session of its own; whatever it leaves running is ended."""
    words = ["train", "tiny.yaml", "--dataset", "dataset", "--out", out, "ray.num_cpus=1", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.main", *words],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    family: list[psutil.Process] = []
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        if process.poll() is None:
            process.kill()
        process.communicate()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def record_files(place: Path, out: str) -> list[Path]:
    return sorted((place / out / "records").glob("epoch-*.json"))


@pytest.mark.timeout(600)
def test_a_killed_driver_goes_on_from_its_checkpoint_in_the_same_mlflow_run(place: Path) -> None:
    with command(place, "killed") as process:
        deadline = time.monotonic() + 240
        while len(record_files(place, "killed")) < 5:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (place / "killed" / "_catalog.json").exists()
    first_run = json.loads((place / "killed" / "run.json").read_text())
    standing = {path: path.read_bytes() for path in record_files(place, "killed")[:4]}

    with command(place, "killed") as process:
        result = finish(process)
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

    with command(place, "whole") as process:
        finish(process)
    ours, theirs = (load_latest(Storage.open(place / out)) for out in ("killed", "whole"))
    assert ours is not None
    assert theirs is not None
    assert {name: ours.files[name] for name in (WEIGHTS, OPTIMIZER)} == {
        name: theirs.files[name] for name in (WEIGHTS, OPTIMIZER)
    }
    with command(place, "killed") as process:
        assert finish(process)["skipped"]
