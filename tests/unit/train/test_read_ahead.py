"""Splits larger than memory: row groups are read once an epoch, ahead of the step, and what is kept has a limit."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dataset.order import WINDOW_GROUPS
from pipelines.dataset.reader import Dataset, RowGroup, open_dataset
from pipelines.train.batch import Batch
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.feed import SplitRows, TrainFeed
from pipelines.train.read_ahead import PixelsAhead, window_groups_of
from tests.unit.train.tiny import make_config, write_dataset

MEAN = (0.5, 0.5, 0.5)
ROWS = 20


class ManyGroups(Dataset):
    """A dataset whose few rows stand in for those of many small row groups, which would take minutes to write.

    Reads are counted, and take as long as an object store would.
    """

    num_groups = 0
    delay_s = 0.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.whole = super().table("train", ["image"])
        self.reads: Counter[int] = Counter()
        self.at_once, self.most_at_once = 0, 0
        self.lock = threading.Lock()

    def row_groups(self, split: str) -> list[RowGroup]:
        return [RowGroup("many", index, ROWS, index * ROWS) for index in range(self.num_groups)]

    def read_group(self, split: str, group: int, columns: Any = None) -> pa.Table:
        with self.lock:
            self.reads[group] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay_s)
        with self.lock:
            self.at_once -= 1
        return self.whole.take((np.arange(ROWS) + group) % len(self.whole))

    def class_indices(self, split: str) -> Any:
        return np.arange(self.num_groups * ROWS) % 3

    def table(self, split: str, columns: Any = None) -> pa.Table:
        return pa.table({"image_id": [f"{index:032x}" for index in range(self.num_groups * ROWS)]})


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def open_many(address: str, num_groups: int, batch: int, world: World) -> tuple[ManyGroups, SplitRows]:
    few = open_dataset(address)
    dataset = ManyGroups(few.uri, few.version, few.catalog)
    dataset.num_groups = num_groups
    windows = window_groups_of(batch, world)
    rows = SplitRows(dataset, "train", limit_bytes=0, threads=1, window_groups=windows)
    dataset.reads.clear()
    return dataset, rows


@pytest.mark.parametrize(("num_groups", "batch", "size"), [(2000, 128, 1), (2000, 128, 3), (1400, 256, 1)])
def test_a_row_group_is_read_once_an_epoch(
    address: str, monkeypatch: pytest.MonkeyPatch, num_groups: int, batch: int, size: int
) -> None:
    world = World(size - 1, size)
    dataset, rows = open_many(address, num_groups, batch, world)
    feed = TrainFeed(rows, make_config(address, global_batch_size=batch), world, MEAN)
    most = 0
    release = PixelsAhead.release

    def watched(pixels: PixelsAhead, batch: int) -> None:
        nonlocal most
        most = max(most, pixels.held)
        release(pixels, batch)

    monkeypatch.setattr(PixelsAhead, "release", watched)
    seen = sum(len(made.targets) for made in feed.batches(1))
    assert seen == pytest.approx(num_groups * ROWS / size, rel=0.05)
    assert sum(dataset.reads.values()) / len(dataset.reads) <= 1.05
    assert most <= (window_groups_of(batch, world) + 2) * ROWS <= (WINDOW_GROUPS // size + 12) * ROWS
    assert 1 < dataset.most_at_once <= 16


def same(one: Batch, other: Batch) -> bool:
    return (
        one.trace == other.trace
        and np.array_equal(one.pixels, other.pixels)
        and np.array_equal(one.hashes, other.hashes)
        and (one.partner_pixels is None or np.array_equal(one.partner_pixels, other.partner_pixels))
    )


@pytest.mark.parametrize("window_groups", [0, 3, 512])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": {"shift_px": 0, "mixup_alpha": 0.5}},
        {"augment": {"shift_px": 0, "crop_min_area": 0.5, "mixup_alpha": 0.5}, "sampling": "balanced"},
    ],
)
@pytest.mark.parametrize(("batch", "ghost_size"), [(20, 0), (20, 5), (3, 0)])
def test_batches_are_those_of_kept_pixels_wherever_one_starts(
    tmp_path: Path, changes: dict[str, Any], window_groups: int, batch: int, ghost_size: int
) -> None:
    """Balanced copies, partners, lanes that give no row to a batch, a start in the middle, and no room at all."""
    address = write_dataset(
        tmp_path, counts={"train": {"a": 40, "b": 30, "c": 7}, "val": {"a": 2, "b": 2, "c": 2}}, num_units=9
    )
    config: TrainConfig = make_config(address, global_batch_size=batch, **changes)
    stored = config.augment.crop_min_area > 0
    kept, lean = (
        SplitRows(
            open_dataset(address), "train", limit_bytes=limit, threads=2, stored=stored, window_groups=window_groups
        )
        for limit in (1 << 20, 0)
    )
    for world in (World(), World(1, 2)):
        feeds = [TrainFeed(rows, config, world, MEAN, ghost_size=ghost_size) for rows in (kept, lean)]
        for epoch, start in ((1, 0), (2, 2)):
            whole, ahead = (list(feed.batches(epoch, start)) for feed in feeds)
            assert len(whole) == len(ahead)
            assert all(same(one, other) for one, other in zip(whole, ahead, strict=True))


def test_a_split_that_fits_is_read_once_for_all_epochs(address: str) -> None:
    dataset, rows = open_many(address, 40, 20, World())
    feed = TrainFeed(rows, make_config(address), World(), MEAN)
    for epoch in (1, 2, 3):
        assert sum(len(batch.targets) for batch in feed.batches(epoch)) == 40 * ROWS
    assert max(dataset.reads.values()) == 1


@pytest.mark.slow
def test_reads_of_30_ms_hardly_hold_up_the_steps(address: str) -> None:
    dataset, rows = open_many(address, 2500, 256, World())
    dataset.delay_s = 0.03
    feed = TrainFeed(rows, make_config(address, global_batch_size=256), World(), MEAN)
    batches = feed.batches(1)
    started_s = time.perf_counter()
    next(batches)
    assert time.perf_counter() - started_s < 2.5, "one after the other they take 6 s"
    waited_s, started_s = 0.0, time.perf_counter()
    for _ in range(90):  # all lanes come to the end of two windows
        asked_s = time.perf_counter()
        next(batches)
        waited_s += time.perf_counter() - asked_s
        time.sleep(0.08)  # the step
    assert waited_s / (time.perf_counter() - started_s) < 0.1
    batches.close()


def test_who_wants_no_more_batches_waits_for_no_reads(address: str) -> None:
    dataset, rows = open_many(address, 2000, 128, World())
    batches = TrainFeed(rows, make_config(address, global_batch_size=128), World(), MEAN).batches(1)
    next(batches)
    dataset.delay_s = 0.2
    started_s = time.perf_counter()
    batches.close()
    assert time.perf_counter() - started_s < 3
    assert len(dataset.reads) < 700
