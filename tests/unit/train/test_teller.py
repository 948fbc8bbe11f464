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
from pipelines.train.plan import TrainPlan
from pipelines.train.records import EpochRecord
from pipelines.train.step_log import StepLog, write_step_log
from pipelines.train.teller import Teller
from tests.unit.train.tiny import make_config

RECORD = EpochRecord(
    epoch=1,
    step=4,
    train_loss=1.0,
    train_top1=0.5,
    val_loss=1.0,
    val_top1=0.5,
    lr=0.0,
    images_per_s=1.0,
    elapsed_s=1.0,
    data_wait_fraction=0.0,
    id_trace="0" * 16,
)


class FakeLog(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(records=[], metrics=[])

    def put(self, record: Record) -> None:
        self.records.append(record)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append(step)

    def steps(self) -> list[int]:
        return [step for record in self.records for name, step in record.steps if name == "step_loss"]


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
    assert log.records[0].tried  # an earlier command may have sent them
    teller.tell_epoch(replace(first, lr=first.lr / 2))  # once more, after a rollback
    teller._look(must_list=False)
    assert len(log.steps()) == 4  # what stands is of the try before
    write_steps(run, 0.5)
    teller._look(must_list=False)
    assert len(log.steps()) == 8
    assert not log.records[-1].tried
    assert log.metrics == [1, 1]


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
    assert [record.what for record in log.records] == ["metrics", "models"]
