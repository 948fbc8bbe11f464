"""The served model of a network that gives any number of labels an image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipelines.image.preprocess import Preprocess
from pipelines.package import bundle
from pipelines.package.describe import PackageDescription, parse_description, write_package
from pipelines.package.served_model import ServedModel
from pipelines.storage import Storage
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec

SPEC = ModelSpec(stem="cifar", depths=(1,), channels=(8,), num_classes=3)


def serve(root: Path, task: str) -> ServedModel:
    values = PackageDescription(SPEC, ("a", "b", "c"), Preprocess().to_json(), (0.4,) * 3, (0.3,) * 3, task=task)
    write_package(Storage.open(root), "", build(SPEC, seed=0).state_dict(), values)
    model = ServedModel()
    model.load_context(SimpleNamespace(artifacts=bundle.artifacts(root)))
    return model


def test_labels_are_the_classes_above_the_threshold(tmp_path: Path) -> None:
    images = pd.DataFrame({"image": [np.full((8, 8, 3), level, np.uint8) for level in (0, 200)] + [b"no image"]})
    answers = serve(tmp_path / "many", "multi").predict(None, images, {"top_k": 3})
    assert list(answers.columns) == ["names", "probabilities", "reason", "labels"]
    for row in answers.to_dict("records")[:2]:
        pairs = zip(row["names"], row["probabilities"], strict=True)
        assert row["labels"] == [name for name, probability in pairs if probability >= 0.5]
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
    assert (answers["labels"][2], bool(answers["reason"][2])) == ([], True)
    single = serve(tmp_path / "one", "single").predict(None, images[:2], {"top_k": 3})
    assert list(single.columns) == ["names", "probabilities", "reason"]
    assert [sum(row) for row in single["probabilities"]] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert abs(sum(answers["probabilities"][0]) - 1) > 1e-3


def test_the_signature_names_what_comes_out() -> None:
    assert bundle.signature().outputs.input_names() == ["names", "probabilities", "reason"]
    assert bundle.signature(is_multi=True).outputs.input_names() == ["names", "probabilities", "reason", "labels"]


@pytest.mark.parametrize(("old", "new", "fault"), [
    (b'"task": "multi"', b'"task": "some"', "task is 'some'; it must be single or multi"),
    (b'"threshold": 0.5', b'"threshold": 1.5', "threshold is 1.5; it must be a number between 0 and 1"),
])  # fmt: skip
def test_a_description_that_makes_no_sense_is_refused(tmp_path: Path, old: bytes, new: bytes, fault: str) -> None:
    serve(tmp_path, "multi")
    data = (tmp_path / "model.json").read_bytes()
    assert old in data
    with pytest.raises(Exception, match=fault):
        parse_description(data.replace(old, new), "here")
