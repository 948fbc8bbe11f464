from __future__ import annotations

import json
import subprocess
import sys
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


def test_the_first_step_waits_for_no_import_that_it_does_without(tmp_path: Path) -> None:
    """torch's compiler with sympy takes 2 s to import, pandas half a second."""
    config = make_config(write_dataset(tmp_path / "dataset"), epochs=1)
    code = (
        "import sys\n"
        "from pipelines.storage import Storage\n"
        "from pipelines.train.config import TrainConfig\n"
        "from pipelines.train.loop import fit_local\n"
        f"config = TrainConfig.model_validate_json({config.model_dump_json()!r})\n"
        f"fit_local(config, Storage.open({str(tmp_path / 'run')!r}), device='cpu')\n"
        "heavy = {'torch._dynamo', 'sympy', 'pandas', 'torchvision', 'ray', 'mlflow', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_driver_checks_a_run_without_torch(tmp_path: Path) -> None:
    """Its workers import it: 2 s in which Ray comes up instead."""
    config = make_config(write_dataset(tmp_path / "dataset"), out=str(tmp_path / "run"))
    code = (
        "import sys\n"
        "import pipelines.train.group\n"
        "from pipelines.train.config import TrainConfig\n"
        "from pipelines.train.stage import check\n"
        f"check(TrainConfig.model_validate_json({config.model_dump_json()!r}))\n"
        "heavy = {'torch', 'pandas', 'ray.train', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
