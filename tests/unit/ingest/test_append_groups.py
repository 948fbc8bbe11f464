"""A changed image whose group or time is of another split now stays where it stands, and that is said."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.reader import Dataset
from tests import factories
from tests.unit.ingest.test_append import by_key, grow, ingest


def write_table(path: Path, values: dict[str, str]) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("key", "label", "value"))
        writer.writerows((key, key.split("/")[0], value) for key, value in values.items())
    return str(path)


def value_in(dataset: Dataset, split: str) -> str:
    return str(dataset.table(split, ["value"]).column("value")[0].as_py())


@pytest.mark.parametrize("by", ["group", "time"])
@pytest.mark.parametrize("privacy", [{}, {"strip_metadata": True}], ids=["open", "private"])
def test_a_changed_image_of_another_splits_group(tmp_path: Path, by: str, privacy: dict[str, Any]) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 12, "dog": 8})
    keys = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    values = {key: str(1000 + number % 10) for number, key in enumerate(keys)}
    labels, out = write_table(tmp_path / "t.csv", values), tmp_path / "out"
    split = {"by": by, by: "value", "val": 0.2, "test": 0.2}
    before, _ = ingest(folder, out, labels=labels, split=split, privacy=privacy)
    places = by_key(before)
    key = next(key for key, (name, _) in places.items() if name == "train")
    write_table(tmp_path / "t.csv", {**values, key: value_in(before, "train")})
    dataset, _ = grow(folder, out)
    assert not [text for text in dataset.catalog["warnings"] if "of another split" in text]
    write_table(tmp_path / "t.csv", {**values, key: value_in(before, "test")})
    dataset, read = grow(folder, out)
    assert key in read
    assert by_key(dataset) == places
    (warning,) = [text for text in dataset.catalog["warnings"] if "of another split" in text]
    assert warning.startswith("1 changed image has a value of another split now")
    assert (f"({key} stands in train, and its value in test)" in warning) == (not privacy)
    assert (key in warning) == (not privacy)
