"""The files that `resnet data files` prints are read by the tools that users have, pictures and labels included."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.storage import Storage
from tests.unit.dataset.rows import image_id, ingest, label_of, make_png, split_of

SIZE = 60
NUMBERS = [number for number in range(SIZE) if split_of(number) == "train"]
LABELS = Counter(label_of(number) for number in NUMBERS)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    storage = Storage.open(tmp_path / "a folder")
    ingest(storage, {0: range(40), 1: range(40, SIZE)})
    ingest(storage, {0: range(5)}, key="b" * 32, source="more", base=1)
    return open_dataset(f"{storage.uri}@v1")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_pandas(dataset):
    import pandas as pd

    frame = pd.concat([pd.read_parquet(path) for path in dataset.files("train")])
    assert Counter(frame["label"]) == LABELS
    assert list(frame["image_id"]) == [image_id(number) for number in NUMBERS]
    for number, image in zip(NUMBERS, frame["image"], strict=True):
        np.testing.assert_array_equal(pixels(image["bytes"]), pixels(make_png(number)))
    assert frame["phash"].dtype == np.uint64


def test_duckdb(dataset):
    import duckdb

    files = dataset.files("train")
    counts = duckdb.execute("select label, count(*) from read_parquet(?) group by label", [files]).fetchall()
    assert dict(counts) == LABELS
    rows = duckdb.execute("select image_id, image.bytes from read_parquet(?)", [files]).fetchall()
    found = dict(rows)
    assert len(rows) == len(found) == len(NUMBERS)
    for number in NUMBERS:
        np.testing.assert_array_equal(pixels(found[image_id(number)]), pixels(make_png(number)))


@pytest.mark.integration
def test_hugging_face_datasets(dataset, tmp_path):
    import datasets

    loaded = datasets.load_dataset(
        "parquet",
        data_files={split: dataset.files(split) for split in dataset.splits},
        cache_dir=str(tmp_path / "cache"),
    )
    train = loaded["train"]
    assert isinstance(train.features["image"], datasets.Image)
    assert Counter(train["label"]) == LABELS
    assert loaded["test"].num_rows == SIZE - len(NUMBERS)
    by_id = {row["image_id"]: row["image"] for row in train}
    for number in NUMBERS:
        np.testing.assert_array_equal(np.asarray(by_id[image_id(number)]), pixels(make_png(number)))
