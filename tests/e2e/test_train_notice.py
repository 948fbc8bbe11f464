"""`resnet train` and a real SIGTERM: the driver ends with 75, a worker is replaced, both at a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.storage import Storage
from pipelines.tracking import open_client
from pipelines.train.checkpoint import committed_steps
from tests.e2e.resnet_process import ResnetProcess, resnet_process
from tests.unit.train.tiny import make_config, write_dataset

# In every run `test_train_kill.py` tells a driver to end, and `tests/unit/train/test_notice.py` sends a real SIGTERM.
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS = 4000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train-notice")
    write_dataset(root / "dataset")
    values = make_config("dataset", epochs=EPOCHS, cpus_per_worker=1, loader_threads=1)
    config = values.model_dump(mode="json", exclude={"tracking", "ray", "dataset", "out"})
    (root / "tiny.yaml").write_text(yaml.safe_dump(config))
    return root


def records(place: Path, out: str) -> int:
    return len(list((place / out / "records").glob("epoch-*.json")))


def workers_of(process: ResnetProcess) -> list[int]:
    found = []
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


@pytest.mark.parametrize("told", ["driver", "local"])
def test_sigterm_leaves_a_checkpoint_and_the_same_command_goes_on(place: Path, mlflow_uri: str, told: str) -> None:
    words = ["train", "tiny.yaml", "--dataset", "dataset", "--out", told, "ray.num_cpus=1"]
    words += ["--local"] if told == "local" else []
    with resnet_process(place, *words, MLFLOW_TRACKING_URI=mlflow_uri) as process:
        process.wait_until(lambda: records(place, told) >= 3)
        family = process.children()
        os.kill(process.process.pid, signal.SIGTERM)
        started_s = time.monotonic()
        _, error = process.process.communicate(timeout=60)
        assert process.process.returncode == 75, error
        assert time.monotonic() - started_s < 30
        assert "the run was told to end (SIGTERM) after" in error
        assert "the same command goes on from the checkpoint that was left" in error
        assert "Traceback" not in error
        _, left = psutil.wait_procs(family, timeout=30)
        assert not left, [child.cmdline() for child in left]
    run = Storage.open(place / told)
    (*_, reached) = committed_steps(run)
    finished = records(place, told)
    assert reached >= 4 * finished  # four steps an epoch; the last may be begun
    run_id = json.loads((place / told / "run.json").read_text())["mlflow_run_id"]
    client = open_client(mlflow_uri)
    assert client.get_run(run_id).info.status == "KILLED"
    first = (place / told / "records" / "epoch-000001.json").read_bytes()
    with resnet_process(place, *words, MLFLOW_TRACKING_URI=mlflow_uri) as process:
        process.wait_until(lambda: records(place, told) >= finished + 3)
        os.kill(process.process.pid, signal.SIGTERM)
        process.process.communicate(timeout=60)
        assert process.process.returncode == 75
    assert (place / told / "records" / "epoch-000001.json").read_bytes() == first
    assert committed_steps(run)[-1] > reached
    steps = [point.step for point in client.get_metric_history(run_id, "train_loss")]
    assert len(steps) == len(set(steps))


def test_of_two_workers_the_one_that_is_told_is_replaced_and_no_step_is_done_twice(place: Path) -> None:
    words = ["train", "tiny.yaml", "--dataset", "dataset", "--out", "two", "num_workers=2", "ray.num_cpus=2"]
    run = Storage.open(place / "two")
    with resnet_process(place, *words, "tracking.enabled=false") as process:
        process.wait_until(lambda: records(place, "two") >= 3)
        first = workers_of(process)
        os.kill(first[-1], signal.SIGTERM)
        process.wait_until(lambda: not set(first) & set(workers_of(process)))
        left_at, standing = committed_steps(run)[-1], records(place, "two")
        assert standing == left_at // 4  # four steps an epoch: nothing was done beyond the checkpoint
        stamps = {path: path.stat().st_mtime_ns for path in (place / "two" / "records").iterdir()}
        process.wait_until(lambda: records(place, "two") >= standing + 3)
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
        os.kill(process.process.pid, signal.SIGTERM)
        _, error = process.process.communicate(timeout=60)
        assert process.process.returncode == 75, error
        assert "Traceback" not in error
