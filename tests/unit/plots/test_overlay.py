"""Heat maps over images: colour where the map is, grey elsewhere, one pair per image and no bad input drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.plots.overlay import CAPTION_PX, CELL_PX, GAP_PX, PAIR_GAP_PX, explanation_sheet, heat_over
from pipelines.plots.picture import Picture


def pixels(picture: Picture) -> np.ndarray:
    with Image.open(io.BytesIO(picture.data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def image(height: int, width: int, grey: int = 128) -> np.ndarray:
    return np.full((height, width, 3), grey, dtype=np.uint8)


def warmth(pixel: np.ndarray) -> int:
    return int(pixel[0]) - int(pixel[2])


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_warm_where_it_speaks_for_the_class_and_teal_where_against(grey: int) -> None:
    heat = np.zeros((20, 30), dtype=np.float32)
    heat[2:8, 2:8], heat[12:18, 20:28] = 5.0, -5.0
    over = heat_over(image(20, 30, grey), heat)
    assert (over.shape, over.dtype) == ((20, 30, 3), np.uint8)
    assert warmth(over[5, 5]) > 80
    assert warmth(over[15, 24]) < -60
    assert warmth(over[10, 15]) == 0


def test_colours_of_the_image_are_not_taken_for_heat() -> None:
    red = image(8, 8)
    red[:] = (250, 30, 30)
    over = heat_over(red, np.zeros((8, 8)))
    assert np.ptp(over, axis=2).max() == 0


def test_unit_and_lone_extremes_do_not_matter() -> None:
    heat = np.random.default_rng(0).random((40, 40))
    assert np.array_equal(heat_over(image(40, 40), heat), heat_over(image(40, 40), heat * 1e-7))
    spiked = heat.copy()
    spiked[0, 0] = 1e6
    near = np.abs(heat_over(image(40, 40), heat).astype(int) - heat_over(image(40, 40), spiked))
    assert near[1:, 1:].max() <= 2
    lone = np.zeros((40, 40))
    lone[20, 20] = 3.0  # the percentile alone would be zero
    assert warmth(heat_over(image(40, 40), lone)[20, 20]) > 80


def test_grey_images_are_taken() -> None:
    assert heat_over(np.zeros((4, 6), dtype=np.uint8), np.ones((4, 6))).shape == (4, 6, 3)


def test_sheet_sets_the_image_beside_its_map() -> None:
    heat = np.zeros((32, 32))
    heat[:16] = 1.0
    picture = explanation_sheet([image(32, 32, 200)] * 3, [heat] * 3, ["a class", "another, with a long name" * 9, ""])
    sheet = pixels(picture)
    pair = 2 * CELL_PX + PAIR_GAP_PX
    assert sheet.shape[1] == 2 * pair + 3 * GAP_PX
    assert (picture.width, picture.height) == (round(sheet.shape[1] / 2), round(sheet.shape[0] / 2))
    assert picture.width <= 480
    assert sheet[-2 * CAPTION_PX :].min() < 160  # the legend's letters
    left, right = GAP_PX + CELL_PX // 2, GAP_PX + CELL_PX + PAIR_GAP_PX + CELL_PX // 2
    quarter, three_quarters = GAP_PX + CELL_PX // 4, GAP_PX + 3 * CELL_PX // 4
    assert abs(warmth(sheet[quarter, left])) < 6
    assert warmth(sheet[quarter, right]) > 80
    assert abs(warmth(sheet[three_quarters, right])) < 6
    second_row = GAP_PX + CELL_PX + CAPTION_PX + GAP_PX
    assert warmth(sheet[second_row + CELL_PX // 4, right]) > 80
    assert sheet[second_row + 20 : second_row + CELL_PX, GAP_PX + pair + GAP_PX :].min() > 250  # no fourth pair


def test_large_and_mixed_sizes_fit() -> None:
    sizes = [(600, 300), (200, 900), (8, 8)]
    images, heats = [image(*size) for size in sizes], [np.ones(size) for size in sizes]
    sheet = pixels(explanation_sheet(images, heats))
    assert sheet.shape[1] == 4 * CELL_PX + 2 * PAIR_GAP_PX + 3 * GAP_PX
    assert pixels(explanation_sheet(images[:1], heats[:1])).shape[1] == 2 * CELL_PX + PAIR_GAP_PX + 2 * GAP_PX


def test_equal_input_gives_equal_bytes() -> None:
    heat = np.random.default_rng(1).normal(size=(50, 70))
    assert explanation_sheet([image(50, 70)], [heat], ["x"]) == explanation_sheet([image(50, 70)], [heat], ["x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "0 images on one sheet; give 1 to 64"),
        (([image(4, 4)] * 65, [np.ones((4, 4))] * 65), "65 images on one sheet; give 1 to 64"),
        (([image(4, 4)], []), "0 heat maps and 0 captions for 1 images"),
        (([image(4, 4)], [np.ones((4, 4))], ["a", "b"]), "1 heat maps and 2 captions for 1 images"),
        (([image(4, 4)], [np.ones((4, 5))]), r"a heat map of \(4, 5\) does not fit an image of \(4, 4\)"),
        (([np.ones((4, 4, 3))], [np.ones((4, 4))]), r"an overlay needs uint8 images .* not float64 \(4, 4, 3\)"),
        (([image(4, 4)], [np.full((4, 4), np.nan)]), "a heat map holds values that are no finite numbers"),
    ],
)
def test_impossible_sheets_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explanation_sheet(*arguments)
