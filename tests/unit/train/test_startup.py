from __future__ import annotations

import json
from pathlib import Path

from pipelines.storage import Storage
from pipelines.train import startup
from pipelines.train.loop import fit_local
from pipelines.train.worker import train_worker
from tests.unit.train.tiny import make_config, write_dataset


def test_a_run_keeps_the_moments_that_driver_and_worker_passed(tmp_path: Path) -> None:
    config = make_config(write_dataset(tmp_path / "dataset"))
    run = Storage.open(tmp_path / "run")
    settings = {"config": config.model_dump_json(), "run": run.uri, "threads": 1, "use_gpu": False}
    assert train_worker({**settings, "marks": [["command read", 1.0]]}) == {}
    moments = json.loads(run.read(startup.START))
    names = [name for name, _ in moments]
    assert names == ["command read", "worker entered", "torch imported", "data read", "first step"]
    assert [at_s for _, at_s in moments] == sorted(at_s for _, at_s in moments)


def test_each_training_in_this_process_has_moments_of_its_own(tmp_path: Path) -> None:
    config = make_config(write_dataset(tmp_path / "dataset"), epochs=1)
    for name in ("first", "second"):
        run = Storage.open(tmp_path / name)
        fit_local(config, run, device="cpu")
        moments = json.loads(run.read(startup.START))
        assert [moment for moment, _ in moments] == ["data read", "first step"]
