"""The journal: created once, replaced whole, readable later."""

import json
import uuid
from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.storage import Storage
from pipelines.tune.journal import Journal, TrialEntry

GOLDEN = Path(__file__).parents[2] / "golden" / "formats" / "tune-trial.v1.json"


@pytest.fixture
def storage() -> Storage:
    return Storage.open(f"memory://{uuid.uuid4().hex}/sweep")


def test_a_trial_is_begun_once_and_found_again(storage: Storage) -> None:
    journal = Journal(storage)
    entry = journal.open("0001", {"optimizer.lr": 0.1})
    assert entry == TrialEntry("0001", {"optimizer.lr": 0.1}, status="running")
    ended = TrialEntry("0001", {"optimizer.lr": 0.1}, "stopped", "behind", 3, 0.5, 2, "abc")
    journal.write(ended)
    assert Journal(storage).open("0001", {"optimizer.lr": 0.1}) == ended
    assert [file.path for file in storage.list()] == ["journal/trial-0001.json"]


@pytest.mark.parametrize(
    ("status", "over"),
    [("running", False), ("failed", False), ("finished", True), ("stopped", True), ("refused", True)],
)
def test_only_ended_trials_are_left_alone(status: str, over: bool) -> None:
    assert TrialEntry("0001", {}, status=status).is_over is over  # type: ignore[arg-type]


def test_the_first_format_is_still_read(storage: Storage) -> None:
    storage.put("journal/trial-0003.json", GOLDEN.read_bytes())
    entry = Journal(storage).open("0003", {"model.depth": 14, "optimizer.lr": 0.02469})
    assert entry == TrialEntry(
        "0003",
        {"model.depth": 14, "optimizer.lr": 0.02469},
        status="stopped",
        reason="behind at epoch 3 with 41.5%",
        epochs=3,
        val_top1=0.415,
        best_epoch=3,
        mlflow_run_id="0f3a",
    )
    Journal(storage).write(entry)
    assert json.loads(storage.read("journal/trial-0003.json")) == json.loads(GOLDEN.read_bytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"journal/trial-0001.json is no journal entry: Expecting value"),
        (b'{"format_version": 1, "trial": "00', r"is no journal entry: Unterminated string"),
        (b"[]", r"is no journal entry: "),
        (b'{"trial": "0001", "params": {}}', r"is no journal entry: 'format_version'"),
        (b'{"format_version": 1, "trial": "0001", "params": {}, "x": 1}', r"is no journal entry: .*unexpected keyword"),
        (b'{"format_version": 2, "trial": "0001"}', r"has format version 2, newer than this program reads"),
        (b'{"format_version": 1, "trial": "0001", "params": {"a": 1}}', r"is of values {'a': 1}, not of {}"),
    ],
)
def test_a_damaged_or_foreign_entry_is_named(storage: Storage, content: bytes, message: str) -> None:
    storage.put("journal/trial-0001.json", content)
    with pytest.raises(DataError, match=message):
        Journal(storage).open("0001", {})
