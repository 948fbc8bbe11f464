"""Test-time averaging: the mean over views equals the mean taken by hand, in figures, catalog and key."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from pipelines.errors import InputError
from pipelines.evaluate.config import ViewsConfig
from pipelines.evaluate.plan import plan
from pipelines.evaluate.stage import run
from pipelines.evaluate.views import View, averaging, make_views
from pipelines.package.load import load_package
from pipelines.package.predictor import Predictor
from pipelines.registry.config import RegisterConfig
from pipelines.registry.plan import resolve
from tests.unit.evaluate.small_world import config, make_world, read_json


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("views"))


def random_images(count: int = 5) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 7, 9, 3)).astype(np.uint8)


def test_a_view_moves_every_pixel_and_mirrors_what_comes_in() -> None:
    images = random_images()
    height, width = images.shape[1:3]
    for view in make_views(flip=True, shift_px=2):
        seen = view.of(images)
        for y in range(height):
            for x in range(width):
                column = width - 1 - x if view.mirrored else x
                source_y, source_x = abs(y - view.down), abs(column - view.right)
                source_y = min(source_y, 2 * (height - 1) - source_y)
                source_x = min(source_x, 2 * (width - 1) - source_x)
                assert (seen[:, y, x] == images[:, source_y, source_x]).all(), (view, y, x)


def test_which_views_there_are() -> None:
    assert make_views(flip=False, shift_px=0) == (View(0, 0, mirrored=False),)
    assert [str(view) for view in make_views(flip=True, shift_px=0)] == ["in place", "in place, mirrored"]
    both = make_views(flip=True, shift_px=1)
    assert (len(both), len(set(both)), both[0]) == (10, 10, View(0, 0, mirrored=False))
    assert str(both[-1]) == "down 1, right 1, mirrored"
    assert {(view.down, view.right) for view in both} == {(0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)}


def test_one_view_is_the_network_itself_and_several_are_their_mean() -> None:
    images = random_images()
    weights = np.random.default_rng(1).normal(size=(images[0].size, 4))

    def forward(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        assert pixels.dtype == np.uint8
        scores = np.exp(pixels.reshape(len(pixels), -1) / 255 @ weights * 0.1)
        return (scores / scores.sum(1, keepdims=True)).astype(np.float32)

    np.testing.assert_array_equal(averaging(forward, make_views(flip=False, shift_px=0))(images), forward(images))
    moved = np.stack([
        forward(np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")[:, y : y + 7, x : x + 9])
        for y, x in ((1, 1), (2, 2), (2, 0), (0, 2), (0, 0))
    ])  # fmt: skip
    answer = averaging(forward, make_views(flip=False, shift_px=1))(images)
    np.testing.assert_allclose(answer, moved.mean(0), rtol=1e-6)
    np.testing.assert_allclose(answer.sum(1), 1, rtol=1e-6)
    assert np.abs(answer - forward(images)).max() > 1e-4  # the views do differ


def test_an_evaluation_equals_averaging_by_hand_and_says_so(world: Path, tmp_path: Path) -> None:
    plain = run(config(world, out=str(tmp_path / "plain")))
    result = run(config(world, out=str(tmp_path / "mean"), views={"flip": True, "shift_px": 1}))
    again = run(config(world, out=str(tmp_path / "again"), views={"flip": True, "shift_px": 1}, batch_size=5))
    catalog = read_json(tmp_path / "mean/_catalog.json")
    assert catalog["views"] == [str(view) for view in make_views(flip=True, shift_px=1)]
    assert catalog["config"]["views"] == {"flip": True, "shift_px": 1}
    assert "views" not in read_json(tmp_path / "plain/_catalog.json")
    assert "10 views" in (tmp_path / "mean/mistakes.html").read_text()
    assert (again.key, result.key != plain.key) == (result.key, True)

    table = pq.read_table(io.BytesIO((tmp_path / "mean/predictions.parquet").read_bytes()))
    from pipelines.dataset.reader import open_dataset
    from pipelines.image.preprocess import Preprocess, prepare_stored

    dataset, package = open_dataset(str(world / "data")), load_package(str(world / "train/model"))
    preprocess = Preprocess.from_json(package.description["preprocess"])
    stored = dataset.table("test", ["image", "image_id"]).to_pylist()
    images = np.stack([prepare_stored(row["image"]["bytes"], preprocess) for row in stored])
    predictor = Predictor(package, "float32", "cpu")
    flipped = images[:, :, ::-1]
    margins = ((0, 0), (1, 1), (1, 1), (0, 0))
    side = images.shape[1]
    answers = []
    for sided in (images, flipped):
        padded = np.pad(sided, margins, mode="reflect")
        answers += [
            predictor.predict(padded[:, y : y + side, x : x + side].copy())
            for y, x in ((1, 1), (0, 0), (0, 2), (2, 0), (2, 2))
        ]
    by_hand = np.mean(answers, axis=0)
    assert [row["image_id"] for row in stored] == table.column("image_id").to_pylist()
    np.testing.assert_allclose(table.column("probability").to_numpy(), by_hand.max(1), atol=1e-5)
    right = by_hand.argmax(1) == [catalog["classes"].index(name) for name in table.column("label").to_pylist()]
    assert catalog["metrics"]["correct_rows"] == right.sum()


def test_views_are_a_later_field_and_strict(world: Path) -> None:
    key = plan(config(world)).key
    assert plan(config(world, views={"flip": False, "shift_px": 0})).key == key
    assert plan(config(world, views={"flip": True})).key != key
    assert not ViewsConfig().is_on
    with pytest.raises(ValueError, match="shift_px"):
        config(world, views={"shift_px": 17})
    with pytest.raises(ValueError, match="flips"):
        config(world, views={"flips": True})


def test_an_averaged_evaluation_is_no_ground_for_registering(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean"
    result = run(config(world, out=str(out), views={"flip": True}))
    assert not any("register" in command for command in result.next_commands)
    register = RegisterConfig.model_validate(
        {"model": str(world / "train"), "name": "n", "evaluation": str(out),
         "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    )  # fmt: skip
    with pytest.raises(InputError) as raised:
        resolve(register)
    assert raised.value.what == "the evaluation is a mean over 2 views of each image, and the model answers from one"
    assert raised.value.mend.startswith("leave the views out: resnet evaluate ")
