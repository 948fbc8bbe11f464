"""The Python API: light to import, configs from keywords, one function a stage."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import api
from pipelines.errors import ConfigError, InputError


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pipelines.api import ingest, train, tune, evaluate, register, score;"
        "print([name for name in ('torch', 'ray', 'mlflow', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert shown.stdout == "[]\n"


def test_load_takes_keywords_over_the_preset() -> None:
    config = api.load("train", "cifar-fast", dataset="d", epochs=2, optimizer__lr=0.5, augment={"flip": False})
    assert (config.epochs, config.optimizer.lr, config.augment.flip, config.dataset) == (2, 0.5, False, "d")
    assert config.model.depths == (1, 1, 1)
    assert api.load("ingest", source="photos.zip").source == "photos.zip"


def test_load_takes_paths_and_configs_as_values(tmp_path: Path) -> None:
    split = api.load("ingest", source="x", split={"train": 0.5, "val": 0.25, "test": 0.25}).split
    config = api.load("ingest", source=tmp_path, split=split)
    assert (config.source, config.split) == (str(tmp_path), split)


def test_a_misspelt_key_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        api.load("train", dataset="d", epoch=2)
    assert raised.value.what == "unknown key epoch"
    assert raised.value.mend == "did you mean epochs?"


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(InputError) as raised:
        api.load("train", "cifar-slow", dataset="d")
    assert raised.value.what == "train has no preset 'cifar-slow'"
    assert "cifar-fast" in raised.value.mend


@pytest.mark.parametrize("name", ["ingest", "train", "tune", "evaluate", "register", "score"])
def test_every_stage_takes_its_config(name: str) -> None:
    assert list(inspect.signature(getattr(api, name)).parameters) == ["config"]
