"""What a feed says would make steps wait less for data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import capacity
from pipelines.dataset.reader import open_dataset
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry
from pipelines.storage import Storage
from pipelines.train import keeper, loop
from pipelines.train.collectives import World
from pipelines.train.feed import TrainFeed, open_splits
from pipelines.train.loop import fit_local
from pipelines.train.records import ProgressNote
from pipelines.train.waiting import wait_mend
from tests.unit.train.tiny import make_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    counts = {"train": {"a": 40, "b": 40}, "val": {"a": 2, "b": 2}}
    return write_dataset(tmp_path_factory.mktemp("dataset"), counts=counts, size=96)


def said(dataset: str, **changes: Any) -> str:
    config = make_config(dataset, **changes)
    train, _ = open_splits(open_dataset(config.dataset), config, World())
    return wait_mend(TrainFeed(train, config, World(), (0.5, 0.5, 0.5)))


def test_what_is_said_is_what_the_feed_lacks(
    dataset: str, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None
) -> None:
    monkeypatch.setattr(capacity, "available_cpus", lambda: 4)
    threads = "loader_threads=4 makes images ready with every CPU that is there (now 1)"
    cache = "cache_limit_mb=3 keeps the decoded images in memory (now 0)"  # 80 x 96 x 96 x 3 bytes
    assert said(dataset, cache_limit_mb=0) == f"{cache}; {threads}"
    assert said(dataset, cache_limit_mb=0, loader_threads=4) == cache
    assert said(dataset).startswith("fewer operations in augment, or more workers")
    assert said(dataset, augment={"crop_min_area": 0.3}) == threads
    monkeypatch.setattr("pipelines.train.waiting.free_bytes", lambda _: 1 << 20)
    assert said(dataset, cache_limit_mb=0) == threads
    assert said(dataset, cache_limit_mb=0, loader_threads=4).startswith("smaller stored images, more workers")


def test_images_of_several_sizes_are_never_kept_and_so_no_memory_for_them_is_advised(tmp_path: Path) -> None:
    squash = Preprocess(evaluation=Geometry(size_px=8, mode="squash"))
    root = write_dataset(tmp_path, odd_size=9, preprocess=squash)
    config = make_config(root, augment={"crop_min_area": 0.3, "shift_px": 0})
    train, _ = open_splits(open_dataset(root), config, World())
    assert train.differs_in_size
    assert "cache_limit_mb" not in wait_mend(TrainFeed(train, config, World(), (0.5, 0.5, 0.5)))


def test_of_several_workers_each_has_its_share_of_the_threads(
    dataset: str, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None
) -> None:
    monkeypatch.setattr(capacity, "available_cpus", lambda: 4)
    config = make_config(dataset, augment={"crop_min_area": 0.3})
    train, _ = open_splits(open_dataset(config.dataset), config, World())
    assert "loader_threads" not in wait_mend(TrainFeed(train, config, World(0, 4), (0.5, 0.5, 0.5)))


def test_a_limit_that_is_advised_is_enough(dataset: str) -> None:
    advised = int(said(dataset, cache_limit_mb=0).split(" ")[0].removeprefix("cache_limit_mb="))
    config = make_config(dataset, cache_limit_mb=advised)
    train, _ = open_splits(open_dataset(config.dataset), config, World())
    assert train.is_cached


def test_stored_images_larger_than_what_is_seen_are_named(tmp_path: Path, one_torch_thread: None) -> None:
    root = write_dataset(tmp_path, size=96, preprocess=Preprocess(evaluation=Geometry(size_px=32, mode="squash")))
    words = said(root, augment={"crop_min_area": 0.3}, loader_threads=99)
    assert words == "smaller stored images: they have 96 x 96 pixels for 32 x 32 that the network sees"


def test_a_run_notes_what_would_mend_its_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    run, notes = Storage.open(tmp_path / "run"), list[ProgressNote]()
    monkeypatch.setattr(keeper, "PROGRESS_S", 0.0)
    monkeypatch.setattr(keeper, "write_progress", lambda _, note: notes.append(note))
    fit_local(make_config(write_dataset(tmp_path / "dataset"), epochs=1, cache_limit_mb=0), run, device="cpu")
    assert [note.step for note in notes] == [1, 2, 3, 4, 4]
    assert all("cache_limit_mb=1 keeps" in note.wait_mend for note in notes)
    *waits, after = [note.wait_fraction for note in notes]
    assert all(wait is not None and 0 < wait <= 1 for wait in waits)
    assert after is None
