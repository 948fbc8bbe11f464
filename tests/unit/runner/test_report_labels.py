"""The report of a run on images with any number of labels: all that were given, and no single class in their place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.plots.page import Page
from pipelines.runner import report_images, report_model
from pipelines.runner.graph import Made
from pipelines.runner.report_images import Scored, read_predictions, sample_scored
from pipelines.score.rows import Row, make_table
from pipelines.sources.resolve import open_source
from tests.factories import write_class_folder

CLASSES = ("sea", "sky", "town")
PROBABILITIES = [(0.9, 0.8, 0.1), (0.2, 0.3, 0.1)]


def score(workspace: Path, monkeypatch: pytest.MonkeyPatch, threshold: float | None) -> list[Scored]:
    """Return the samples of a folder of two images, as a report shows them."""
    write_class_folder(workspace / "photos", {"x": 2}, size=8)
    source = open_source("photos", "")
    members = [member for unit in source.units() for member in source.open(unit)]
    rows = [
        Row(member.image_id, member.key, 0, probabilities=np.array(found, np.float32))
        for member, found in zip(members, PROBABILITIES, strict=True)
    ]
    table = make_table(rows, "photos", ("m", "1", "0" * 64), CLASSES, 5, threshold)
    pq.write_table(table, workspace / "part.parquet")
    shards = [SimpleNamespace(path="part.parquet")]
    monkeypatch.setattr(report_images, "read_shard_list", lambda *_: (shards, None))
    predictions = read_predictions(str(workspace), {"shard_lists": [{}]})
    return sample_scored("photos", "", predictions, (), 2)


def test_all_labels_that_were_given_are_shown(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = score(workspace, monkeypatch, 0.5)
    assert (first.caption, first.sureness) == ("sea, sky", "sea 90%, sky 80%")
    assert (second.caption, second.sureness) == ("no label", "nearest: sky 30%")


def test_of_one_class_an_image_there_is_one(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = score(workspace, monkeypatch, None)
    assert (first.caption, first.sureness) == ("sea", "90% sure")
    assert (second.caption, second.sureness) == ("sky", "30% sure")


def test_many_labels_are_counted() -> None:
    names = tuple("abcdefg")
    scored = Scored("k", names[:5], (0.9,) * 5, None, names)  # type: ignore[arg-type]
    assert scored.caption == "a, b, c, d and 3 more"


def test_classes_have_their_average_precision() -> None:
    entry: dict[str, Any] = {"support": 3, "precision": 0.5, "recall": 0.5, "recall_low": 0.1, "recall_high": 0.9}
    classes = [entry | {"label": "sea", "average_precision": 0.75}, entry | {"label": "sky", "average_precision": None}]
    evaluation = {"confusion": [], "per_class": classes, "metrics": {}}
    made = {"ingest": Made("", "", {"classes": ["sea", "sky"]}), "evaluate": Made("", "", evaluation)}
    page = Page("t", kicker="", lead="", footer="")
    report_model.add_test(page, made)
    text = page.render().decode()
    assert "average precision" in text
    assert "75.0%" in text
