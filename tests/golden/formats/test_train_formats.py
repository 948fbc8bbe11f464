"""The small files of a run: each is read as it was first written, and is written so still."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import torch

from pipelines.storage import Storage
from pipelines.tracking_records import Point
from pipelines.train.environment import PATH, environment_tags, read_environment, write_environment
from pipelines.train.machine_use import MachineUse
from pipelines.train.samples import SampleReader
from pipelines.train.step_log import StepLog, read_step_log, write_step_log
from pipelines.train.step_points import step_points
from tests.unit.train.tiny import make_config

FORMATS = Path(__file__).parent
STEPS = "steps/epoch-000002.json"


def golden(name: str) -> bytes:
    return (FORMATS / name).read_bytes()


def kinds(values: Any) -> Any:
    """Return JSON values as the kinds that they are of."""
    return {name: kinds(value) for name, value in values.items()} if isinstance(values, dict) else type(values)


def test_an_environment_of_the_first_format_is_read(tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    run.put("environment.json", golden("train-environment.v1.json"))
    environment = read_environment(run)
    assert environment == json.loads(golden("train-environment.v1.json"))
    assert environment_tags(environment) == {
        "mlflow.source.name": "resnet train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "0123456789abcdef0123456789abcdef01234567",
        "resnet.version": "0.1.0",
        "resnet.code_changed": "false",
        "python": "3.11.9",
        "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
        "torch": "2.14.1+cpu",
        "ray": "2.60.0",
    }


def test_an_environment_is_written_in_the_first_format(tmp_path: Path) -> None:
    run, sample = Storage.open(tmp_path), json.loads(golden("train-environment.v1.json"))
    write_environment(run)
    assert PATH == "environment.json"
    written = json.loads(run.read(PATH))
    assert written["format_version"] == sample["format_version"]
    # In a checkout or without one; which packages there are is the machine's business.
    for name in ("commit", "changed"):
        if name not in written["code"]:
            del sample["code"][name]
    packages = written.pop("packages")
    assert kinds(written) == kinds({name: value for name, value in sample.items() if name != "packages"})
    assert set(packages) >= set(sample["packages"])
    assert kinds(packages) == dict.fromkeys(packages, str)


def test_samples_of_the_first_format_are_read(tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    run.put("system/worker-00002-1764500010250.json", golden("train-samples.v1.json"))
    assert SampleReader(run, 1764500000.0).read_new() == [
        Point(
            10,
            {
                "system/worker_2/cpu_cores_used": 1.957,
                "system/worker_2/memory_megabytes": 812.4,
                "system/worker_2/machine_load": 2.31,
                "system/worker_2/machine_memory_percentage": 37.5,
            },
            1764500010.25,
        ),
        Point(
            20,
            {
                "system/worker_2/cpu_cores_used": 0.412,
                "system/worker_2/memory_megabytes": 1024.0,
                "system/worker_2/machine_load": 2.05,
                "system/worker_2/machine_memory_percentage": 38.1,
                "system/worker_2/gpu_utilization_percentage": 87.0,
                "system/worker_2/gpu_memory_megabytes": 5000.0,
            },
            1764500020.251,
        ),
    ]


def test_samples_are_written_in_the_first_format(tmp_path: Path) -> None:
    run, sample = Storage.open(tmp_path), json.loads(golden("train-samples.v1.json"))
    with MachineUse(run, 2, torch.device("cpu")):
        time.sleep(0.15)
    (file,) = run.list("system")
    assert re.fullmatch(r"system/worker-00002-\d{13}\.json", file.path)
    written = json.loads(run.read(file.path))
    (first,) = written.pop("samples")
    expected = sample.pop("samples")[0]
    assert written == sample
    optional = {"machine_load", "machine_memory_percentage"}  # not every system says them
    assert set(expected) - optional <= set(first) <= set(expected)
    assert kinds(first) == dict.fromkeys(first, float)


def test_steps_of_the_first_format_are_read_and_written_the_same(tmp_path: Path) -> None:
    run, values = Storage.open(tmp_path), json.loads(golden("train-steps.v1.json"))
    run.put(STEPS, golden("train-steps.v1.json"))
    log = read_step_log(run, 2)
    assert log == StepLog(**{name: value for name, value in values.items() if name != "format_version"})
    write_step_log(run, 2, log)
    assert json.loads(run.read(STEPS)) == values


def test_points_of_the_steps_are_the_first_ones(tmp_path: Path) -> None:
    """MLflow holds those of runs that are gone on with: other steps or other names would stand beside them."""
    run = Storage.open(tmp_path)
    run.put(STEPS, golden("train-steps.v1.json"))
    config = make_config("d", log_every_steps=2, schedule={"name": "constant", "warmup_epochs": 0})
    log = read_step_log(run, 2)
    assert log is not None
    assert step_points(log, config, steps_per_epoch=4) == [
        Point(6, {"step_loss": 1.125, "step_lr": 0.1, "step_images_per_s": 150.0}, 1764500010.75),
        Point(8, {"step_loss": 0.75, "step_lr": 0.05}, 1764500011.125),
    ]
