from __future__ import annotations

import json
from pathlib import Path

from pipelines.storage import Storage
from pipelines.train import startup
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
