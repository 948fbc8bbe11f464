"""What is told when: steps after their record, those of a try that was gone back behind never; storage that fails."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.errors import StorageError
from pipelines.storage import Storage
from pipelines.tracking_records import Record
from pipelines.train import teller as teller_module
from pipelines.train.plan import TrainPlan
from pipelines.train.step_log import StepLog, read_step_log, write_step_log
from pipelines.train.teller import Teller
from tests.unit.train.notes import make_record
from tests.unit.train.tiny import make_config

RECORD = make_record(1, val_top1=0.5, lr=0.0)


class FakeLog(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(records=[], tags=[])

    def put(self, record: Record) -> None:
        self.records.append(record)

    def log_tags(self, tags: dict[str, str]) -> None:
        self.tags.append(tags)

    def log_file(self, path: str, data: bytes) -> None:
        pass

    def of(self, metric: str) -> list[Record]:
        return [record for record in self.records if metric in dict(record.steps)]

    def steps(self, metric: str = "step_loss") -> list[int]:
        return [step for record in self.records for name, step in record.steps if name == metric]


def make_teller(place: Path) -> tuple[Teller, FakeLog, Storage, Any]:
    log: Any = FakeLog()
    config = make_config("d", tracking={"enabled": True}, epochs=10, schedule={"name": "constant", "warmup_epochs": 0})
    plan = TrainPlan("train", "k", {"dataset": "f" * 64}, str(place), dataset="/data/d@v1")
    run = Storage.open(place)
    return Teller(log, run, config, plan, 0.0), log, run, config


def write_steps(run: Storage, rate_scale: float) -> None:
    steps = StepLog()
    for _ in range(4):
        steps.add(1.0, 0, rate_scale)
    write_step_log(run, 1, steps)


def test_steps_of_a_try_that_was_gone_back_behind_are_not_told_for_those_of_the_next(tmp_path: Path) -> None:
    teller, log, run, config = make_teller(tmp_path)
    first = replace(RECORD, lr=config.optimizer.lr)
    assert teller.tell_epoch(first)
    teller._look(must_list=False)
    assert log.steps() == []  # the log is written after the record
    write_steps(run, 1.0)
    for _ in range(2):
        teller._look(must_list=False)
    assert log.steps() == [1, 2, 3, 4]
    assert log.of("step_loss")[0].tried  # an earlier command may have sent them
    teller.tell_epoch(replace(first, lr=first.lr / 2))  # once more, after a rollback
    teller._look(must_list=False)
    assert len(log.steps()) == 4  # what stands is of the try before
    write_steps(run, 0.5)
    teller._look(must_list=False)
    assert len(log.steps()) == 8
    assert not log.records[-1].tried
    assert log.steps("train_loss") == [1, 1]


def test_a_folder_that_cannot_be_read_is_said_once_and_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teller, log, run, config = make_teller(tmp_path)
    write_steps(run, 1.0)
    teller.tell_epoch(replace(RECORD, lr=config.optimizer.lr))

    def fail(path: str) -> bytes:
        raise StorageError("the disk is away")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(run, "read", fail)
        for _ in range(3):
            teller._look_safely()
    assert [record.getMessage() for record in caplog.records] == [
        "what the run's folder holds cannot be told to MLflow yet: StorageError: the disk is away"
    ]
    teller.tell_rest()
    assert log.steps() == [1, 2, 3, 4]
    assert [record.what for record in log.records] == ["metrics", "metrics", "models"]


def test_what_is_damaged_keeps_nothing_else_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teller, log, run, config = make_teller(tmp_path)
    write_steps(run, 1.0)
    first = replace(RECORD, lr=config.optimizer.lr)
    for record in (replace(first, epoch=2, step=8), first):
        teller.tell_epoch(record)
    for path in ("environment.json", "system/worker-00000-1.json", "steps/epoch-000002.json"):
        run.put(path, b"")
    run.put("system/worker-00000-2.json", b'{"format_version": 1, "worker": 0, "samples": [{"at_s": 5.0, "x": 1.0}]}')
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            teller._look_safely()
        teller.tell_rest()
    assert log.steps() == [1, 2, 3, 4]
    assert [record.steps for record in log.records if record.what == "metrics"][-1] == (("system/worker_0/x", 5),)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    for name in ("environment.json", "worker-00000-1.json", "epoch-000002.json"):
        assert sum(name in line for line in said) == 1


def test_a_folder_that_cannot_be_read_keeps_no_training_from_being_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teller, _, run, _ = make_teller(tmp_path)

    def fail(path: str) -> bytes:
        raise StorageError("the disk is away")

    monkeypatch.setattr(run, "read", fail)
    with caplog.at_level(logging.WARNING), teller:
        teller.follow()
        teller.tell_last()
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow lacks a part of what the run's folder holds; `resnet track` tells it: StorageError: the disk is away"
    ]
    with pytest.raises(StorageError):
        teller.tell_rest()


def test_steps_that_do_not_come_are_looked_for_some_times_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teller_module, "_MOST_LOOKS", 3)
    teller, log, run, config = make_teller(tmp_path)
    teller.tell_epoch(replace(RECORD, lr=config.optimizer.lr))
    asked: list[int] = []

    def ask(storage: Storage, epoch: int) -> StepLog | None:
        asked.append(epoch)
        return read_step_log(storage, epoch)

    monkeypatch.setattr(teller_module, "read_step_log", ask)
    for _ in range(5):
        teller._look(must_list=False)
    assert len(asked) == 3
    write_steps(run, 1.0)
    teller.tell_rest()
    assert log.steps() == [1, 2, 3, 4]


def test_epochs_that_the_run_went_back_behind_are_forgotten(tmp_path: Path) -> None:
    teller, log, run, config = make_teller(tmp_path)
    teller._told_before = {1, 2}  # by an earlier command
    first = replace(RECORD, lr=config.optimizer.lr)
    second = replace(first, epoch=2, step=8)
    for record in (first, second, second):  # handed on once more, and the same
        assert not teller.tell_epoch(record)
    assert teller.tell_epoch(replace(first, lr=first.lr / 2))
    assert list(teller._records) == list(teller._due) == [1]
    write_steps(run, 0.5)
    teller.tell_rest()  # the second epoch was not done anew
    assert log.steps() == [1, 2, 3, 4]
    assert not log.of("step_loss")[0].tried  # MLflow has those of the try before
    assert teller.tell_epoch(second)
