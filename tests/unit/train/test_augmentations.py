from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset.keyed import image_hashes
from pipelines.dataset.reader import open_dataset
from pipelines.storage import Storage
from pipelines.train import streams
from pipelines.train.collectives import World
from pipelines.train.config import AugmentConfig
from pipelines.train.crops import crop_box, crop_draws, resized_crop
from pipelines.train.feed import SplitRows, TrainFeed
from pipelines.train.loop import fit
from pipelines.train.mixing import cutmix_boxes, draw_mixes
from pipelines.train.policies import OPERATIONS
from pipelines.train.transforms import augment
from tests.unit.train.test_replay import losses_of
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads

MEAN = (0.5, 0.4, 0.3)
FILL = np.array([128, 102, 76], dtype=np.uint8)
PLAIN: dict[str, Any] = {"flip": False, "shift_px": 0}


def images(count: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def ids(count: int) -> np.ndarray:
    return image_hashes([f"{index * 2654435761:032x}"[::-1] for index in range(1, count + 1)])


def changed(pixels: np.ndarray, hashes: np.ndarray, epoch: int = 1, **config: Any) -> np.ndarray:
    return augment(pixels.copy(), hashes, AugmentConfig(**PLAIN, **config), seed=3, epoch=epoch, mean=MEAN)


def test_no_stream_is_used_twice() -> None:
    numbers = [value for name, value in vars(streams).items() if name.isupper() and name != "POLICY"]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert max(numbers) < streams.POLICY


@given(st.integers(0, 999), st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 0.99))
def test_crops_lie_inside_and_keep_area_and_aspect(seed: int, height: int, width: int, min_area: float) -> None:
    (draw,) = crop_draws(ids(1), seed=seed, epoch=1)
    top, left, high, wide = crop_box(draw, height, width, min_area)
    assert 0 <= top <= top + high <= height
    assert 0 <= left <= left + wide <= width
    if high < height and wide < width:  # nothing was cut off
        assert (high + 1) * (wide + 1) >= min_area * height * width
        assert (wide - 1) / (high + 1) <= 4 / 3
        assert (high - 1) / (wide + 1) <= 4 / 3


def test_crops_have_all_areas_alike() -> None:
    draws = crop_draws(ids(2000), seed=0, epoch=1)
    boxes = [crop_box(draw, 1000, 1000, 0.2) for draw in draws]
    areas = np.array([high * wide for _, _, high, wide in boxes]) / 1e6
    assert areas.min() >= 0.199
    assert np.quantile(areas, [0.25, 0.5]) == pytest.approx([0.4, 0.6], abs=0.03)


def test_a_crop_of_everything_is_the_whole_image() -> None:
    (image,) = images(1)
    whole = np.zeros_like(image)
    resized_crop(image, np.array([1.0, 0.5, 0.0, 0.0]), 0.5, whole)
    assert np.array_equal(whole, image)


@pytest.mark.parametrize("index", range(len(OPERATIONS)))
@pytest.mark.parametrize("strength", [-1.0, -0.2, 0.0, 0.5, 1.0])
def test_operations_keep_size_and_type_and_do_not_touch_their_input(index: int, strength: float) -> None:
    (image,) = images(1)
    before = image.copy()
    result = OPERATIONS[index](image, strength, FILL)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert np.array_equal(image, before)
    if strength == 0 and index < 10:  # those that do nothing when they are weakest
        assert np.array_equal(result, image)


def test_moving_brings_in_the_mean_colour() -> None:
    moved = OPERATIONS[3](images(1)[0], 1.0, FILL)
    assert (moved[:, :5] == FILL).all()


@pytest.mark.parametrize(
    "config",
    [{"policy": "trivial"}, {"policy": "rand", "rand_operations": 3}, {"erase_probability": 0.5}],
    ids=["trivial", "rand", "erase"],
)
def test_a_draw_belongs_to_the_image_and_the_epoch(config: dict[str, Any]) -> None:
    pixels, hashes = images(30), ids(30)
    whole = changed(pixels, hashes, **config)
    order = np.random.default_rng(1).permutation(30)
    assert np.array_equal(changed(pixels[order], hashes[order], **config), whole[order])
    assert not np.array_equal(changed(pixels, hashes, epoch=2, **config), whole)
    assert not np.array_equal(whole, pixels)


def test_erasing_covers_what_it_says_of_the_share_it_says() -> None:
    pixels = np.zeros((600, 32, 32, 3), dtype=np.uint8)
    erased = (changed(pixels, ids(600), erase_probability=0.4) != 0).all(axis=3).mean(axis=(1, 2))
    assert (erased > 0).mean() == pytest.approx(0.4, abs=0.07)
    assert 0.01 < erased[erased > 0].min() < erased.max() < 0.36


def test_cutmix_shares_the_label_by_what_is_seen() -> None:
    hashes = ids(400)
    boxes = cutmix_boxes(hashes, 1.0, (32, 32), seed=0, epoch=1)
    config = AugmentConfig(**PLAIN, cutmix_alpha=1.0)
    kept, shares = draw_mixes(hashes, config, (32, 32), seed=0, epoch=1)
    assert np.array_equal(kept[:, 0].numpy() == 0, boxes)
    assert torch.allclose(shares, torch.from_numpy(1 - boxes.mean((1, 2))).float())
    assert 0.5 < float(shares.mean()) < 0.75  # boxes hang over the border, so more than a half is kept


def test_with_both_kinds_each_image_has_one() -> None:
    config = AugmentConfig(**PLAIN, cutmix_alpha=1.0, mixup_alpha=0.4)
    kept, shares = draw_mixes(ids(400), config, (8, 8), seed=0, epoch=1)
    flat = kept.flatten(1)
    is_mixup = (flat == flat[:, :1]).all(1) & (flat[:, 0] > 0) & (flat[:, 0] < 1)
    is_cut = ((flat == 0) | (flat == 1)).all(1)
    assert (is_mixup | is_cut).all()
    assert 120 < is_cut.sum() < 280
    assert torch.allclose(shares, flat.mean(1), atol=1e-6)


def test_crops_are_cut_from_what_is_stored(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, size=8)
    config = make_config(dataset, augment={**PLAIN, "crop_min_area": 0.3})
    kept, lean = (
        SplitRows(open_dataset(dataset), "train", limit_bytes=limit, threads=2, stored=True) for limit in (1 << 20, 0)
    )
    assert kept.is_cached
    assert not lean.is_cached
    one, other = (next(TrainFeed(rows, config, World(), MEAN).batches(1)) for rows in (kept, lean))
    assert np.array_equal(one.pixels, other.pixels)
    assert not np.array_equal(one.pixels, kept.pixels.take(np.arange(len(one.pixels))))


def test_stored_images_of_different_sizes_can_be_cropped(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, size=8, odd_size=12)
    rows = SplitRows(open_dataset(dataset), "train", limit_bytes=1 << 20, threads=2, stored=True)
    assert not rows.is_cached
    config = make_config(dataset, augment={**PLAIN, "crop_min_area": 0.3})
    batches = list(TrainFeed(rows, config, World(), MEAN).batches(1))
    assert sum(len(batch.pixels) for batch in batches) == rows.num_rows


def test_all_of_it_on_any_number_of_workers_computes_the_same_steps(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    everything = {
        "crop_min_area": 0.4,
        "cutmix_alpha": 1.0,
        "mixup_alpha": 0.4,
        "policy": "trivial",
        "erase_probability": 0.3,
    }
    config = make_config(dataset, augment=everything, precision="float64", loss={"name": "bce"})
    one = losses_of(config, Storage.open(tmp_path / "one"), 1)
    run = Storage.open(tmp_path / "three")
    in_threads(3, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    three = losses_of(config, run, 3)
    assert [trace for _, trace in three.values()] == [trace for _, trace in one.values()]
    assert [loss for loss, _ in three.values()] == pytest.approx([loss for loss, _ in one.values()], rel=1e-8)
