"""A box that is corrected is hidden, though nothing else of the member changed and boxes do not travel."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.dataset.reader import Dataset
from pipelines.image.decode import decode_image
from tests.unit.ingest.test_append import SMALL_SPLIT, grow, ingest, rows

KEYS = [f"{label}/{number}.png" for label in "ab" for number in range(6)]


def write_boxes(path: Path, boxes: dict[str, str]) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("key", "label", "boxes"))
        writer.writerows((key, key[0], boxes.get(key, "")) for key in KEYS)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, key in enumerate(KEYS):
        (tmp_path / "set" / key).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(1, 255, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / key)
    return tmp_path / "set"


def audited(dataset: Dataset) -> list[list[str]]:
    """Return the image ids of each audit."""
    tables = [pq.read_table(f"{dataset.uri}/{entry['path']}") for entry in dataset.catalog["audits"]]
    return [sorted(table.column("image_id").to_pylist()) for table in tables]


def test_a_corrected_box_is_hidden(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = write_boxes(tmp_path / "labels.csv", {})
    privacy = {"region_column": "boxes"}
    first, _ = ingest(folder, out, labels=labels, privacy=privacy, **SMALL_SPLIT)
    write_boxes(tmp_path / "labels.csv", {KEYS[0]: "[[0, 0, 24, 24]]"})
    os.utime(folder / KEYS[1], (1, 1))
    dataset, read = grow(folder, out)
    assert sorted(read) == KEYS[:2]
    assert dataset.catalog["difference"]["changed"] == 1
    assert dataset.catalog["difference"]["unchanged"] == 1
    images = {
        row["key"]: (row["image_id"], row["image"]["bytes"])
        for split in dataset.splits
        for row in dataset.table(split, ["key", "image_id", "image"]).to_pylist()
    }
    changed, data = images[KEYS[0]]
    assert decode_image(data).pixels.max() == 0
    assert audited(dataset) == [sorted(rows(first)), [changed]]  # nothing of a row that does not come in
    os.utime(folder / KEYS[2], (2, 2))
    touched, read = grow(folder, out)
    assert read == [KEYS[2]]
    assert rows(touched) == rows(dataset)
    assert touched.catalog["audits"] == dataset.catalog["audits"]
