"""A run that starts from a smaller trained network, grown: the same function at the first step, then training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config.load import load_config
from pipelines.errors import ConfigError
from pipelines.package.load import load_package
from pipelines.storage import Storage
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.loop import fit_local
from pipelines.train.plan import plan
from pipelines.train.stage import _refuse_early
from pipelines.train.transfer import start_network
from tests.unit.train.starts import CLASSES, write_start
from tests.unit.train.tiny import make_config, write_dataset

LARGER = {"stem": "cifar", "depths": [2, 3], "channels": [16, 32]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def grown(dataset: str, source: str, **changes: Any) -> TrainConfig:
    return make_config(dataset, init={"from": source, "grow": True}, **{"model": LARGER, **changes})


def test_the_larger_network_starts_as_the_same_function(dataset: str, tmp_path: Path) -> None:
    source = write_start(tmp_path / "start")
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    small = load_package(source).network.eval()
    start = start_network(
        grown(dataset, source), CLASSES, (16, 16), world=World(), device=torch.device("cpu"), resumes=False
    )
    assert start.network.spec.stage_depths == (2, 3)
    with torch.no_grad():
        expected, logits = small(images), start.network.eval()(images)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_it_trains_and_resumes(dataset: str, tmp_path: Path) -> None:
    config = grown(dataset, write_start(tmp_path / "start"), epochs=2)
    whole = fit_local(config, Storage.open(tmp_path / "whole"), device="cpu")
    half = Storage.open(tmp_path / "half")
    fit_local(config, half, device="cpu", on_epoch=lambda record: False)
    again = fit_local(config, half, device="cpu")
    assert [record.train_loss for record in again.records] == [record.train_loss for record in whole.records]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"stem": "cifar", "depths": [1], "channels": [16]}, "cannot be grown to this one"),
        ({"stem": "cifar", "depths": [2, 2], "channels": [4, 16]}, "cannot be grown to this one"),
        ({"stem": "cifar", "depths": [2, 2], "channels": [8, 16], "block": "bottleneck"}, "cannot be grown"),
    ],
)
def test_what_cannot_be_grown_is_refused_before_anything_is_started(
    dataset: str, tmp_path: Path, model: dict[str, Any], words: str
) -> None:
    config = grown(dataset, write_start(tmp_path / "start"), model=model)
    with pytest.raises(ConfigError, match=words) as refused:
        _refuse_early(config, plan(config))
    assert "init.grow" in str(refused.value)


def test_growing_is_part_of_the_key_and_needs_a_start(dataset: str, tmp_path: Path) -> None:
    source = write_start(tmp_path / "start")
    fits = {"stem": "cifar", "depths": [1, 1], "channels": [8, 16]}
    plain = make_config(dataset, init={"from": source}, model=fits)
    assert plan(plain).key != plan(grown(dataset, source, model=fits)).key
    with pytest.raises(ConfigError, match="grow is true and there is no from"):
        load_config(TrainConfig, overrides=["init.grow=true"])
