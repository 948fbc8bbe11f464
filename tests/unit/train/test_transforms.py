from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.dataset.keyed import image_hashes
from pipelines.train.config import AugmentConfig
from pipelines.train.mixing import beta_quantile, blend, mixup_shares
from pipelines.train.transforms import Normalise, augment, usable_std

MEAN = (0.5, 0.4, 0.3)
NOTHING = AugmentConfig(flip=False, shift_px=0)


def images(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def ids(count: int) -> np.ndarray:
    return image_hashes([f"{index * 2654435761:032x}"[::-1] for index in range(1, count + 1)])


def changed(pixels: np.ndarray, hashes: np.ndarray, config: AugmentConfig, epoch: int = 1) -> np.ndarray:
    return augment(pixels.copy(), hashes, config, seed=3, epoch=epoch, mean=MEAN)


def test_nothing_configured_changes_nothing() -> None:
    pixels = images(5)
    assert np.array_equal(changed(pixels, ids(5), NOTHING), pixels)


def test_a_draw_belongs_to_the_image_not_to_its_place_in_the_batch() -> None:
    config = AugmentConfig(flip=True, shift_px=2, cutout_px=3)
    pixels, hashes = images(40), ids(40)
    whole = changed(pixels, hashes, config)
    order = np.random.default_rng(1).permutation(40)
    assert np.array_equal(changed(pixels[order], hashes[order], config), whole[order])
    assert np.array_equal(changed(pixels[7:8], hashes[7:8], config)[0], whole[7])


def test_epochs_draw_anew() -> None:
    pixels, hashes = images(40), ids(40)
    first, second = (changed(pixels, hashes, AugmentConfig(), epoch=epoch) for epoch in (1, 2))
    assert not np.array_equal(first, second)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest() -> None:
    pixels, hashes = images(200), ids(200)
    result = changed(pixels, hashes, AugmentConfig(flip=True, shift_px=0))
    is_kept = (result == pixels).all(axis=(1, 2, 3))
    is_mirrored = (result == pixels[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (is_kept ^ is_mirrored).all()
    assert 70 < is_mirrored.sum() < 130


def test_two_epochs_show_both_sides_of_every_image() -> None:
    pixels, hashes = images(50), ids(50)
    config = AugmentConfig(flip=True, shift_px=0)
    first, second, third = (changed(pixels, hashes, config, epoch=epoch) for epoch in (1, 2, 3))
    assert np.array_equal(first, second[:, :, ::-1])
    assert np.array_equal(first, third)


def test_shift_moves_by_whole_pixels_and_mirrors_the_border() -> None:
    pixels, hashes = images(300), ids(300)
    result = changed(pixels, hashes, AugmentConfig(flip=False, shift_px=2))
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    seen = set()
    for index in range(300):
        found = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if np.array_equal(padded[index, dy : dy + 8, dx : dx + 8], result[index])
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 25  # every shift occurs


def test_cutout_sets_one_square_to_the_mean_colour() -> None:
    pixels, hashes = np.zeros((100, 8, 8, 3), dtype=np.uint8), ids(100)
    result = changed(pixels, hashes, AugmentConfig(flip=False, shift_px=0, cutout_px=3))
    hole = (result == np.array([128, 102, 76], dtype=np.uint8)).all(axis=3)
    assert (hole | (result == 0).all(axis=3)).all()
    areas = hole.sum(axis=(1, 2))
    assert areas.max() == 9
    assert areas.min() >= 4  # at a corner, two by two of it are left


def test_an_empty_share_of_a_batch_stays_empty() -> None:
    assert changed(images(0), ids(0), AugmentConfig()).shape == (0, 8, 8, 3)


def test_a_picture_of_one_pixel_can_be_shifted() -> None:
    pixels = images(4, size=1)
    assert np.array_equal(changed(pixels, ids(4), AugmentConfig()), pixels)


def test_normalise_is_the_packages_formula_and_channels_last() -> None:
    pixels = torch.from_numpy(images(6))
    std = (0.2, 0.3, 0.25)
    result = Normalise(MEAN, std, torch.device("cpu"))(pixels)
    expected = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_channel_that_never_varies_is_divided_by_one() -> None:
    assert usable_std((0.2, 0.0, 0.1)) == (0.2, 1.0, 0.1)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0, 4.1, 8.0, 32.0, 1000.0])
def test_beta_quantiles_have_the_moments_of_the_beta_distribution(alpha: float) -> None:
    draws = beta_quantile((np.arange(100_000) + 0.5) / 100_000, alpha)
    assert draws.mean() == pytest.approx(0.5, abs=1e-6)
    assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-3)
    assert (np.diff(draws) >= 0).all()
    assert 0 <= draws.min() <= draws.max() <= 1


def test_mixup_shares_are_keyed_by_image() -> None:
    hashes = ids(50)
    shares = mixup_shares(hashes, 0.4, seed=1, epoch=2)
    assert torch.equal(mixup_shares(hashes[10:20], 0.4, seed=1, epoch=2), shares[10:20])
    assert not torch.equal(mixup_shares(hashes, 0.4, seed=1, epoch=3), shares)


def test_blend_keeps_each_images_own_share() -> None:
    own, other = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    assert blend(own, other, torch.tensor([0.25, 1.0]).view(2, 1, 1, 1)).flatten().tolist() == [0.25, 1.0]
