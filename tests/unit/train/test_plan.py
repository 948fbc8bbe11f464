from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, InputError
from pipelines.stage_output import publish_catalog
from pipelines.storage import Storage
from pipelines.train.plan import plan
from tests.unit.train.tiny import make_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.mark.parametrize("changes", [
    {"num_workers": 3}, {"out": "elsewhere"}, {"use_gpu": True}, {"checkpoint_every_s": 1.0}, {"cache_limit_mb": 0},
    {"tracking": {"uri": "http://host:5000"}}, {"ray": {"num_cpus": 1}}, {"cpus_per_worker": 2}, {"loader_threads": 3},
])  # fmt: skip
def test_how_a_run_is_run_is_not_in_its_key(dataset: str, changes: dict[str, Any]) -> None:
    assert plan(make_config(dataset, **changes)).key == plan(make_config(dataset)).key


@pytest.mark.parametrize("changes", [
    {"epochs": 3}, {"seed": 1}, {"optimizer": {"lr": 0.2}}, {"model": {"depths": [1, 1]}}, {"global_batch_size": 21},
    {"augment": {"shift_px": 2}}, {"precision": "auto"}, {"ema_decay": 0.9}, {"schedule": {"name": "cosine"}},
    {"label_smoothing": 0.1}, {"channels_last": False},
])  # fmt: skip
def test_what_a_run_makes_is_in_its_key(dataset: str, changes: dict[str, Any]) -> None:
    assert plan(make_config(dataset, **changes)).key != plan(make_config(dataset)).key


def test_the_key_follows_the_rows_not_the_address(dataset: str, tmp_path: Path) -> None:
    copy = write_dataset(tmp_path / "copy")
    other = write_dataset(tmp_path / "other", counts={"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 2}})
    key = plan(make_config(dataset)).key
    assert plan(make_config(copy)).key == plan(make_config(f"{dataset}@v1")).key == key
    assert plan(make_config(other)).key != key


def test_the_plan_pins_the_version_and_names_a_folder(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(dataset).parent)
    found = plan(make_config(Path(dataset).name))
    assert found.dataset == f"{dataset}@v1"
    assert found.out == f"runs/train/{found.key[:12]}"
    assert plan(make_config(dataset, out="s3://bucket/run")).out == "s3://bucket/run"


def test_a_missing_dataset_is_named(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(ConfigError, match="dataset is missing") as caught:
        plan(make_config(""))
    assert "resnet train CONFIG --dataset DATASET" in str(caught.value)
    with pytest.raises(InputError, match=f"there is no dataset at {tmp_path}: no catalog is published there"):
        plan(make_config(str(tmp_path)))
    with pytest.raises(InputError, match="has no version v7; published: v1 to v1"):
        plan(make_config(f"{dataset}@v7"))


def test_a_finished_run_is_skipped_without_torch_ray_or_mlflow(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, out=str(tmp_path / "run"))
    publish_catalog(
        Storage.open(config.out),
        {
            "stage": "train",
            "key": plan(config).key,
            "mlflow_run_id": "",
            "dataset": {"uri": dataset},
            "model": {"path": "model"},
            "best": {"epoch": 2, "val_top1": 0.5},
            "epochs": 2,
            "records": [{"images_per_s": 10.0, "elapsed_s": 3.0}],
        },
    )
    program = f"""
import sys
from pipelines.train import stage
from pipelines.train.config import TrainConfig
result = stage.run(TrainConfig.model_validate_json({config.model_dump_json()!r}))
assert result.skipped and result.figures["val_top1"] == 0.5, result
loaded = [name for name in ("torch", "ray", "mlflow", "pandas", "pyarrow") if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"sampling": "balanced"}])
def test_runs_that_were_computed_otherwise_once_have_another_version(
    dataset: str, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def keys() -> tuple[str, str]:
        return plan(make_config(dataset)).key, plan(make_config(dataset, **changes)).key

    now = keys()
    monkeypatch.setattr("pipelines.train.plan.output_version", lambda config: 1)
    before = keys()
    assert now[0] == before[0]
    assert now[1] != before[1]
