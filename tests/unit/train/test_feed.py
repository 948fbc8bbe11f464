from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.reader import open_dataset
from pipelines.errors import ConfigError, DataError
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry
from pipelines.train import feed
from pipelines.train.collectives import World
from pipelines.train.evaluation import evaluation_batches
from pipelines.train.feed import SplitRows, TrainFeed, open_splits
from pipelines.train.read_ahead import window_groups_of
from tests.unit.train.tiny import make_config, make_image, write_dataset

MEAN = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"), num_units=3)


def open_rows(address: str, split: str = "train", limit_bytes: int = 1 << 20) -> SplitRows:
    return SplitRows(open_dataset(address), split, limit_bytes=limit_bytes, threads=2)


def test_pixels_are_those_of_the_rows(dataset: str) -> None:
    rows = open_rows(dataset)
    table = open_dataset(dataset).table("train", ["key", "label"])
    for position in (0, 17, 71):
        _, label, index = table.column("key")[position].as_py().split("/")
        number = "abc".index(label)
        assert rows.targets[position] == number
        assert np.array_equal(rows.pixels.take(np.array([position]))[0], make_image(number, int(index), 8))


def test_kept_or_decoded_on_demand_the_batches_are_the_same(dataset: str) -> None:
    config = make_config(dataset, augment={"shift_px": 2, "mixup_alpha": 0.5})
    kept, lean = open_rows(dataset), open_rows(dataset, limit_bytes=0)
    assert kept.is_cached
    assert not lean.is_cached
    for one, other in zip(
        TrainFeed(kept, config, World(), MEAN).batches(2),
        TrainFeed(lean, config, World(), MEAN).batches(2),
        strict=True,
    ):
        for field in fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_workers_share_out_every_global_batch(dataset: str, size: int) -> None:
    config = make_config(dataset)
    rows = open_rows(dataset)
    alone = list(TrainFeed(rows, config, World(), MEAN).batches(1))
    shares = [list(TrainFeed(rows, config, World(rank, size), MEAN).batches(1)) for rank in range(size)]
    assert sum(len(batch.targets) for batch in alone) == rows.num_rows
    for index, batch in enumerate(alone):
        parts = [share[index] for share in shares]
        assert sorted(np.concatenate([part.hashes for part in parts])) == sorted(batch.hashes)
        assert {part.global_rows for part in parts} == {len(batch.targets)}
        assert sum(part.trace for part in parts) % 2**64 == batch.trace


def test_a_later_start_leaves_out_only_the_batches_before_it(dataset: str) -> None:
    feed = TrainFeed(open_rows(dataset), make_config(dataset), World(), MEAN)
    whole, rest = list(feed.batches(3)), list(feed.batches(3, start=2))
    assert feed.num_batches == len(whole) == 4
    assert [batch.trace for batch in rest] == [batch.trace for batch in whole[2:]]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 30])
def test_evaluation_sees_every_row_once_on_any_number_of_workers(dataset: str, size: int) -> None:
    rows = open_rows(dataset, "val")
    seen = [batch.hashes for rank in range(size) for batch in evaluation_batches(rows, World(rank, size), batch_size=4)]
    assert np.array_equal(np.concatenate(seen), rows.hashes)


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    address = write_dataset(tmp_path, odd_size=12)
    with pytest.raises(DataError, match="gives images of different sizes: 8 x 8 pixels and 12 x 12"):
        open_rows(address)


def test_train_and_val_of_two_sizes_are_refused(tmp_path: Path) -> None:
    squash = Preprocess(evaluation=Geometry(size_px=6, mode="squash"))
    seen = {"train": open_dataset(write_dataset(tmp_path / "8")), "val": None}
    seen["val"] = open_dataset(write_dataset(tmp_path / "6", preprocess=squash))

    def open_of_two(_: Any, split: str, **how: Any) -> SplitRows:
        return SplitRows(seen[split], split, **how)

    with pytest.raises(DataError, match="have 8 x 8 pixels in train and 6 x 6 in val"):
        open_splits(seen["train"], make_config("d"), World(), open_of_two)


def test_the_first_rows_are_those_of_the_first_batch_and_no_others_are_decoded(dataset: str) -> None:
    config = make_config(dataset, augment={"shift_px": 2, "mixup_alpha": 0.5})
    rows = open_rows(dataset, limit_bytes=0)
    whole = next(iter(TrainFeed(open_rows(dataset), config, World(), MEAN).batches(1)))
    taken: list[int] = []
    take = rows.pixels.take

    def note(positions: Any) -> Any:
        taken.append(len(positions))
        return take(positions)

    rows.pixels.take = note  # type: ignore[method-assign]
    some = TrainFeed(rows, config, World(), MEAN).first_rows(7)
    assert taken == [7, 7]  # themselves and their partners
    for name in ("pixels", "targets", "hashes", "partner_pixels", "partner_targets"):
        assert np.array_equal(getattr(some, name), getattr(whole, name)[:7]), name


def test_more_classes_than_workers_can_hold_several_times_are_not_drawn_evenly(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = open_rows(dataset)
    monkeypatch.setattr(feed, "_MOST_CLASS_BYTES", rows.targets.nbytes)
    TrainFeed(rows, make_config(dataset, sampling="balanced"), World(), MEAN)
    monkeypatch.setattr(feed, "_MOST_CLASS_BYTES", rows.targets.nbytes - 1)
    TrainFeed(rows, make_config(dataset), World(), MEAN)
    with pytest.raises(ConfigError, match="sampling is balanced, and the classes of 72 rows take"):
        TrainFeed(rows, make_config(dataset, sampling="balanced"), World(), MEAN)


def test_windows_are_shared_out_over_workers() -> None:
    assert window_groups_of(256, World()) == 512
    assert window_groups_of(256, World(1, 4)) == 128
    assert window_groups_of(1, World()) == 512
