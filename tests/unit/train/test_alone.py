"""Training in this process with a thread beside it that hands figures on: what the thread drops is picked up."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typing_extensions import override

from pipelines.errors import RegistryError, StorageError
from pipelines.storage import LocalStorage, Storage
from pipelines.train import alone, follow, stage, startup
from pipelines.train.alone import train_alone
from pipelines.train.follow import Follower
from pipelines.train.outcome import read_outcome
from pipelines.train.owner import Claim
from pipelines.train.records import EpochRecord, write_record
from tests.unit.train.notes import make_record
from tests.unit.train.tiny import make_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(autouse=True)
def _anew() -> None:
    startup.begin()


class Told:
    """What `train_alone` has told."""

    def __init__(self) -> None:
        self.starts = 0
        self.epochs: list[int] = []

    def on_start(self) -> None:
        self.starts += 1

    def on_epoch(self, record: EpochRecord) -> None:
        assert self.starts
        self.epochs.append(record.epoch)


def test_a_last_look_that_fails_loses_no_figures(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any) -> None:
        raise StorageError("cannot read: the store answers 503")

    monkeypatch.setattr(alone, "_POLL_S", 60.0)  # all is left to the last look
    monkeypatch.setattr(Follower, "_look", away)
    told, run = Told(), Storage.open(tmp_path)
    train_alone(make_config(dataset, epochs=3), run, on_epoch=told.on_epoch, on_start=told.on_start, claim=Claim(run))
    assert (told.starts, told.epochs) == (1, [1, 2, 3])
    assert "its figures are handed on at its end: StorageError: cannot read: the store answers 503" in caplog.text


def test_a_fault_in_what_is_told_comes_out(dataset: str, tmp_path: Path) -> None:
    def broken(_: EpochRecord) -> None:
        raise ZeroDivisionError("a bug")

    config, run = make_config(dataset, epochs=2), Storage.open(tmp_path)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train_alone(config, run, on_epoch=broken, on_start=lambda: None, claim=Claim(run))
    outcome = read_outcome(config, run)
    assert outcome is not None
    assert not outcome.stopped


def test_a_record_counts_as_handed_when_it_was_taken(tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    write_record(run, make_record(1))
    calls: list[int] = []

    def on_record(record: EpochRecord) -> None:
        calls.append(record.epoch)
        if len(calls) == 1:
            raise StorageError("cannot write the stop note")

    with Follower(run, on_record) as follower:
        follower.poll()
        follower.poll()
        follower.poll()
    assert calls == [1, 1]


def test_by_what_it_was_trained_is_kept_whatever_mlflow_says_and_by_no_command_that_trains_nothing(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise RegistryError("MLflow cannot open a run")

    config, run = make_config(dataset, epochs=1, local=True), Storage.open(tmp_path)
    log: Any = SimpleNamespace(run_id="", begin=refuse)
    teller: Any = SimpleNamespace(begin=lambda: None, follow=lambda: None, tell_epoch=lambda record: True)
    stage._train(config, run, log, teller, Claim(run))
    assert "MLflow cannot open a run" in caplog.text
    assert b'"python"' in run.read("environment.json")
    run.put("environment.json", b"of the command that trained")
    log.begin = lambda: None
    stage._train(config, run, log, teller, Claim(run))
    assert run.read("environment.json") == b"of the command that trained"


class Away(LocalStorage):
    """A folder that cannot be read."""

    @override
    def read(self, path: str, *_: Any, **__: Any) -> bytes:
        raise StorageError("away")


def test_a_follower_begins_while_storage_is_away(tmp_path: Path) -> None:
    assert follow.Follower(Away(str(tmp_path)), lambda _: None)._standing is None


@pytest.mark.parametrize("setting", ["ray.address", "RAY_ADDRESS"])
def test_a_cluster_that_goes_unused_is_told(
    dataset: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    alone.check_alone(make_config(dataset, local=True))
    assert not caplog.text
    if setting == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray = {"address": "10.0.0.1:6379"} if setting == "ray.address" else {}
    alone.check_alone(make_config(dataset, local=True, ray=ray))
    assert f"not in the cluster that {setting} names (10.0.0.1:6379)" in caplog.text


def test_a_gpu_that_torch_cannot_use_is_said_here_too(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/proc/driver/nvidia/version" or exists(path))
    told, run = Told(), Storage.open(tmp_path)
    config = make_config(dataset, epochs=1, use_gpu="auto")
    train_alone(config, run, on_epoch=told.on_epoch, on_start=told.on_start, claim=Claim(run))
    assert "an NVIDIA driver is loaded, but torch" in caplog.text
