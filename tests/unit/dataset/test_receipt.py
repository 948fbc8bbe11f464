"""Receipts: the first of several attempts wins, and everybody goes on with it."""

from __future__ import annotations

import json

import pytest

from pipelines.dataset.receipt import read_receipts, receipt_path, write_receipt
from pipelines.errors import DataError
from pipelines.storage import Storage


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.open(tmp_path)


def test_the_first_attempt_wins_and_the_loser_is_told(storage):
    first = write_receipt(storage, "run-0", 4, {"attempt": "a", "files": [], "counts": {}})
    assert first["attempt"] == "a"
    assert write_receipt(storage, "run-0", 4, {"attempt": "b", "files": [], "counts": {}}) == first
    assert read_receipts(storage, "run-0") == {4: first}


def test_receipts_of_other_runs_and_temporary_files_are_not_read(storage):
    write_receipt(storage, "run-0", 1, {"attempt": "a"})
    write_receipt(storage, "run-01", 2, {"attempt": "a"})
    storage.put("_work/run-0/note.txt", b"")
    assert list(read_receipts(storage, "run-0")) == [1]
    assert read_receipts(storage, "run-2") == {}


def test_a_receipt_of_any_schema_is_kept_whole(storage):
    """Scoring writes its own figures through the same door."""
    receipt = write_receipt(storage, "run-0", 0, {"rows": 3, "sha256": "ab"})
    assert receipt == {
        "format": "resnet-pipelines/receipt",
        "format_version": 1,
        "run_id": "run-0",
        "rows": 3,
        "sha256": "ab",
        "unit": 0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        (json.dumps({"format": "resnet-pipelines/receipt", "format_version": 2}), "this program reads"),
        (json.dumps({"format": "something"}), "has format 'something'"),
    ],
)
def test_a_receipt_that_cannot_be_read_is_named(storage, text, message):
    storage.put(receipt_path("run-0", 0), text.encode())
    with pytest.raises(DataError, match=message) as error:
        read_receipts(storage, "run-0")
    assert "unit-000000.json" in str(error.value)
    assert "its unit will be done again" in str(error.value)
