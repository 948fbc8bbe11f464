from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset.keyed import image_hashes
from pipelines.dataset.reader import open_dataset
from pipelines.storage import Storage
from pipelines.train.collectives import World
from pipelines.train.feed import SplitRows, TrainFeed
from pipelines.train.sampling import balanced_sample, keys_of_copies
from tests.unit.train.test_replay import losses_of
from tests.unit.train.tiny import make_config, write_dataset

UNEVEN = {"train": {"a": 30, "b": 9, "c": 3}, "val": {"a": 4, "b": 4, "c": 4}}


def ids(count: int) -> np.ndarray:
    return image_hashes([f"{index * 2654435761:032x}"[::-1] for index in range(1, count + 1)])


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any), st.integers(0, 9), st.integers(1, 5))
def test_every_class_comes_as_often_and_its_rows_too(counts: list[int], seed: int, epoch: int) -> None:
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    half = len(targets) // 2
    groups = [half, 0, len(targets) - half]
    sample = balanced_sample(targets, ids(len(targets)), groups, seed=seed, epoch=epoch)
    classes = np.unique(targets)
    number = max(1, len(targets) // len(classes))
    assert np.bincount(targets[sample.rows], minlength=len(counts))[classes].tolist() == [number] * len(classes)
    for index in classes:
        copies = np.bincount(sample.rows, minlength=len(targets))[targets == index]
        assert copies.max() - copies.min() <= 1
    assert sum(sample.group_sizes) == len(sample.rows)
    assert sample.group_sizes[0] == int((sample.rows < half).sum())
    for row in np.unique(sample.rows):
        of_row = sample.repeats[sample.rows == row]
        assert of_row.tolist() == list(range(len(of_row)))


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 9))
def test_over_epochs_rows_have_their_turn(common: int, rare: int, seed: int) -> None:
    targets = np.repeat([0, 1], [common, rare])
    number = (common + rare) // 2
    times = np.zeros(common + rare, np.int64)
    for epoch in range(1, 9):
        times += np.bincount(
            balanced_sample(targets, ids(common + rare), [common + rare], seed=seed, epoch=epoch).rows,
            minlength=common + rare,
        )
        for of_class in (times[:common], times[common:]):
            assert of_class.sum() == epoch * number
            assert of_class.max() - of_class.min() <= 1


def test_copies_draw_anew_and_the_first_as_without() -> None:
    hashes = ids(4)
    assert np.array_equal(keys_of_copies(hashes, np.zeros(4, np.int64)), hashes)
    keys = keys_of_copies(np.repeat(hashes, 3), np.tile([0, 1, 2], 4))
    assert len(np.unique(keys)) == 12


def test_a_balanced_epoch_through_the_feed(tmp_path: Path) -> None:
    address = write_dataset(tmp_path, counts=UNEVEN, num_units=3)
    config = make_config(address, sampling="balanced", augment={"shift_px": 1})
    rows = SplitRows(open_dataset(address), "train", limit_bytes=1 << 20, threads=1)
    feed = TrainFeed(rows, config, World(), (0.5, 0.5, 0.5))
    batches = list(feed.batches(1))
    assert np.bincount(np.concatenate([batch.targets for batch in batches])).tolist() == [14, 14, 14]
    assert feed.num_rows == 42
    assert len(batches) == feed.num_batches == 3


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_workers_samples_alike(tmp_path: Path, size: int) -> None:
    address = write_dataset(tmp_path / "dataset", counts=UNEVEN, num_units=3)
    config = make_config(address, epochs=3, sampling="balanced", augment={"mixup_alpha": 0.3}, precision="float64")
    one = losses_of(config, Storage.open(tmp_path / "one"), 1)
    many = losses_of(config, Storage.open(tmp_path / "many"), size)
    assert [trace for _, trace in many.values()] == [trace for _, trace in one.values()]
    assert [loss for loss, _ in many.values()] == pytest.approx([loss for loss, _ in one.values()], rel=1e-8)
