"""Two commands on one folder: the older stops and says for whom, whatever was killed before."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import override

from pipelines.errors import ClusterError, RegistryError, StorageError, Superseded
from pipelines.ray_runtime import RaySession
from pipelines.storage import LocalStorage, Storage
from pipelines.train import group, loop
from pipelines.train.checkpoint import committed_steps, load_latest
from pipelines.train.collectives import World
from pipelines.train.loop import fit, fit_local
from pipelines.train.notice import NOTICE
from pipelines.train.owner import OWNER, Claim, await_claim, check_owner, claim_run, note_path
from pipelines.train.records import EpochRecord
from pipelines.train.state import OPTIMIZER, WEIGHTS
from pipelines.train.worker import FAILURE, rebuild_failure, train_worker
from tests.unit.train.awaited import await_writes
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads

NOTE = b'{"format_version": 1, "token": "ab", "host": "gpu-3", "pid": 71, "started_s": 1795996800.0}'


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(params=["local", "object store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.open(tmp_path if request.param == "local" else f"memory://{tmp_path.name}/run")


def final_files(run: Storage) -> list[bytes]:
    newest = load_latest(run)
    assert newest is not None
    return [newest.files[name] for name in (WEIGHTS, OPTIMIZER)]


def test_the_newest_note_wins_and_names_its_command(run: Storage) -> None:
    check_owner(run, "nobody has claimed it")
    run.put(OWNER, NOTE)
    check_owner(run, "ab")
    with pytest.raises(Superseded) as caught:
        check_owner(run, "older")
    assert str(caught.value) == (
        "Superseded: another command trains in this folder now"
        " (process 71 on gpu-3, started 2026-11-30 00:00:00 UTC); this one stops\n"
        f"  where: {run.uri}\n"
        "  mend:  let that one finish, or give this one another --out"
    )
    token = claim_run(run)  # the note of a command that may have been killed holds nobody up
    check_owner(run, token)
    assert json.loads(run.read(OWNER))["pid"] == os.getpid()


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b'{"token": 1}', b"\xff", NOTE[:30]])
def test_a_note_that_names_nobody_stops_nobody(run: Storage, note: bytes) -> None:
    run.put(OWNER, note)
    check_owner(run, "mine")


def test_of_two_commands_at_once_the_older_stops_and_the_newer_ends_as_if_alone(
    dataset: str, run: Storage, tmp_path: Path
) -> None:
    config = make_config(dataset, epochs=6)
    whole = Storage.open(tmp_path / "whole")
    fit_local(config, whole, device="cpu")
    newer_goes, older_is_done = threading.Event(), threading.Event()

    def after_two(record: EpochRecord) -> bool:
        if record.epoch == 2:
            newer_goes.set()
            assert newer_begun.wait(60)
        return True

    newer_begun = threading.Event()

    def older() -> None:
        try:
            fit_local(config, run, device="cpu", on_epoch=after_two)
        finally:
            older_is_done.set()

    def newer() -> Any:
        assert newer_goes.wait(60)

        def first(record: EpochRecord) -> bool:
            newer_begun.set()
            assert older_is_done.wait(60)
            return True

        return fit_local(config, run, device="cpu", on_epoch=first)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(older), pool.submit(newer)
        assert other.result().epochs == 6
        with pytest.raises(Superseded, match=f"process {os.getpid()} on "):
            one.result()
    assert final_files(run) == final_files(whole)


def test_all_workers_of_the_older_command_stop_together(dataset: str, tmp_path: Path) -> None:
    config, run = make_config(dataset, epochs=5), Storage.open(tmp_path)

    def claim_in_second(record: EpochRecord) -> bool:
        if record.epoch == 2:
            claim_run(run)
        return True

    def member(world: Any) -> BaseException | None:
        with pytest.raises(Superseded) as caught:
            fit(config, run, world=world, device=torch.device("cpu"), on_epoch=claim_in_second)
        return caught.value

    assert [type(error) for error in in_threads(2, member)] == [Superseded, Superseded]
    assert committed_steps(run)[-1] <= 8


class Watched(LocalStorage):
    """A folder that counts the looks at the note, and lets something happen before a file is put."""

    def __init__(self, path: Path, before_put: Callable[[str], object] = lambda _: None) -> None:
        super().__init__(str(path))
        self.looks = 0
        self.before_put = before_put

    @override
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        self.looks += path == OWNER
        return super().read(path, offset, length)

    @override
    def put(self, path: str, data: bytes | memoryview, **options: Any) -> None:
        self.before_put(path)
        super().put(path, data, **options)


def test_a_step_costs_no_look_at_the_note(dataset: str, tmp_path: Path) -> None:
    few, many = Watched(tmp_path / "few"), Watched(tmp_path / "many")
    fit_local(make_config(dataset, global_batch_size=72), few, device="cpu")
    fit_local(make_config(dataset, global_batch_size=4), many, device="cpu")
    assert 0 < many.looks <= few.looks + 4  # records of an epoch are written at once or one by one


def test_claimed_while_a_checkpoint_is_written_nothing_is_pruned_and_the_run_stops(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await_writes(monkeypatch)

    def claim(path: str) -> None:
        if path == "checkpoints/step-00000012/COMMIT":
            claim_run(Storage.open(tmp_path))

    with pytest.raises(Superseded):
        fit_local(make_config(dataset, epochs=5), Watched(tmp_path, claim), device="cpu")
    assert {4, 8, 12} <= set(committed_steps(Storage.open(tmp_path)))


class Blinking(Watched):
    """A folder whose note cannot be read for once after each checkpoint that stands."""

    is_shut = False

    @override
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        if path == OWNER and self.is_shut:
            self.is_shut = False
            raise StorageError("the store answers 503")
        return super().read(path, offset, length)


def test_a_look_that_fails_behind_a_whole_checkpoint_does_not_make_it_a_lost_one(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await_writes(monkeypatch)
    commits: list[str] = []

    def shut(path: str) -> None:
        if path.endswith("/COMMIT"):
            commits.append(path)
            run.is_shut = True

    run = Blinking(tmp_path, shut)
    outcome = fit_local(make_config(dataset, epochs=3), run, device="cpu")
    assert len(commits) == len(set(commits)) == 3
    assert outcome.best.step in committed_steps(run)
    assert "old checkpoints could not be deleted: StorageError: the store answers 503" in caplog.text
    assert "could not be written" not in caplog.text


def test_a_worker_that_ray_replaces_does_not_take_the_run_back(dataset: str, tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    settings = {
        "config": make_config(dataset).model_dump_json(),
        "run": run.uri,
        "threads": 1,
        "use_gpu": False,
        "owner": claim_run(run),
    }
    newer = claim_run(run)
    for _ in range(2):
        failure = train_worker(settings)["failure"]
        error = rebuild_failure(failure)
        assert isinstance(error, Superseded)
        assert isinstance(error, ClusterError)
    assert committed_steps(run) == []
    assert not run.exists(FAILURE)  # the newer command's workers would end of it
    check_owner(run, newer)
    assert train_worker({**settings, "owner": newer}) == {}


def test_a_command_that_is_refused_takes_no_run(dataset: str, tmp_path: Path) -> None:
    run = Storage.open(tmp_path / "run")
    token = claim_run(run)
    config = make_config(dataset, num_workers=8)
    with pytest.raises(ClusterError, match="training with 8 workers"):
        group.train_in_workers(config, run, RaySession(2.0, 0.0, 1, (2.0,)))
    check_owner(run, token)


def test_a_worker_waits_until_its_command_has_taken_the_run(dataset: str, tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    older = claim_run(run)
    claim = Claim(run)
    assert (claim.is_made, claim.find_successor()) == (False, None)
    settings = {
        "config": make_config(dataset).model_dump_json(),
        "run": run.uri,
        "threads": 1,
        "use_gpu": False,
        "owner": claim.token,
        "awaits_claim": True,
    }
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(train_worker, settings)
        with pytest.raises(TimeoutError):
            working.result(0.5)
        other = claim_run(run)  # begun at the same time
        with pytest.raises(TimeoutError):
            working.result(0.3)
        assert committed_steps(run) == []
        check_owner(run, other)
        run.put(note_path(NOTICE, older), b"{}")
        run.put(note_path(NOTICE, claim.token), b"{}")  # SIGTERM came early
        claim.make([NOTICE])
        assert working.result(60) == {}
    assert [run.exists(note_path(NOTICE, token)) for token in (older, claim.token)] == [False, True]
    claim_run(run)
    assert claim.find_successor() is not None


@pytest.mark.parametrize("note", [b"", NOTE])
def test_a_worker_whose_command_takes_no_run_does_not_wait_for_ever(run: Storage, note: bytes) -> None:
    run.put(OWNER, note)
    began_s = time.monotonic()
    await_claim(run, "mine", patience_s=0.3)  # `fit` then says what there is to say
    assert 0.3 <= time.monotonic() - began_s < 5
    await_claim(run, claim_run(run))


def test_storage_that_blinks_does_not_end_the_wait(tmp_path: Path) -> None:
    run = Blinking(tmp_path)
    older, mine = claim_run(run), "mine"
    run.is_shut = True
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(await_claim, run, mine)
        with pytest.raises(TimeoutError):
            waiting.result(0.5)
        assert not run.is_shut
        check_owner(run, older)
        claim_run(run, mine)
        waiting.result(10)


def test_a_command_that_mlflow_refuses_takes_no_run(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Storage.open(tmp_path / "run")
    token = claim_run(run)
    run.put(note_path(NOTICE, token), b"{}")

    class Fitting:
        def __init__(self, *_: Any) -> None:
            self.returned, self.error = dict[str, Any](), None

        def is_done(self, timeout_s: float) -> bool:
            time.sleep(0.05)
            return False

    def refuse() -> None:
        raise RegistryError("MLflow cannot open a run")

    monkeypatch.setattr(group, "_Fitting", Fitting)
    session = RaySession(2.0, 0.0, 1, (2.0,))
    with pytest.raises(RegistryError):
        group.train_in_workers(make_config(dataset), run, session, meanwhile=refuse)
    check_owner(run, token)
    assert run.exists(note_path(NOTICE, token))


def test_a_record_that_another_command_holds_back_ends_the_run_at_that_epoch(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an epoch later, in which both would be told of what the newer writes."""
    evaluated: list[int] = []
    evaluate = loop.evaluate

    def claim_in_third(*how: Any, **more: Any) -> Any:
        evaluated.append(1)
        if len(evaluated) == 3:
            claim_run(Storage.open(tmp_path))
        return evaluate(*how, **more)

    monkeypatch.setattr(loop, "evaluate", claim_in_third)
    await_writes(monkeypatch)
    with pytest.raises(Superseded):
        fit_local(make_config(dataset, epochs=9), Storage.open(tmp_path), device="cpu")
    assert len(evaluated) == 3


@pytest.mark.parametrize("size", [1, 2])
def test_a_command_that_has_lost_the_run_before_it_begins_trains_nothing(
    dataset: str, tmp_path: Path, size: int
) -> None:
    run = Storage.open(tmp_path / "run")
    older, newer = claim_run(run), claim_run(run)
    config = make_config(dataset)

    def train(world: World) -> str:
        with pytest.raises(Superseded):
            fit(config, run, world=world, device=torch.device("cpu"), owner=older)
        return "stopped"

    assert in_threads(size, train) == ["stopped"] * size
    with pytest.raises(Superseded):
        group.train_in_workers(config, run, RaySession(2.0, 0.0, 1, (2.0,)), owner=older)
    assert [file.path for file in run.list()] == [OWNER]
    check_owner(run, newer)
