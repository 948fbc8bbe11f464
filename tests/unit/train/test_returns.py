"""Runs that go back to a checkpoint: others may be reading it, the disk may be full, and a kill may come at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import override

from pipelines.errors import StorageError
from pipelines.storage import LocalStorage, Storage
from pipelines.train import loop, run_writer
from pipelines.train.checkpoint import commit_path, committed_steps, load_latest
from pipelines.train.collectives import World
from pipelines.train.feed import SplitRows
from pipelines.train.keeper import Keeper
from pipelines.train.loop import fit, fit_local
from pipelines.train.state import OPTIMIZER, WEIGHTS, Cursor, read_cursor
from tests.unit.train.test_loop import Killed, poison
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


READING = threading.Event()


class Distant(LocalStorage):
    """Another node's view of a folder: what a marker lists is read a while after the marker."""

    @override
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        data = super().read(path, offset, length)
        if path == commit_path(4):
            READING.set()
            time.sleep(0.5)
        return data


class Near(LocalStorage):
    """The folder, in which nothing of a standing checkpoint is taken away before the other node has begun to read."""

    @override
    def delete(self, *paths: str, lasts: bool = True) -> None:
        if commit_path(4) in paths and self.exists(commit_path(4)):
            READING.wait(10)
        super().delete(*paths, lasts=lasts)


class Full(LocalStorage):
    """A folder on a disk that is full from some moment on."""

    is_full = False

    @override
    def put(self, path: str, data: bytes | memoryview, **options: Any) -> None:
        if self.is_full and path.startswith("checkpoints/"):
            raise StorageError(f"cannot write {path}: No space left on device")
        super().put(path, data, **options)


def newest_cursor(run: Storage) -> Cursor:
    newest = load_latest(run)
    assert newest is not None
    return read_cursor(newest)


def test_a_worker_that_still_reads_the_checkpoint_finds_it_whole(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at_step=6, times=2)
    READING.clear()
    stores = [Near(str(tmp_path)), Distant(str(tmp_path))]
    config = make_config(dataset, epochs=3, divergence={"rollbacks": 1})
    outcomes = in_threads(2, lambda world: fit(config, stores[world.rank], world=world, device=torch.device("cpu")))
    assert [outcome.epochs for outcome in outcomes] == [3, 3]
    assert newest_cursor(stores[0]).rate_scale == 0.5


def test_a_full_disk_leaves_the_checkpoint_that_a_run_goes_back_to(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_writer, "_LAST_PAUSES_S", (0.01, 0.01))
    poison(monkeypatch, at_step=6, times=1)
    run = Full(str(tmp_path))
    config = make_config(dataset, epochs=3, divergence={"rollbacks": 1})

    assert fit_local(config, run, device="cpu", on_epoch=lambda _: False).epochs == 1  # its checkpoint is safe
    run.is_full = True
    with pytest.raises(StorageError, match="No space left on device"):
        fit_local(config, run, device="cpu")
    assert "that the run went back to step 4 could not be written; training goes on" in caplog.text
    assert committed_steps(run) == [4]
    assert newest_cursor(run).step == 4
    monkeypatch.undo()
    run.is_full = False
    assert fit_local(config, run, device="cpu").epochs == 3


@pytest.mark.parametrize(("times", "back_to"), [(1, [4]), (2, [4, 0])], ids=["once", "twice"])
def test_killed_when_it_has_gone_back_a_run_goes_on_as_if_it_had_not_been(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, back_to: list[int]
) -> None:
    config = make_config(dataset, epochs=3, divergence={"rollbacks": 3})
    go_back = Keeper.go_back
    returns: list[int] = []

    def noted(self: Keeper, state: Any, identity: Any) -> None:
        go_back(self, state, identity)
        returns.append(state.cursor.step)

    def killed(self: Keeper, state: Any, identity: Any) -> None:
        noted(self, state, identity)
        raise Killed

    whole, run = Storage.open(tmp_path / "whole"), Storage.open(tmp_path / "run")
    monkeypatch.setattr(Keeper, "go_back", noted)
    with monkeypatch.context() as patch:
        poison(patch, at_step=6, times=times)
        expected = fit_local(config, whole, device="cpu")
    assert returns == back_to
    returns.clear()
    monkeypatch.setattr(Keeper, "go_back", killed)
    with monkeypatch.context() as patch:
        poison(patch, at_step=6, times=times)
        for number, step in enumerate(back_to, start=1):
            with pytest.raises(Killed):
                fit_local(config, run, device="cpu")
            cursor = newest_cursor(run)
            assert (cursor.step, cursor.returned_to) == (step, step)
            assert (cursor.rollbacks, cursor.rate_scale) == (number, 0.5**number)
        outcome = fit_local(config, run, device="cpu")
    assert returns == back_to  # never twice to the same one, though killed in between
    assert [record.lr for record in outcome.records] == [record.lr for record in expected.records]
    ours, theirs = load_latest(run), load_latest(whole)
    assert ours is not None
    assert theirs is not None
    assert [ours.files[name] for name in (WEIGHTS, OPTIMIZER)] == [theirs.files[name] for name in (WEIGHTS, OPTIMIZER)]


def test_going_back_to_the_start_opens_no_rows_anew(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_rows(dataset: Any, split: str, **how: Any) -> SplitRows:
        opened.append(split)
        return SplitRows(dataset, split, **how)

    poison(monkeypatch, at_step=2, times=1)
    run = Storage.open(tmp_path / "run")
    config = make_config(dataset, epochs=2, divergence={"rollbacks": 1})
    outcome = fit(config, run, world=World(), device=torch.device("cpu"), open_rows=open_rows)
    assert (outcome.epochs, newest_cursor(run).rollbacks) == (2, 1)
    assert opened == ["train", "val"]


def test_the_best_epoch_of_the_checkpoint_before_stands_when_a_run_goes_back_to_it(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 4 is better than epoch 1, and then both it and what comes after it are gone back behind."""
    scores, evaluate = iter([0.8, 0.5, 0.6, 0.85, 0.7, 0.7]), loop.evaluate

    def scored(*args: Any, **how: Any) -> Any:
        return {**evaluate(*args, **how), "val_top1": next(scores)}

    monkeypatch.setattr(loop, "evaluate", scored)
    poison(monkeypatch, at_step=18, times=2)
    run = Storage.open(tmp_path / "run")
    outcome = fit_local(make_config(dataset, epochs=5, divergence={"rollbacks": 2}), run, device="cpu")
    assert (outcome.epochs, newest_cursor(run).rollbacks) == (5, 2)
    assert (outcome.best.epoch, outcome.best.step) == (1, 4)
    assert 4 in committed_steps(run)
