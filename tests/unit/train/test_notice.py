"""Word that a run is to end, or its machine to go: a checkpoint at once, and the same run later."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.errors import ConfigError, StorageError, Unfinished
from pipelines.ray_runtime import RaySession
from pipelines.storage import Storage
from pipelines.train import group, loop, notice, stage, worker
from pipelines.train.checkpoint import committed_steps
from pipelines.train.collectives import World
from pipelines.train.loop import fit, fit_local
from pipelines.train.notice import NOTICE, Notice, catching_sigterm, noted_in
from pipelines.train.owner import note_path
from pipelines.train.records import EpochRecord
from pipelines.train.worker import STOP, _is_draining, train_worker
from tests.unit.train.test_loop import final_files
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def asked_times(number: int) -> Any:
    """A question that is answered with yes from the given time on."""
    asked = [0]

    def ask() -> bool:
        asked[0] += 1
        return asked[0] >= number

    return ask


@pytest.mark.parametrize("told", [0, 1])
def test_a_notice_to_any_worker_leaves_a_checkpoint_and_ends_all(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    config = make_config(dataset, epochs=3)
    run = Storage.open(tmp_path / "run")
    asks = asked_times(6)  # the second step of the second epoch; an epoch's end asks too

    def work(world: World) -> Any:
        mine = Notice(asks if world.rank == told else lambda: False)
        return fit(config, run, world=world, device=torch.device("cpu"), notice=mine)

    outcomes = in_threads(2, work)
    assert [outcome.stopped for outcome in outcomes] == [True, True]
    assert committed_steps(run)[-1] == 5
    in_threads(2, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    whole = Storage.open(tmp_path / "whole")
    in_threads(2, lambda world: fit(config, whole, world=world, device=torch.device("cpu")))
    assert final_files(run) == final_files(whole)


def test_a_worker_that_is_told_leaves_for_another_to_go_on(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    monkeypatch.setattr(worker, "_DRIVER_S", 0.0)
    config = make_config(dataset, epochs=3)
    run, whole = Storage.open(tmp_path / "run"), Storage.open(tmp_path / "whole")
    threads = torch.get_num_threads()
    settings = {"config": config.model_dump_json(), "run": run.uri, "threads": threads, "use_gpu": False}
    with monkeypatch.context() as patch:
        patch.setattr(notice, "is_terminated", asked_times(6))  # the second step of the second epoch
        with pytest.raises(Unfinished, match="more often than they are replaced"):
            train_worker(settings)
        assert committed_steps(run)[-1] == 5
        run.put(NOTICE, b"{}")  # the driver was told too: nobody is to be replaced
        assert train_worker(settings) == {}
        assert committed_steps(run)[-1] < 12
    run.delete(NOTICE)
    assert train_worker(settings) == {}
    fit_local(config, whole, device="cpu")
    assert final_files(run) == final_files(whole)


@pytest.mark.parametrize("end", [NOTICE, STOP, "time", ""])
def test_a_worker_that_is_told_as_the_run_ends_is_not_replaced(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    config, run, stands = make_config(dataset), Storage.open(tmp_path / "run"), worker._stands

    def miss_once(storage: Storage, note: str, owner: str) -> bool:
        is_there = stands(storage, note, owner)
        if note == end:
            run.put(note, b"{}")  # the driver was told together with the worker, and is a little later
        return is_there

    monkeypatch.setattr(loop, "fit", lambda *_, **__: SimpleNamespace(stopped=True))
    monkeypatch.setattr(notice, "is_terminated", lambda: True)
    monkeypatch.setattr(worker, "_stands", miss_once)
    settings = {"config": config.model_dump_json(), "run": run.uri, "threads": 1, "use_gpu": False}
    if end:
        ends_at_s = time.time() if end == "time" else math.inf
        assert train_worker(settings | {"ends_at_s": ends_at_s}) == {}
        return
    assert worker._DRIVER_S > group._POLL_S
    monkeypatch.setattr(worker, "_DRIVER_S", 0.1)
    with pytest.raises(Unfinished):  # told alone
        train_worker(settings)


def test_a_node_that_drains_leaves_one_checkpoint_at_once_and_the_run_goes_on(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    steps: list[int] = []
    save = loop.Keeper.save

    def counted(self: Any, state: Any, identity: Any) -> None:
        steps.append(state.cursor.step)
        save(self, state, identity)

    monkeypatch.setattr(loop.Keeper, "save", counted)
    run = Storage.open(tmp_path / "run")
    outcome = fit(
        make_config(dataset, epochs=2),
        run,
        world=World(),
        device=torch.device("cpu"),
        notice=Notice(is_draining=asked_times(6)),
    )
    assert not outcome.stopped
    assert steps == [4, 6, 8]  # the ends of the epochs, and one between


def test_sigterm_to_a_run_in_this_process_exits_with_75_and_goes_on(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, epochs=400, local=True, out=str(tmp_path / "run"))
    run = Storage.open(config.out)
    sent: list[int] = []

    finish = loop._Loop._finish_epoch

    def finish_and_terminate(self: Any, val: Any) -> EpochRecord:
        record = finish(self, val)
        if record.epoch == 3 and not sent:
            sent.append(record.epoch)
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_finish_epoch", finish_and_terminate)
        with pytest.raises(Unfinished, match=r"told to end \(SIGTERM\) after \d+ of 400 epochs") as caught:
            stage.run(config)
    assert caught.value.exit_code == 75
    assert committed_steps(run)[-1] >= 12
    short = config.model_copy(update={"epochs": 400})
    stopped = fit_local(short, run, device="cpu", on_epoch=lambda record: record.epoch < 8)
    assert stopped.epochs == 8
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_no_signal_is_made_up_where_the_last_checkpoint_is_damaged(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(dataset, epochs=3, local=True, out=str(tmp_path / "run"))
    run = Storage.open(config.out)
    train = loop._Loop.run_epochs

    def train_and_damage(self: Any, on_epoch: Any) -> Any:
        outcome = train(self, on_epoch)
        for step in committed_steps(run)[1:]:
            run.put(f"checkpoints/step-{step:08d}/weights.safetensors", b"cut")
        return outcome

    monkeypatch.setattr(loop._Loop, "run_epochs", train_and_damage)
    with pytest.raises(Unfinished, match="by its newest checkpoint that is whole the run stopped after 2 of 3 epochs"):
        stage.run(config)
    monkeypatch.undo()
    assert stage.run(config).figures["epochs"] == 3


def test_a_second_sigterm_goes_to_whoever_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "_SAME_S", -1.0)  # it comes later
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with catching_sigterm() as told:
            os.kill(os.getpid(), signal.SIGTERM)
            assert told.wait(1)
            assert seen == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_own_drivers_note_is_found_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "_POLL_S", 0.01)
    run = Storage.open(tmp_path)
    run.put(note_path(NOTICE, "older"), b"{}")
    with noted_in(run, "newer") as is_noted:
        time.sleep(0.2)
        assert not is_noted()
        run.put(note_path(NOTICE, "newer"), b"{}")
        deadline_s = time.monotonic() + 5
        while not is_noted() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert is_noted()


class Trainer:
    """In place of Ray's: done when the workers' notice is there."""

    def __init__(self, run: Storage) -> None:
        self._run = run

    def fit(self) -> Any:
        deadline_s = time.monotonic() + 10
        while not self._notices() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return SimpleNamespace(return_value={"notices": len(self._notices())})

    def _notices(self) -> list[str]:
        return [file.path for file in self._run.list("_work") if file.path.startswith(NOTICE.removesuffix(".json"))]


def test_a_drivers_notice_outlives_storage_that_fails(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Storage.open(tmp_path / "run")
    put, failures = run.put, iter([StorageError("cannot write: the store answers 503")] * 2)

    def put_later(path: str, data: bytes) -> None:
        if "/notice-" in path and (failure := next(failures, None)):
            raise failure
        put(path, data)

    @contextlib.contextmanager
    def told_already() -> Iterator[threading.Event]:
        told = threading.Event()
        told.set()
        yield told

    monkeypatch.setattr(run, "put", put_later)
    monkeypatch.setattr(group, "_POLL_S", 0.01)
    monkeypatch.setattr(group, "catching_sigterm", told_already)
    monkeypatch.setattr(group, "_make_trainer", lambda *_: Trainer(run))
    ended = group.train_in_workers(make_config(dataset), run, RaySession(2.0, 0.0, 1, (2.0,)))
    assert ended == group.Ended({"notices": 1}, was_told=True)
    assert "the workers cannot be told to end yet; trying again: StorageError: cannot write" in caplog.text


def test_a_replay_that_is_told_to_end_ends_at_once(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves nothing to go on from, and no word in a run that is over."""
    run, usual = Storage.open(tmp_path / "run"), signal.getsignal(signal.SIGTERM)

    def fit() -> Any:
        return SimpleNamespace(return_value={"handlers": [signal.getsignal(signal.SIGTERM)]})

    monkeypatch.setattr(group, "_make_trainer", lambda *_: SimpleNamespace(fit=fit))
    monkeypatch.setattr(group, "_POLL_S", 0.01)
    session, window = RaySession(2.0, 0.0, 1, (2.0,)), {"step": 0, "steps": 2}
    ended = group.train_in_workers(make_config(dataset), run, session, window=window)
    assert ended == group.Ended({"handlers": [usual]}, was_told=False)
    assert not run.list("_work")


def test_a_draining_node_is_seen_where_the_installed_ray_notes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution import context, preemption

    assert "preemption_context" in {field.name for field in fields(context.TrainContext)}
    noted = preemption.PreemptionContext()
    monkeypatch.setattr(context, "get_train_context", lambda: SimpleNamespace(preemption_context=noted))
    assert not _is_draining()
    noted.preemption_info = object()
    assert _is_draining()


def test_several_workers_in_one_process_are_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="local is true and num_workers is 2: without Ray there is this process alone"
    ):
        stage.run(make_config(dataset, local=True, num_workers=2, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_one_word_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends SIGTERM to its child, then to the group that the child is in."""
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    try:
        with notice.catching_sigterm() as told:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            assert told.is_set()
            assert ended == []
            monkeypatch.setattr(notice, "_SAME_S", -1.0)  # later
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
