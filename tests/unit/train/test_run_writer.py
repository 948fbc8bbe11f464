"""Storage that is slow, full or broken while checkpoints are written: training goes on, and what ends well is safe."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import override

from pipelines.errors import StorageError
from pipelines.storage import LocalStorage, Storage
from pipelines.train import keeper, loop, run_writer
from pipelines.train.checkpoint import committed_steps, load_latest
from pipelines.train.loop import fit, fit_local
from pipelines.train.outcome import read_outcome
from pipelines.train.owner import OWNER
from pipelines.train.records import EpochRecord, read_records
from pipelines.train.startup import START
from pipelines.train.state import OPTIMIZER, WEIGHTS
from pipelines.train.step_log import read_steps
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads


class WeakStorage(LocalStorage):
    """A folder whose writes are slow, or refused as long as `refuses` says so."""

    def __init__(self, path: Path, *, slow_s: float = 0.0) -> None:
        super().__init__(str(path))
        self.slow_s = slow_s
        self.slow_records_s = 0.0
        self.refuses: Callable[[str], bool] = lambda _: False
        self.threads: set[str] = set()

    @override
    def put(self, path: str, data: bytes | memoryview, **options: Any) -> None:
        if path != OWNER:  # written before anything is read
            self.threads.add(threading.current_thread().name)
        if path.startswith("checkpoints/"):
            time.sleep(self.slow_s)
        if path.startswith("records/"):
            time.sleep(self.slow_records_s)
        if self.refuses(path):
            raise StorageError(f"cannot write {path}: the store answers 503")
        super().put(path, data, **options)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_writer, "_LAST_PAUSES_S", (0.05, 0.05))
    monkeypatch.setattr(run_writer, "_RETRY_S", 0.05)
    monkeypatch.setattr(run_writer, "_SETTLE_S", 0.0)


@pytest.fixture(scope="module")
def expected(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    run = Storage.open(tmp_path_factory.mktemp("expected"))
    fit_local(make_config(dataset, epochs=6), run, device="cpu")
    return run


def assert_ends_the_same(run: Storage, expected: Storage) -> None:
    ours, theirs = load_latest(run), load_latest(expected)
    assert ours is not None
    assert theirs is not None
    assert {name: ours.files[name] for name in (WEIGHTS, OPTIMIZER)} == {
        name: theirs.files[name] for name in (WEIGHTS, OPTIMIZER)
    }
    assert read_steps(run, 1, 99) == read_steps(expected, 1, 99)
    assert [record.id_trace for record in read_records(run, 99)] == [
        record.id_trace for record in read_records(expected, 99)
    ]


def val_says(monkeypatch: pytest.MonkeyPatch, top1s: list[float]) -> None:
    """Have val say what each epoch is worth."""
    evaluate, left = loop.evaluate, iter(top1s)
    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: {**evaluate(*a, **k), "val_top1": next(left)})


def no_better_epochs(monkeypatch: pytest.MonkeyPatch, first: int = 1) -> None:
    """Let val say that no epoch after the first is better."""
    evaluate, calls = loop.evaluate, [0]

    def worse(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        figures = evaluate(*arguments, **options)
        return {**figures, "val_top1": 1.0 if calls[0] == first else 0.0}

    monkeypatch.setattr(loop, "evaluate", worse)


def test_only_the_writers_thread_writes(dataset: str, expected: Storage, tmp_path: Path) -> None:
    run = WeakStorage(tmp_path / "run")
    fit_local(make_config(dataset, epochs=6), run, device="cpu")
    assert run.threads == {"run-writer"}
    assert_ends_the_same(run, expected)
    for thread in threading.enumerate():
        if thread.name == "run-writer":
            thread.join(10)  # it was told to end, and ends when it has its turn
            assert not thread.is_alive()


def test_slow_storage_costs_checkpoints_and_no_steps(
    dataset: str, expected: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_better_epochs(monkeypatch)
    run = WeakStorage(tmp_path / "run", slow_s=0.5)  # 2 s a checkpoint of four files
    ends_s: list[float] = []
    fit_local(
        make_config(dataset, epochs=6), run, device="cpu", on_epoch=lambda _: ends_s.append(time.monotonic()) is None
    )
    # The second to the fifth epoch end while the checkpoint of the first is being written.
    assert ends_s[4] - ends_s[0] < 2.0
    assert "the checkpoint of step 4 is still being written after" in caplog.text
    assert "none is taken of step 8" in caplog.text
    assert committed_steps(run) == [4, 24]
    assert_ends_the_same(run, expected)


def test_who_is_told_of_an_epoch_finds_its_record(dataset: str, tmp_path: Path) -> None:
    run = WeakStorage(tmp_path / "run", slow_s=0.1)
    run.slow_records_s = 0.3
    found: list[int] = []

    def look(record: EpochRecord) -> bool:
        found.append(len(read_records(run, 99)))
        return record.epoch < 3

    fit_local(make_config(dataset, epochs=6), run, device="cpu", on_epoch=look)
    assert found == [1, 2, 3]


def test_records_that_are_waited_for_are_tried_again_once_in_an_outage(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_writer, "_SETTLE_S", 1.0)
    monkeypatch.setattr(run_writer, "_SETTLE_PAUSE_S", 0.05)
    run = WeakStorage(tmp_path / "run")
    run.refuses = lambda path: path.startswith("records/")
    told_s: list[float] = []
    found: list[int] = []

    def look(_: EpochRecord) -> bool:
        told_s.append(time.monotonic())
        found.append(len(read_records(run, 99)))
        if len(found) == 3:
            run.refuses = lambda _: False
        return True

    fit_local(make_config(dataset, epochs=4), run, device="cpu", on_epoch=look)
    assert found == [0, 0, 0, 4]
    assert told_s[2] - told_s[0] < 1.0


def test_the_best_epoch_is_kept_however_slow_storage_is(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_better_epochs(monkeypatch, first=2)
    run = WeakStorage(tmp_path / "run", slow_s=0.2)
    outcome = fit_local(make_config(dataset, epochs=4), run, device="cpu")
    assert outcome.best.epoch == 2
    assert outcome.best.step in committed_steps(run)


def test_a_run_that_keeps_improving_waits_for_slow_storage_within_bounds(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_PROMPT_S", 0.05)
    monkeypatch.setattr(keeper, "_BETTER_S", 0.2)
    val_says(monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.5, 0.45])
    run = WeakStorage(tmp_path / "run", slow_s=0.5)  # 2 s a checkpoint of four files
    ends_s: list[float] = []
    outcome = fit_local(
        make_config(dataset, epochs=6), run, device="cpu", on_epoch=lambda _: ends_s.append(time.monotonic()) is None
    )
    assert ends_s[4] - ends_s[0] < 1.8
    # The best of the epochs that are kept, not one whose weights nobody has.
    assert (outcome.best.epoch, outcome.best.val_score) == (6, 0.45)
    assert committed_steps(run) == [4, 24]


def test_workers_agree_on_the_best_epoch_of_those_that_are_kept(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_PROMPT_S", 0.0)
    monkeypatch.setattr(keeper, "_BETTER_S", 0.0)
    run = WeakStorage(tmp_path / "run", slow_s=0.2)
    config = make_config(dataset, epochs=6)
    outcomes = in_threads(2, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    assert outcomes[0].best == outcomes[1].best
    assert outcomes[0].best.step in committed_steps(run)


def test_a_store_that_is_away_for_a_time_costs_nothing(
    dataset: str, expected: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = WeakStorage(tmp_path / "run")
    seen: list[int] = []

    def away(record: EpochRecord) -> bool:
        seen.append(record.epoch)
        run.refuses = lambda _: 2 <= len(seen) < 5
        return True

    outcome = fit_local(make_config(dataset, epochs=6), run, device="cpu", on_epoch=away)
    assert "could not be written; training goes on: StorageError: cannot write" in caplog.text
    assert "records cannot be written yet; training goes on, and they are kept" in caplog.text
    assert len(outcome.records) == 6
    assert outcome.best.step in committed_steps(run)
    assert_ends_the_same(run, expected)


def test_a_run_whose_last_checkpoint_is_not_safe_fails_and_is_gone_on_with(
    dataset: str, expected: Storage, tmp_path: Path
) -> None:
    config = make_config(dataset, epochs=6)
    run = WeakStorage(tmp_path / "run")
    run.refuses = lambda path: path.startswith("checkpoints/step-00000024")
    with pytest.raises(StorageError, match="the store answers 503"):
        fit_local(config, run, device="cpu")
    assert committed_steps(run)[-1] == 20
    assert read_outcome(config, run).stopped  # type: ignore[union-attr]
    fit_local(config, Storage.open(run.uri), device="cpu")
    assert_ends_the_same(run, expected)


def test_the_end_of_a_run_waits_for_storage_to_come_back(dataset: str, tmp_path: Path) -> None:
    run = WeakStorage(tmp_path / "run")
    calls = [0]

    def refuses(path: str) -> bool:
        calls[0] += path.startswith("checkpoints/step-00000024")
        return path.startswith("checkpoints/step-00000024") and calls[0] < 2

    run.refuses = refuses
    assert fit_local(make_config(dataset, epochs=6), run, device="cpu").epochs == 6
    assert committed_steps(run)[-1] == 24


def test_all_workers_learn_that_the_best_epoch_was_not_kept(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_better_epochs(monkeypatch, first=1)
    run = WeakStorage(tmp_path / "run")
    run.refuses = lambda path: path.startswith("checkpoints/step-00000004")
    config = make_config(dataset, epochs=6, patience_epochs=3)
    outcomes = in_threads(2, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    assert outcomes[0].best == outcomes[1].best
    assert outcomes[0].epochs == outcomes[1].epochs
    assert outcomes[0].best.step in committed_steps(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("only root can mount a file system small enough to fill; CI runs as root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_and_is_cleared_costs_checkpoints_only(
    dataset: str, expected: Storage, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Storage.open(small_disk / "run")
    filler = small_disk / "filler"

    def fill(record: EpochRecord) -> bool:
        if record.epoch == 2:
            with pytest.raises(OSError, match="No space left"):
                filler.write_bytes(b"x" * 300_000)
        if record.epoch == 5:
            filler.unlink()
        return True

    outcome = fit_local(make_config(dataset, epochs=6), run, device="cpu", on_epoch=fill)
    assert "No space left on device" in caplog.text
    assert "training goes on" in caplog.text
    assert len(outcome.records) == 6
    assert_ends_the_same(run, expected)


def test_a_disk_that_stays_full_leaves_the_last_good_checkpoint(
    dataset: str, expected: Storage, small_disk: Path, tmp_path: Path
) -> None:
    run = Storage.open(small_disk / "run")

    def fill(record: EpochRecord) -> bool:
        if record.epoch == 2:
            deadline_s = time.monotonic() + 20
            while committed_steps(run)[-1:] != [8] and time.monotonic() < deadline_s:
                time.sleep(0.01)
            with pytest.raises(OSError, match="No space left"):
                (small_disk / "filler").write_bytes(b"x" * 300_000)
        return True

    config = make_config(dataset, epochs=6)
    with pytest.raises(StorageError, match="No space left on device"):
        fit_local(config, run, device="cpu", on_epoch=fill)
    newest = load_latest(run)
    assert newest is not None
    assert newest.step == 8
    (small_disk / "filler").unlink()
    fit_local(config, run, device="cpu")
    assert_ends_the_same(run, expected)


def test_where_the_start_went_is_no_condition_of_a_checkpoint(dataset: str, expected: Storage, tmp_path: Path) -> None:
    run = WeakStorage(tmp_path / "run")
    run.refuses = lambda path: path == START
    assert fit_local(make_config(dataset, epochs=6), run, device="cpu").epochs == 6
    assert_ends_the_same(run, expected)


def test_records_that_are_dropped_take_their_failure_with_them(tmp_path: Path) -> None:
    run = WeakStorage(tmp_path / "run")
    run.refuses = lambda path: path.startswith("records/")
    writer = run_writer.RunWriter(run)
    writer.keep("records/epoch-000001.json", b"{}")
    writer.drop_records()
    assert writer._notes_failure is None
    run.refuses = lambda _: False
    writer.finish()
    writer.close(10)


def test_a_bug_in_the_writers_thread_ends_the_run(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(run_writer, "save_checkpoint", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fit_local(make_config(dataset, epochs=6), Storage.open(tmp_path / "run"), device="cpu")
