"""Which held-out rows another split has too: the same as a comparison of all rows says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.catalog import publish_version
from pipelines.dataset.leaks import find_leaks
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.writer import ShardWriter
from pipelines.storage import Storage
from tests.unit.dataset.rows import make_row, make_test_catalog


def published(root: Path, splits: dict[str, list[dict[str, Any]]]) -> Dataset:
    """Publish rows as they are, without any policy."""
    storage = Storage.open(str(root))
    run_id = f"{'a' * 32}-0"
    writer = ShardWriter(storage, run_id, 0, "a0")
    for split, values in splits.items():
        for row in values:
            writer.append(split, row)
    report = writer.close()
    catalog = make_test_catalog(storage, run_id, report.files, report.quarantine, "photos")
    publish_version(storage, run_id, catalog)
    return open_dataset(str(root))


def test_rows_that_look_like_or_equal_one_in_train_are_found(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    train = [{**make_row(number), "phash": int(draw.integers(2**63))} for number in range(60)]
    test: list[dict[str, Any]] = []
    expected_near, expected_exact = [], []
    for number in range(60, 90):
        row = {**make_row(number), "phash": int(draw.integers(2**63))}
        kind = number % 6
        if kind == 0:  # the same bytes, and so the same hash
            row |= {name: train[number - 60][name] for name in ("source_sha256", "phash")}
        elif kind == 1:  # looks alike
            row["phash"] = train[number - 60]["phash"] ^ 0b1011
        elif kind == 2:  # too far
            row["phash"] = train[number - 60]["phash"] ^ 0b11111
        elif kind == 3:  # of one colour: its hash says nothing
            row |= {"phash": train[number - 60]["phash"], "contrast": 0.0}
        elif kind == 4:  # of one colour, and the same bytes
            row |= {"source_sha256": train[number - 60]["source_sha256"], "contrast": 0.0}
        test.append(row)
        expected_exact.append(kind in (0, 4))
        expected_near.append(kind in (0, 1))
    dataset = published(tmp_path, {"train": train, "test": test})
    found = find_leaks(dataset, "test")
    assert found.exact.tolist() == expected_exact
    assert found.near.tolist() == expected_near
    assert found.either.sum() == 15
    assert find_leaks(dataset, "test", max_distance=0).near.sum() == 5
    assert not find_leaks(dataset, "train").either.any()
    assert not find_leaks(dataset, "test", against="val").either.any()
