"""Small files of a run that are cut, empty or of another release: said, or done without, never a traceback."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.ray_runtime import RaySession
from pipelines.storage import Storage
from pipelines.train import group
from pipelines.train.batch_size import FOUND, settle_batch_size
from pipelines.train.follow import Follower
from pipelines.train.loop import fit_local
from pipelines.train.outcome import read_outcome
from pipelines.train.records import PROGRESS, EpochRecord, read_progress, read_record, record_path, write_record
from pipelines.train.worker import FAILURE, read_failure
from tests.unit.train.notes import make_record, note_progress
from tests.unit.train.test_driver import Trainer
from tests.unit.train.tiny import make_config, write_dataset

RECORD = make_record(1).to_json()
CUT = json.dumps(RECORD).encode()[:40]
DAMAGED = [
    (CUT, "Unterminated|Expecting|delimiter"),
    (b"", "Expecting value"),
    (b"\xff\xfe", "Expecting value"),
    (b"[]", "carries no format version"),
    (json.dumps(RECORD | {"format_version": 2}).encode(), "its format version is 2; this program reads up to 1"),
    (json.dumps(RECORD | {"brand_new": 1}).encode(), "it has the unknown field brand_new"),
    (json.dumps({k: v for k, v in RECORD.items() if k != "lr"}).encode(), "it has no lr"),
    (json.dumps(RECORD | {"train_loss": "low"}).encode(), "its train_loss is 'low'"),
    (json.dumps(RECORD | {"val_loss": None}).encode(), "its val_loss is None"),
    (json.dumps(RECORD | {"epoch": 2}).encode(), "it is that of epoch 2"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.mark.parametrize(("data", "words"), DAMAGED)
def test_a_record_that_cannot_be_used_is_named_with_its_mend(tmp_path: Path, data: bytes, words: str) -> None:
    run = Storage.open(tmp_path)
    run.put(record_path(1), data)
    with pytest.raises(DataError, match=words) as caught:
        read_record(run, 1)
    assert caught.value.where == f"{run.uri}/records/epoch-000001.json"
    assert "copy" in caught.value.mend


def test_a_run_is_refused_before_it_trains_where_a_record_is_damaged(dataset: str, tmp_path: Path) -> None:
    config, run = make_config(dataset, epochs=2), Storage.open(tmp_path)
    fit_local(config, run, on_epoch=lambda _: False, device="cpu")
    run.put(record_path(1), CUT)
    with pytest.raises(DataError, match="the record of epoch 1 cannot be used"):
        read_outcome(config, run)


def test_the_driver_of_a_healthy_run_goes_on_past_a_damaged_record(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, ended, told = Storage.open(tmp_path), threading.Event(), list[int]()
    write_record(run, make_record(1))
    run.put(record_path(2), CUT)

    def on_epoch(record: EpochRecord) -> bool:
        told.append(record.epoch)
        if record.epoch == 3:
            ended.set()
        return True

    def mend() -> None:
        while "cannot be followed" not in caplog.text:
            ended.wait(0.01)
        for epoch in (2, 3):
            write_record(run, make_record(epoch))

    monkeypatch.setattr(group, "_POLL_S", 0.01)
    monkeypatch.setattr(group, "_make_trainer", lambda *_: Trainer(ended))
    worker = threading.Thread(target=mend)
    worker.start()
    with caplog.at_level(logging.WARNING):
        group.train_in_workers(make_config(dataset), run, RaySession(2.0, 0.0, 1, (2.0,)), on_epoch=on_epoch)
    worker.join()
    assert told == [1, 2, 3]


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"epoch": 1}'])
def test_a_note_of_progress_that_cannot_be_read_is_none(tmp_path: Path, data: bytes) -> None:
    run = Storage.open(tmp_path)
    run.put(PROGRESS, data)
    with Follower(run, lambda _: None) as follower:
        follower.poll()
    assert read_progress(run) is None
    note_progress(run)
    note = read_progress(run)
    assert note is not None
    assert note.step == 4


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"{}", b'{"type": 1, "what": "", "where": "", "mend": ""}'])
def test_a_damaged_note_of_a_failure_is_none(tmp_path: Path, data: bytes) -> None:
    run = Storage.open(tmp_path)
    run.put(FAILURE, data)
    assert read_failure(run, "") is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"{}", b'{"size": 0}', b'{"size": "8"}'])
def test_a_damaged_batch_size_is_named_with_its_mend(dataset: str, tmp_path: Path, data: bytes) -> None:
    run = Storage.open(tmp_path)
    run.put(FOUND, data)
    with pytest.raises(DataError, match="the batch size that was found for this run cannot be read") as caught:
        settle_batch_size(make_config(dataset, find_batch_size=True), run, {})
    assert caught.value.where == f"{run.uri}/batch_size.json"
    assert caught.value.mend.startswith("delete the file")
