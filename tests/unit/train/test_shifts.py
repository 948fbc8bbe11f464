"""Shifts and flips against a gather of single pixels, their definition."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.train.shifts import flip, mirror, shift


@pytest.mark.parametrize(("height", "width", "most"), [
    (32, 32, 4), (8, 8, 7), (8, 5, 4), (8, 4, 4), (5, 3, 9), (3, 1, 2), (1, 6, 3), (2, 2, 1), (4, 2, 1),
])  # fmt: skip
def test_a_shift_is_a_gather_at_mirrored_places(height: int, width: int, most: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, height, width, 3), dtype=np.uint8)
    before = pixels.copy()
    down, right = rng.integers(-most, most + 1, (2, 40))
    moved = shift(pixels, down, right, most)
    rows, columns = (mirror(np.arange(size) + by[:, None], size) for size, by in ((height, down), (width, right)))
    expected = pixels[np.arange(40)[:, None, None], rows[:, :, None], columns[:, None, :]]
    assert np.array_equal(moved, expected)
    assert np.array_equal(pixels, before)
    assert moved.flags.writeable


def test_places_are_mirrored_about_the_border_pixel() -> None:
    assert mirror(np.arange(-4, 8), 4).tolist() == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert mirror(np.arange(-2, 3), 1).tolist() == [0] * 5


@pytest.mark.parametrize("width", [1, 5, 32, 1400])
def test_a_flip_turns_the_chosen_ones(width: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 4, width, 3), dtype=np.uint8)
    chosen = np.array([True, False, True, True, False, False])
    expected = np.where(chosen[:, None, None, None], pixels[:, :, ::-1], pixels)
    assert np.array_equal(flip(pixels.copy(), chosen), expected)
    assert np.array_equal(flip(pixels.copy(), np.zeros(6, bool)), pixels)
