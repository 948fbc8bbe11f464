"""`resnet train` told to end by a real SIGTERM to driver or worker: a checkpoint, exit 75, the same run goes on."""

from __future__ import annotations

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

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

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


def workers_of(process: ResnetProcess) -> list[psutil.Process]:
    found = []
    for child in process.children():
        try:
            words = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if "RayTrainWorker" in words:
            found.append(child)
    return found


@pytest.mark.parametrize("told", [pytest.param("driver", marks=pytest.mark.slow), "worker", "local"])
def test_sigterm_leaves_a_checkpoint_and_the_same_command_goes_on(place: Path, told: str) -> None:
    words = ["train", "tiny.yaml", "--dataset", "dataset", "--out", told, "ray.num_cpus=1"]
    words += ["--local"] if told == "local" else []
    address = f"sqlite:///{place}/{told}.db"
    with resnet_process(place, *words, MLFLOW_TRACKING_URI=address) as process:
        process.wait_until(lambda: records(place, told) >= 3)
        target = workers_of(process)[0].pid if told == "worker" else process.process.pid
        family = process.children()
        os.kill(target, signal.SIGTERM)
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
    client = open_client(address)
    assert client.get_run(run_id).info.status == "KILLED"
    first = (place / told / "records" / "epoch-000001.json").read_bytes()
    with resnet_process(place, *words, MLFLOW_TRACKING_URI=address) as process:
        process.wait_until(lambda: records(place, told) >= finished + 3)
        os.kill(process.process.pid, signal.SIGTERM)
        process.process.communicate(timeout=60)
        assert process.process.returncode == 75
    assert (place / told / "records" / "epoch-000001.json").read_bytes() == first
    assert committed_steps(run)[-1] > reached
    steps = [point.step for point in client.get_metric_history(run_id, "train_loss")]
    assert len(steps) == len(set(steps))
