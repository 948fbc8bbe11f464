"""Figures: every one renders for empty, small, large and hostile input, sharp, in both themes."""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines.plots import figures, sweeps
from pipelines.plots.canvas import shorten
from pipelines.plots.palette import DARK, LIGHT
from pipelines.plots.params import describe_params
from pipelines.plots.picture import Picture

RECORDS = [
    {"epoch": 1, "train_loss": 2.0, "val_loss": 2.1, "train_top1": 0.2, "val_top1": 0.15},
    {"epoch": 2, "train_loss": 1.0, "val_loss": None, "train_top1": 0.6, "val_top1": 0.55},
    {"epoch": 3, "train_loss": 0.5, "val_loss": 0.9, "train_top1": 0.8, "val_top1": 0.7},
]
TRIALS = [
    {
        "id": "0001",
        "params": {"model.depth": 8, "optimizer.lr": 0.1},
        "val_top1": 0.9,
        "status": "finished",
        "curve": [(1, 0.5), (2, 0.9)],
    },
    {
        "id": "0002",
        "params": {"model.depth": 14, "optimizer.lr": 0.001},
        "val_top1": 0.4,
        "status": "stopped",
        "curve": [(1, 0.4)],
    },
    {
        "id": "0003",
        "params": {"model.depth": 9, "optimizer.lr": 0.2},
        "val_top1": None,
        "status": "failed",
        "curve": [],
    },
]
STAGES = [
    {**trial, "params": {"model.depths": depths, "model.block": "basic"}}
    for trial, depths in zip(TRIALS, ([1, 1, 1], [2, 2, 2], [1, 1, 1]), strict=True)
]
HOSTILE_CLASSES = ["$\\frac{", "a_{b", "<b>", "日本", "x" * 300]


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def hex_of(pixel: npt.NDArray[np.uint8]) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in pixel)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.training_curves(RECORDS),
        lambda: figures.training_curves(RECORDS[:1]),
        lambda: figures.training_curves([]),
        lambda: figures.confusion_matrix(np.diag([3, 4, 5, 6, 7]), HOSTILE_CLASSES),
        lambda: figures.confusion_matrix(np.zeros((2, 2), dtype=int), ["a", "b"]),
        lambda: figures.confusion_matrix(np.eye(100, dtype=int) * 9, [f"c{i}" for i in range(100)]),
        lambda: figures.leaderboard(TRIALS),
        lambda: figures.leaderboard([]),
        lambda: figures.reliability([{"confidence": 0.9, "accuracy": 0.8, "count": 5}], ece=0.1),
        lambda: figures.reliability([]),
        lambda: figures.class_balance({"train": {"a": 3, "b": 1}, "val": {"a": 1}}),
        lambda: figures.class_balance({"train": {f"c{i}": i for i in range(100)}, "test": {}}),
        lambda: figures.class_balance({}),
        lambda: sweeps.sweep_slices(TRIALS),
        lambda: sweeps.sweep_slices([]),
        lambda: sweeps.sweep_slices(STAGES),
        lambda: sweeps.sweep_curves(TRIALS),
        lambda: sweeps.sweep_curves([]),
    ],
)
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_a_figure_is_sharp_and_fits_both_themes(draw: Callable[[], Picture]) -> None:
    picture = draw()
    light, dark = pixels(picture.data), pixels(picture.dark)
    assert picture.width == 480
    assert light.shape == dark.shape == (2 * picture.height, 2 * picture.width, 3)
    assert hex_of(light[0, 0]) == LIGHT.card
    assert hex_of(dark[0, 0]) == DARK.card
    assert len(np.unique(light.reshape(-1, 3), axis=0)) > 8  # something was drawn


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert figures.training_curves(RECORDS) == figures.training_curves(RECORDS)


def test_hits_are_accent_and_misses_warm() -> None:
    matrix = [[10, 0], [10, 0]]
    colours = figures._confusion_colours(np.asarray([[1.0, 0.0], [1.0, 0.0]]), LIGHT)
    as_hex = [["#" + "".join(f"{round(255 * part):02x}" for part in cell) for cell in row] for row in colours]
    assert as_hex[0] == [LIGHT.accent, LIGHT.card]
    warm = np.asarray([int(LIGHT.warm[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    assert np.allclose(colours[1, 0], 0.9 * warm + 0.1)
    assert figures.confusion_matrix(matrix, ["a", "b"]).height == 320


def test_a_hundred_classes_list_the_pairs_confused_most() -> None:
    counts = np.eye(100) * 50
    counts[3, 7], counts[9, 1] = 4, 6
    assert figures._worst_pairs(counts, [f"class{i}" for i in range(100)]) == [
        ("class9 → class1", 6),
        ("class3 → class7", 4),
    ]
    few, many = (figures.confusion_matrix(np.eye(n, dtype=int), [str(i) for i in range(n)]) for n in (24, 25))
    assert many.height > few.height


def test_a_matrix_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a confusion matrix of shape \(2, 2\) does not fit 3 classes"):
        figures.confusion_matrix([[1, 0], [0, 1]], ["a", "b", "c"])


def test_params_are_named_shortly() -> None:
    params = {"model.depth": 20, "optimizer.lr": 0.012345678, "schedule.name": "cosine"}
    assert describe_params(params) == "depth 20 · lr 0.0123 · name cosine"


def test_long_names_are_cut_in_the_middle() -> None:
    assert shorten("short", 10) == "short"
    assert shorten("class_name_0123456789", 11) == "class…56789"
    assert shorten("a\nb\t c", 10) == "a b c"


def test_digits_are_ordered_as_numbers() -> None:
    assert sorted(["10", "b", "2", "a"], key=figures._natural) == ["2", "10", "a", "b"]


def test_the_marked_epoch_is_the_one_whose_weights_are_kept() -> None:
    nan = float("nan")
    scores = np.array([nan, 0.5, 0.9, 0.9, 0.9, 0.7])
    assert figures.best_epoch(scores, np.array([0.1, 0.2, 0.5, 0.3, 0.3, 0.1])) == 3
    assert figures.best_epoch(scores, np.full(6, nan)) == 2
    assert figures.best_epoch(scores, np.array([nan, nan, nan, nan, 0.3, nan])) == 4
