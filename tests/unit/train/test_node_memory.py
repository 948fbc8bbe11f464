"""Memory that processes of one machine fill together."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.reader import open_dataset
from pipelines.train.collectives import World
from pipelines.train.feed import Sharing, SplitRows
from pipelines.train.node_memory import NodeMemory, _byte_locked, sweep
from tests.unit.train.tiny import write_dataset

PARTS, LONG = 6, 1000


def fill(memory: NodeMemory, done: list[int], part: int) -> None:
    memory.array[part * LONG : (part + 1) * LONG] = part + 1
    done.append(part)


def filled() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.repeat(np.arange(1, PARTS + 1, dtype=np.uint8), LONG)


def die_in_the_third_part(place: Path) -> None:
    memory = NodeMemory("images", PARTS * LONG, PARTS, place=place)

    def die(part: int) -> None:
        fill(memory, [], part)
        if part == 2:
            memory.array[part * LONG + 9] = 99  # not done: it must not be taken for good
            os.kill(os.getpid(), signal.SIGKILL)

    memory.fill(die)


def fill_slowly(place: Path, first: int, is_open: Any, results: Any) -> None:
    memory, done = NodeMemory("images", PARTS * LONG, PARTS, place=place), list[int]()
    is_open.wait(30)

    def slowly(part: int) -> None:
        time.sleep(0.02)
        fill(memory, done, part)

    memory.fill(slowly, first)
    results.put((done, bool((memory.array == filled()).all())))


def run_killed(place: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=die_in_the_third_part, args=(place,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL


def test_processes_share_the_work_and_one_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    run_killed(tmp_path)
    context = multiprocessing.get_context("fork")  # nothing of torch runs in them
    is_open, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=fill_slowly, args=(tmp_path, first, is_open, results)) for first in (0, 3)]
    for process in processes:
        process.start()
    (one, is_one_right), (other, is_other_right) = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(one + other) == list(range(PARTS))  # what the killed one left was swept, and nothing was done twice
    assert one
    assert other
    assert is_one_right
    assert is_other_right


def test_a_part_of_a_process_that_is_killed_meanwhile_is_filled_by_another(tmp_path: Path) -> None:
    done: list[int] = []
    memory = NodeMemory("images", PARTS * LONG, PARTS, place=tmp_path)
    run_killed(tmp_path)
    memory.fill(lambda part: fill(memory, done, part))
    assert done == [2, 3, 4, 5]
    assert np.array_equal(memory.array, filled())


def test_released_memory_lasts_as_long_as_it_is_used_and_is_found_by_nobody_else(tmp_path: Path) -> None:
    one, other = (NodeMemory("images", PARTS * LONG, PARTS, place=tmp_path) for _ in range(2))
    one.fill(lambda part: fill(one, [], part))
    other.fill(lambda part: pytest.fail("is done"))
    one.release()
    other.release()
    assert np.array_equal(other.array, filled())
    (folder,) = tmp_path.iterdir()
    assert not list(folder.iterdir())
    third = NodeMemory("images", PARTS * LONG, PARTS, place=tmp_path)
    assert not third.array.any()


def test_a_release_leaves_the_memory_that_has_taken_the_name_since(tmp_path: Path) -> None:
    one, other = (NodeMemory("images", PARTS * LONG, PARTS, place=tmp_path) for _ in range(2))
    one.release()
    rerun = NodeMemory("images", PARTS * LONG, PARTS, place=tmp_path)
    other.release()
    rerun.array[9] = 7
    assert NodeMemory("images", PARTS * LONG, PARTS, place=tmp_path).array[9] == 7


def replace_under_the_lock(place: Path, is_locked: Any) -> None:
    memory = NodeMemory("images", PARTS * LONG, PARTS, place=place)
    with _byte_locked(memory._file, memory._end):
        is_locked.set()
        time.sleep(0.1)
        memory._path.unlink()
        memory._path.write_bytes(b"of a rerun")


def test_releases_of_several_processes_wait_for_each_other(tmp_path: Path) -> None:
    memory, context = NodeMemory("images", PARTS * LONG, PARTS, place=tmp_path), multiprocessing.get_context("fork")
    is_locked = context.Event()
    other = context.Process(target=replace_under_the_lock, args=(tmp_path, is_locked))
    other.start()
    assert is_locked.wait(30)
    memory.release()
    assert memory._path.read_bytes() == b"of a rerun"
    other.join()


def test_a_sweep_leaves_what_has_taken_the_name_since_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / "memory", fcntl.flock
    path.write_bytes(b"of a run that was killed")

    def replace_and_lock(file: int, how: int) -> None:
        path.unlink()
        path.write_bytes(b"of a rerun")
        lock(file, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", replace_and_lock)
        sweep(tmp_path)
    assert path.read_bytes() == b"of a rerun"
    sweep(tmp_path)
    assert not path.exists()


def test_what_raises_leaves_the_part_to_others(tmp_path: Path) -> None:
    memory, done = NodeMemory("images", PARTS * LONG, PARTS, place=tmp_path), list[int]()

    def fail(part: int) -> None:
        raise ValueError(part)

    with pytest.raises(ValueError, match="0"):
        memory.fill(fail)
    memory.fill(lambda part: fill(memory, done, part), first=4)
    assert done == [4, 5, 0, 1, 2, 3]


def test_no_room_and_a_folder_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="are more than half of the"):
        NodeMemory("images", 1 << 50, 1, place=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert not list(folder.iterdir())
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="is not a folder of this user alone"):
        NodeMemory("images", 10, 1, place=tmp_path)


def test_workers_of_one_machine_hold_the_pixels_of_a_split_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, everyone = open_dataset(write_dataset(tmp_path / "dataset", num_units=3)), np.arange(72)
    own = SplitRows(dataset, "train", limit_bytes=1 << 20, threads=1)

    def opened(rank: int) -> SplitRows:
        sharing = Sharing(str(tmp_path), World(rank, 2))
        return SplitRows(dataset, "train", limit_bytes=1 << 20, threads=1, sharing=sharing)

    monkeypatch.setattr("pipelines.train.feed.NodeMemory", lambda *how: NodeMemory(*how, place=tmp_path))
    one, other = opened(0), opened(1)
    assert one.is_cached
    assert np.array_equal(one.pixels.take(everyone), own.pixels.take(everyone))
    one.pixels._pixels[0] = 7  # type: ignore[attr-defined]
    assert (other.pixels.take(everyone[:1]) == 7).all()
    for rows in (one, other):
        rows.release()
    monkeypatch.setattr("pipelines.train.feed.NodeMemory", lambda *_: NodeMemory("x", 1, 1, place=tmp_path / "none"))
    caplog.set_level("INFO")
    assert np.array_equal(opened(0).pixels.take(everyone), own.pixels.take(everyone))
    assert "each worker keeps decoded images of split 'train' of its own" in caplog.text


def test_images_of_several_sizes_leave_no_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "dataset", odd_size=12))
    place = tmp_path / "memory"
    place.mkdir()
    monkeypatch.setattr("pipelines.train.feed.NodeMemory", lambda *how: NodeMemory(*how, place=place))
    sharing, deadline_s = Sharing(str(tmp_path), World(0, 2)), time.monotonic() + 5
    gc.disable()  # it would give back late what holds itself
    try:
        rows = SplitRows(dataset, "train", limit_bytes=1 << 20, threads=1, stored=True, sharing=sharing)
        assert not rows.is_cached
        assert not list(next(place.iterdir()).iterdir())
        while is_mapped(place) and time.monotonic() < deadline_s:  # until the thread that met the image lets go of it
            time.sleep(0.01)
        assert not is_mapped(place)
    finally:
        gc.enable()


def is_mapped(place: Path) -> bool:
    """Return whether this process has memory of files in a folder, deleted ones among them."""
    return str(place) in Path("/proc/self/maps").read_text()
