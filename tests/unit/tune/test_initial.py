"""A sweep whose trials start from one set of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.storage import Storage
from pipelines.tune.config import TuneConfig
from pipelines.tune.plan import plan
from pipelines.tune.stage import plan_trials
from resnet_models.resnet import build
from tests.unit.train.starts import SPEC, write_start
from tests.unit.train.tiny import make_config, write_dataset


def make_sweep(dataset: str, source: str, **changes: Any) -> TuneConfig:
    train = make_config(dataset, model={}, init={"from": source}).model_dump(mode="json")
    return TuneConfig.model_validate_json(json.dumps({"train": train, "num_trials": 3, **changes}))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def test_trials_vary_the_rate_alone_and_start_from_the_sweeps_own_copy(dataset: str, tmp_path: Path) -> None:
    config = make_sweep(dataset, write_start(tmp_path / "start"))
    trials = plan_trials(config, plan(config), Storage.open(tmp_path / "sweep"))
    assert [list(trial.params) for trial in trials] == [["optimizer.lr"]] * 3
    for trial in trials:
        assert trial.config is not None
        assert trial.config.init.source == str(tmp_path / "sweep" / "init")
        assert trial.config.model.stage_channels == SPEC.stage_channels
        assert trial.config.model.num_classes == 0


def test_a_given_space_may_vary_what_is_frozen(dataset: str, tmp_path: Path) -> None:
    space = {"init.freeze_until": {"choice": ["", "stage1", "head"]}, "model.drop_path_rate": {"uniform": [0.0, 0.2]}}
    config = make_sweep(dataset, write_start(tmp_path / "start"), space=space)
    trials = plan_trials(config, plan(config), Storage.open(tmp_path / "sweep"))
    assert all(trial.config is not None for trial in trials), [trial.refusal for trial in trials]
    with pytest.raises(ValidationError, match=r"space names init.from, which is nothing that a training can vary"):
        make_sweep(dataset, "x", space={"init.from": {"choice": ["a", "b"]}})


def test_the_key_of_a_sweep_holds_the_weights(dataset: str, tmp_path: Path) -> None:
    first = plan(make_sweep(dataset, write_start(tmp_path / "start")))
    same = plan(make_sweep(dataset, write_start(tmp_path / "copy")))
    other = plan(make_sweep(dataset, write_start(tmp_path / "other", network=build(SPEC, seed=5))))
    assert first.key == same.key != other.key
