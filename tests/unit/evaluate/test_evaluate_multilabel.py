"""Evaluations where images have any number of labels."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import InputError
from pipelines.evaluate import predictions
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.multilabel import LabelAnswers, predict_labels, summarize_labels, worst_labels
from pipelines.evaluate.plan import package_digest
from pipelines.evaluate.predictions import make_label_predictions
from pipelines.evaluate.stage import run
from pipelines.image.preprocess import Preprocess
from pipelines.package.describe import PackageDescription, write_package
from pipelines.storage import Storage
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from tests.unit.evaluate.small_world import make_dataset, make_training
from tests.unit.train.labelled_stripes import NAMES, labels_of, write_dataset

SPEC = ModelSpec(stem="cifar", depths=(1,), channels=(8,), num_classes=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_dataset(tmp_path_factory.mktemp("labels"), unlabelled=5))


def read_stripes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return probabilities by how bright each class's stripe is: right for two classes, c always there."""
    means = [pixels[:, :, 2 * n : 2 * n + 2, n].mean(axis=(1, 2)) for n in range(3)]
    found = np.clip((np.stack(means, axis=1) - 60) / 120, 0.05, 0.95)
    found[:, 2] = 0.8
    return found.astype(np.float32)


def description() -> dict[str, Any]:
    return {"classes": list(NAMES), "preprocess": Preprocess().to_json(), "task": "multi", "threshold": 0.5}


def write_model(root: Path, task: str = "multi") -> Path:
    values = PackageDescription(
        SPEC, NAMES, Preprocess().to_json(), (0.4,) * 3, (0.3,) * 3, dataset={"uri": "tiny"}, task=task
    )
    write_package(Storage.open(root), "model", build(SPEC, seed=0).state_dict(), values)
    return root / "model"


def test_answers_and_figures_by_hand(dataset: Dataset) -> None:
    answers = predict_labels(dataset, "test", read_stripes, description(), batch_size=7)
    assert [answers.names(row) for row in answers.targets] == [labels_of(number) for number in range(30)]
    summary = summarize_labels(answers, num_bins=10, leaked=np.arange(30) < 10)
    # a and b are told rightly; c is said of all 30 and is there in 12 (numbers 4 to 7 of each 8)
    counts = [(entry["support"], entry["predicted"], entry["correct"]) for entry in summary.per_class]
    assert counts == [(15, 15, 15), (14, 14, 14), (14, 30, 14)]
    assert [entry["average_precision"] for entry in summary.per_class] == pytest.approx([1, 1, 14 / 30])
    metrics = summary.metrics
    assert metrics["map"] == pytest.approx((2 + 14 / 30) / 3)
    assert metrics["macro_f1"] == pytest.approx((2 + 28 / 44) / 3)
    assert metrics["micro_f1"] == pytest.approx(2 * 43 / (43 + 59))
    assert (metrics["exact"], metrics["correct_rows"]) == (pytest.approx(14 / 30), 14)
    assert (metrics["rows"], metrics["labelled_rows"], metrics["leaked_rows"]) == (30, 30, 10)
    assert metrics["map_without_leaks"] == pytest.approx((2 + 10 / 20) / 3)
    assert summary.confusion == []


def test_rows_without_a_list_do_not_count(dataset: Dataset) -> None:
    answers = predict_labels(dataset, "train", read_stripes, description(), batch_size=50)
    metrics = summarize_labels(answers, num_bins=10).metrics
    assert (metrics["rows"], metrics["labelled_rows"]) == (96, 91)
    assert all(mistake["row"] >= 5 for mistake in worst_labels(answers, 100))


def test_mistakes_name_the_class_that_is_wrong(dataset: Dataset) -> None:
    answers = predict_labels(dataset, "test", read_stripes, description(), batch_size=30)
    mistakes = worst_labels(answers, 3)
    assert len(mistakes) == 3
    for mistake in mistakes:
        assert (mistake["class"], mistake["probability"]) == ("c", pytest.approx(0.8))
        assert mistake["label"] == (", ".join(labels_of(mistake["row"])) or "none")
        assert mistake["predicted"].endswith("c")
    assert len(worst_labels(answers, 100)) == 16


def test_predictions_keep_every_class(dataset: Dataset) -> None:
    answers = predict_labels(dataset, "train", read_stripes, description(), batch_size=30)
    rows = pq.read_table(io.BytesIO(make_label_predictions(answers))).to_pylist()
    assert rows[0]["label"] is None
    assert rows[9]["label"] == labels_of(9)
    assert "c" in rows[9]["predicted"]
    assert sorted(rows[9]["names"]) == list(NAMES)
    assert rows[9]["probabilities"] == sorted(rows[9]["probabilities"], reverse=True)


def test_the_stage_publishes_figures_pictures_and_a_page(dataset: Dataset, tmp_path: Path) -> None:
    model = write_model(tmp_path)
    config = EvaluateConfig(
        model=str(model), dataset=dataset.ref, out=str(tmp_path / "out"), device="cpu", tracking={"enabled": False}
    )
    result = run(config)
    assert {"map", "exact", "micro_f1"} <= set(result.figures)
    assert "top1" not in result.figures
    catalog = json.loads((tmp_path / "out" / "_catalog.json").read_text())
    assert catalog["confusion"] == []
    assert sorted(path.name for path in (tmp_path / "out" / "figures").iterdir()) == ["reliability.png"]
    page = (tmp_path / "out" / "mistakes.html").read_text()
    for words in ("mean average precision over classes", "images with every class told rightly", "average precision"):
        assert words in page
    assert run(config).skipped


def test_network_and_data_of_other_kinds_of_labels_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    single = make_training(tmp_path / "single")
    off = {"enabled": False}
    with pytest.raises(InputError) as caught:
        run(EvaluateConfig(model=str(single), dataset=dataset.ref, out=str(tmp_path / "a"), tracking=off))
    assert caught.value.what == (
        f"the model gives one label an image and images of {dataset.ref} have any number of labels"
    )
    other = make_dataset(tmp_path / "data")
    with pytest.raises(InputError, match=r"the model gives any number of labels an image and images of .* have one"):
        run(EvaluateConfig(model=str(write_model(tmp_path)), dataset=other.ref, out=str(tmp_path / "b"), tracking=off))


def test_the_kind_of_labels_is_part_of_what_a_package_answers(tmp_path: Path) -> None:
    one = json.loads((write_model(tmp_path / "one", "single") / "model.json").read_text())
    many = json.loads((write_model(tmp_path / "many") / "model.json").read_text())
    assert one["weights_sha256"] == many["weights_sha256"]
    assert package_digest(one) != package_digest(many)
    assert (one["format_version"], "task" in one) == (1, False)


def test_many_rows_of_many_classes_are_written_without_an_object_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, classes = 2500, 600
    draws = np.random.default_rng(0)
    probabilities = draws.random((rows, classes), dtype=np.float32)
    probabilities[:, 7] = probabilities[:, 3]  # equal ones keep the order of the classes
    names = tuple(f"class {number}" for number in range(classes))
    targets = draws.random((rows, classes)) < 0.01
    labelled = np.arange(rows) % 5 > 0
    targets[~labelled] = False
    ids = [f"{number:032x}" for number in range(rows)]
    answers = LabelAnswers(names, ids, ids, targets, labelled, probabilities, 0.99)
    monkeypatch.setattr(predictions, "_ROWS_A_PART", 1000)
    tracemalloc.start()
    data = make_label_predictions(answers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * probabilities.size  # the file's bytes, and what NumPy holds of a part; a list a cell took 60
    table = pq.read_table(io.BytesIO(data))
    assert table.schema.field("names").type.value_type == pa.string()
    assert table.num_rows == rows
    for number in (0, 1, 999, 1000, 2499):
        row = table.slice(number, 1).to_pylist()[0]
        order = np.argsort(-probabilities[number], kind="stable")
        assert row["image_id"] == row["key"] == ids[number]
        assert row["names"] == [names[place] for place in order]
        np.testing.assert_array_equal(np.float32(row["probabilities"]), probabilities[number][order])
        assert row["predicted"] == answers.names(answers.said[number])
        assert row["label"] == (answers.names(targets[number]) if labelled[number] else None)
