"""Workers that die: how often a run survives it, and how long the others wait for one that is silent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.errors import ClusterError, DataError, PipelineError, Unfinished
from pipelines.ray_runtime import RaySession
from pipelines.storage import Storage
from pipelines.train import group, ray_backend
from pipelines.train.checkpoint import save_checkpoint
from pipelines.train.notice import NOTICE
from pipelines.train.owner import OWNER, note_path
from tests.unit.train.tiny import make_config, write_dataset


class Died(Exception):
    """What Ray's trainer raises once it has counted too many deaths."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a worker died")
        self.worker_failures = {0: cause}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def train(
    dataset: str, run: Storage, monkeypatch: pytest.MonkeyPatch, *attempts: Callable[[], object]
) -> list[Callable[[], object]]:
    """Train with trainers in the place of Ray's that do this one after the other; return those left over."""
    left = list(attempts)

    def make_trainer(*_: object) -> SimpleNamespace:
        attempt = left.pop(0)
        return SimpleNamespace(fit=lambda: SimpleNamespace(return_value=attempt()))

    monkeypatch.setattr(group, "_make_trainer", make_trainer)
    monkeypatch.setattr(group, "_POLL_S", 0.01)
    group.train_in_workers(make_config(dataset), run, RaySession(2.0, 0.0, 1, (2.0,)))
    return left


def dying(run: Storage, step: int, cause: Exception | None = None) -> Callable[[], object]:
    """Return an attempt that comes as far as a checkpoint, before its workers die."""

    def attempt() -> object:
        if step:
            save_checkpoint(run, step, {"weights": b"w"})
        raise Died(cause or RuntimeError("killed"))

    return attempt


def test_deaths_with_a_checkpoint_between_them_are_not_counted_together(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Storage.open(tmp_path)
    told = Unfinished("workers were told to end")
    assert train(dataset, run, monkeypatch, dying(run, 4), dying(run, 8, told), dict) == []
    assert "died more than 3 times, and the run came as far as step 8 meanwhile: it goes on" in caplog.text


def test_without_a_new_checkpoint_they_end_the_run(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Storage.open(tmp_path)
    with pytest.raises(ClusterError, match="replaced 3 times from a checkpoint to the next"):
        train(dataset, run, monkeypatch, dying(run, 4), dying(run, 0), dict)
    with pytest.raises(ClusterError):
        train(dataset, run, monkeypatch, dying(run, 0), dict)


@pytest.mark.parametrize(
    ("cause", "note", "kind"),
    [(DataError("a row cannot be decoded"), "", DataError), (RuntimeError("killed"), NOTICE, ClusterError)],
    ids=["an error of the run", "called off"],
)
def test_what_going_on_would_not_mend_ends_the_run(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cause: Exception,
    note: str,
    kind: type[PipelineError],
) -> None:
    run = Storage.open(tmp_path)

    def attempt() -> object:
        if note:
            while not run.exists(OWNER):  # as a worker waits for its command to have the run
                time.sleep(0.01)
            run.put(note_path(note, json.loads(run.read(OWNER))["token"]), b"{}")
        return dying(run, 4, cause)()

    with pytest.raises(kind):
        train(dataset, run, monkeypatch, attempt, dict)


def test_nobody_waits_half_an_hour_for_a_worker_that_is_frozen() -> None:
    settings = ray_backend._torch_config()
    assert settings.timeout_s == ray_backend.SILENCE_S == 300
