"""Every row of a split is answered once, in order, whatever the batch size."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.dataset.reader import Dataset
from pipelines.dataset.stored_images import stored_images
from pipelines.errors import DataError
from pipelines.evaluate.mistakes import worst_mistakes
from pipelines.evaluate.predict import (
    Answers,
    check_every_row_once,
    choose_prepare,
    forward_any_size,
    join_classes,
    predict_split,
)
from pipelines.evaluate.summary import summarize
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry
from tests.factories import make_png
from tests.unit.evaluate.small_world import CLASSES, description, make_dataset, read_stripes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("evaluate"))


@pytest.mark.parametrize("batch_size", [1, 4, 27, 1000])
def test_answers_are_the_rows_in_order_whatever_the_batch(dataset: Dataset, batch_size: int) -> None:
    answers = predict_split(dataset, "test", read_stripes, description(), batch_size=batch_size)
    table = dataset.table("test", ["image_id", "key", "label"])
    assert answers.image_ids == table.column("image_id").to_pylist()
    assert answers.keys == table.column("key").to_pylist()
    assert [CLASSES[target] for target in answers.targets] == table.column("label").to_pylist()
    assert (answers.ranks == 1).mean() > 0.9  # the reader of stripes is right: images and labels are not mixed up
    whole = predict_split(dataset, "test", read_stripes, description(), batch_size=27)
    np.testing.assert_array_equal(answers.top_probability, whole.top_probability)


def test_a_model_with_other_classes_in_another_order_is_matched_by_name(dataset: Dataset) -> None:
    def other_order(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scores = read_stripes(pixels)
        return np.stack([scores[:, 2], 0 * scores[:, 0], scores[:, 0]], axis=1)

    answers = predict_split(dataset, "test", other_order, description(("c", "zebra", "a")), batch_size=8)
    assert answers.classes == ("a", "b", "c", "zebra")
    summary = summarize(answers, num_bins=15)
    by_name = {row["label"]: row for row in summary.per_class}
    assert by_name["a"]["recall"] > 0.8
    assert (by_name["b"]["recall"], by_name["b"]["support"]) == (0.0, 9)  # what a model does not know, it gets wrong
    assert by_name["zebra"]["support"] == 0
    assert np.sum(summary.confusion) == 27


def test_join_classes_keeps_the_datasets_numbers() -> None:
    classes, columns = join_classes(["a", "b"], ["b", "x", "a"])
    assert classes == ("a", "b", "x")
    assert columns.tolist() == [1, 2, 0]


def test_images_of_several_sizes_are_answered_in_their_places(tmp_path: Path) -> None:
    sizes: list[int] = []

    def forward(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        sizes.append(pixels.shape[1])
        return read_stripes(pixels)

    images = [np.zeros((side, 8, 3), np.uint8) for side in (8, 9, 8)]
    images[1][:, 2:4, 1] = 200
    probabilities = forward_any_size(forward, images)
    assert probabilities.argmax(axis=1).tolist() == [0, 1, 0]
    assert sorted(sizes) == [8, 9]


def test_rows_without_a_label_are_answered_but_not_measured(tmp_path: Path) -> None:
    unlabelled = make_dataset(tmp_path, labelled=False)
    answers = predict_split(unlabelled, "test", read_stripes, description(), batch_size=8)
    assert len(answers.image_ids) == 27
    assert not answers.labelled.any()
    assert np.isnan(answers.label_probability).all()
    assert summarize(answers, num_bins=5).metrics["labelled_rows"] == 0


def test_a_network_that_answers_no_number_is_an_error(dataset: Dataset) -> None:
    def diverged(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.full((len(pixels), 3), np.nan, dtype=np.float32)

    with pytest.raises(DataError) as caught:
        predict_split(dataset, "test", diverged, description(), batch_size=8)
    assert str(caught.value) == (
        "DataError: the network's answer for test/a/0 is not a number\n"
        f"  where: {dataset.ref}\n"
        "  mend:  its weights have diverged: train again, with a lower rate"
    )


def test_a_row_answered_twice_is_an_error(dataset: Dataset) -> None:
    answers = predict_split(dataset, "test", read_stripes, description(), batch_size=8)
    twice = dataclasses.replace(answers, image_ids=[answers.image_ids[0], *answers.image_ids[:-1]])
    with pytest.raises(DataError, match="27 rows of split 'test' gave 27 answers for 26 images; each must be answered"):
        check_every_row_once(twice.image_ids, 27, dataset.ref, "test")
    with pytest.raises(DataError, match="28 rows of split 'test' gave 27 answers for 27 images"):
        check_every_row_once(answers.image_ids, 28, dataset.ref, "test")


def test_images_stored_for_another_network_go_through_both_geometries(caplog: pytest.LogCaptureFixture) -> None:
    wanted = Preprocess(stored=Geometry(16, "crop"), evaluation=Geometry(12, "crop"))
    with caplog.at_level(logging.WARNING):
        prepare = choose_prepare(Preprocess().to_json(), wanted.to_json())
    assert prepare(make_png(0, 64, 48)).shape == (12, 12, 3)
    assert "the dataset stores images as" in caplog.text
    caplog.clear()
    same = choose_prepare(wanted.to_json(), wanted.to_json())
    assert same(make_png(0, 16, 16)).shape == (12, 12, 3)
    assert not caplog.records


def answers_of(probability: list[list[float]], targets: list[int]) -> Answers:
    scores = np.array(probability, dtype=np.float32)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    own = scores[np.arange(len(targets)), targets]
    return Answers(
        classes=("a", "b", "c"),
        image_ids=[f"{row:032x}" for row in range(len(targets))],
        keys=[f"{row}.png" for row in range(len(targets))],
        targets=np.array(targets),
        ranks=1 + (scores > own[:, None]).sum(axis=1),
        label_probability=own,
        top=top,
        top_probability=np.take_along_axis(scores, top, axis=1),
    )


def test_summary_worked_by_hand() -> None:
    answers = answers_of([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.9, 0.06, 0.04], [0.1, 0.2, 0.7]], [0, 1, 2, 2])
    summary = summarize(answers, num_bins=10)
    assert summary.metrics["top1"] == 0.75
    assert summary.metrics["top5"] == 1.0
    assert summary.metrics["correct_rows"] == 3
    assert summary.metrics["top1_low"] == pytest.approx(0.3006, abs=1e-4)
    assert summary.metrics["top1_high"] == pytest.approx(0.9544, abs=1e-4)
    assert summary.confusion == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    # bins: 0.6 (right), two of 0.7 (right), 0.9 (wrong)
    assert summary.metrics["ece"] == pytest.approx((0.4 + 2 * 0.3 + 0.9) / 4, abs=1e-6)
    assert summary.metrics["log_loss"] == pytest.approx(-np.log([0.6, 0.7, 0.04, 0.7]).mean(), abs=1e-6)
    assert [row["label"] for row in summary.per_class] == ["a", "b", "c"]
    assert (summary.per_class[0]["precision"], summary.per_class[0]["recall"]) == (0.5, 1.0)
    assert summary.metrics["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)


def test_mistakes_are_the_surest_first_and_only_labelled_rows() -> None:
    answers = answers_of([[0.6, 0.4, 0.0], [0.8, 0.1, 0.1], [0.9, 0.1, 0.0], [0.6, 0.4, 0.0]], [1, 2, 0, 1])
    assert [(row["row"], row["label"], row["predicted"]) for row in worst_mistakes(answers, 10)] == [
        (1, "c", "a"),
        (0, "b", "a"),  # equally sure ones in the order of their ids
        (3, "b", "a"),
    ]
    assert len(worst_mistakes(answers, 2)) == 2
    unlabelled = dataclasses.replace(answers, targets=np.array([-1, 2, 0, 1]), ranks=np.array([0, 2, 1, 2]))
    assert [row["row"] for row in worst_mistakes(unlabelled, 10)] == [1, 3]


def test_stored_images_are_those_of_the_rows(dataset: Dataset) -> None:
    table = dataset.table("test", ["image"]).to_pylist()
    rows = [26, 0, 13, 14]
    found = stored_images(dataset, "test", rows)
    assert sorted(found) == sorted(rows)
    assert all(found[row] == table[row]["image"]["bytes"] for row in rows)
