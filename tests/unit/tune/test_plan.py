"""The key of a sweep: what decides its outcome and nothing else."""

from pathlib import Path

import pytest

from pipelines.config.load import load_config
from pipelines.errors import ConfigError, InputError
from pipelines.tune.config import TuneConfig
from pipelines.tune.plan import plan
from tests.unit.train.tiny import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


def key(dataset: str, *overrides: str) -> str:
    return plan(load_config(TuneConfig, None, [f"train.dataset={dataset}", *overrides])).key


@pytest.mark.parametrize(
    "override",
    [
        "out=elsewhere",
        "workers_per_trial=2",
        "cpus_per_worker=4",
        "max_concurrent_trials=1",
        "max_failures=0",
        "epoch_timeout_s=5",
        "tracking.enabled=false",
        "ray.num_cpus=1",
        "train.num_workers=2",
        "train.tracking.experiment=x",
    ],
)
def test_how_a_sweep_runs_is_not_in_its_key(dataset: str, override: str) -> None:
    assert key(dataset, override) == key(dataset)


@pytest.mark.parametrize(
    "override",
    [
        "num_trials=9",
        "seed=1",
        "search=random",
        "scheduler=none",
        "grace_epochs=2",
        "reduction_factor=2",
        "train.epochs=29",
        "train.optimizer.momentum=0.8",
        "space={model.depth: {choice: [8, 14]}, optimizer.lr: {loguniform: [0.01, 1]}}",
    ],
)
def test_what_a_sweep_finds_is_in_its_key(dataset: str, override: str) -> None:
    assert key(dataset, override) != key(dataset)


def test_the_plan_pins_the_dataset_and_names_the_folder(dataset: str) -> None:
    made = plan(load_config(TuneConfig, None, [f"train.dataset={dataset}"]))
    assert made.dataset == f"{dataset}@v1"
    assert made.out == f"runs/tune/{made.key[:12]}"
    assert set(made.inputs) == {"dataset", "preprocess"}


def test_mistakes_are_found_before_anything_is_written(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as missing:
        plan(TuneConfig())
    assert missing.value.what == "train.dataset is missing"
    assert missing.value.mend == "name one: resnet tune CONFIG --dataset DATASET"
    with pytest.raises(InputError, match=r"there is no dataset at .*nowhere"):
        key(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="num_trials is 3, and space holds 2 different points"):
        key(dataset, "space={model.depth: {choice: [8, 14]}}", "num_trials=3")
