"""Datasets written in every format version so far are still read, with the values that they were written with.

And what this program writes today has the shape of the newest sample: a changed shape needs a new format version, a
reader for both, and a new sample.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.dataset.catalog import list_versions, published_version
from pipelines.dataset.collect import compact, gc
from pipelines.dataset.inspect import quarantined, verify
from pipelines.dataset.reader import open_dataset
from pipelines.dataset.receipt import UnitReport, read_receipts
from pipelines.storage import Storage
from tests.golden.formats.make_dataset_sample import make_dataset, sample_row

HERE = Path(__file__).parent
SAMPLES = [HERE / "dataset.v1", HERE / "dataset.v2"]
SAMPLE = SAMPLES[-1]
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
RUN = "0123456789abcdef" * 2 + "-0"


@pytest.fixture
def made(tmp_path) -> Path:
    make_dataset(tmp_path / "made")
    return tmp_path / "made"


def relative_files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


@each_sample
def test_the_sample_is_read_as_it_was_written(sample):
    first = open_dataset(f"{sample}@v1")
    is_first = sample == SAMPLES[0]
    assert first.classes == ["café", "tea"]
    rows = first.table("train").to_pylist() + first.table("test").to_pylist()
    for row, number in zip(rows, range(5), strict=True):
        later = {"cropped_fraction": None, "source_bytes": None} if is_first else {}
        expected = sample_row(number) | later
        assert {name: value for name, value in row.items() if name != "stored_sha256"} == expected
    assert first.fingerprint == "547cf8935a7aa026c1a9a2698e54013863ebc6eadb11748bcc4cb4b124a80b10"
    (refused,) = quarantined(first)
    assert (refused["key"], refused["reason"]) == (("empty.png", "EMPTY") if is_first else ("small.png", "TOO_SMALL"))
    assert refused["thumbnail"] == (None if is_first else sample_row(0)["image"]["bytes"])


@each_sample
def test_the_patch_of_the_sample_is_read(sample):
    second = open_dataset(str(sample))
    assert second.version == 2
    assert second.table("train", ["label"]).column(0).to_pylist() == ["café", "tea", "tea"]
    assert second.table("test", ["image_id"]).column(0).to_pylist() == [f"{3:032x}"]
    assert second.catalog["rows"] == 4
    assert second.fingerprint == "3457913d7a6a60594aa6c1fa4e1cacd540d766260fac230c349afafa6974c78d"


@each_sample
def test_the_sample_is_whole(sample):
    for version in (1, 2):
        assert list(verify(open_dataset(f"{sample}@v{version}"))) == []


@each_sample
def test_the_receipt_of_the_sample_is_read(sample):
    receipts = read_receipts(Storage.open(sample), RUN)
    report = UnitReport.from_json(receipts[0])
    assert report.attempt == "a0"
    reason = "EMPTY" if sample == SAMPLES[0] else "TOO_SMALL"
    assert report.counts == {"written": 5, "quarantined": 1, f"quarantined.{reason}": 1}
    assert sum(file.rows for file in report.files) == 5


@each_sample
def test_work_goes_on_from_the_sample(sample, tmp_path):
    """Compacting and collecting write on top of a copy of it."""
    storage = Storage.open(tmp_path)
    for name, path in relative_files(sample).items():
        storage.put(name, path.read_bytes())
    assert published_version(storage, RUN) == 1
    assert compact(storage.uri) == 3
    gc(storage, dead_after_s=-1)
    assert list_versions(storage) == [1, 2, 3]
    dataset = open_dataset(storage.uri)
    assert dataset.fingerprint == open_dataset(str(sample)).fingerprint
    assert list(verify(dataset)) == []


def shape(value: object) -> object:
    """Return the keys and types of a JSON value."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def test_what_is_written_today_has_the_shape_of_the_sample(made):
    old, new = relative_files(SAMPLE), relative_files(made)
    assert [name for name in new if name.endswith(".json")] == [name for name in old if name.endswith(".json")]
    for name in old:
        if name.endswith(".json"):
            assert shape(json.loads(new[name].read_text())) == shape(json.loads(old[name].read_text())), name
    parts = [[name for name in files if "/part-" in name] for files in (old, new)]
    assert parts[0] == parts[1]
    for kind in ("/part-", "/_shards-", "patches/", "quarantine/"):
        schemas = [
            [pq.read_schema(path) for name, path in files.items() if kind in f"/{name}" or name.startswith(kind)]
            for files in (old, new)
        ]
        assert schemas[0], kind
        for before, after in zip(*schemas, strict=True):
            assert after.equals(before, check_metadata=True), kind


def test_the_same_rows_still_have_the_same_fingerprints(made):
    for version in (1, 2):
        assert open_dataset(f"{made}@v{version}").fingerprint == open_dataset(f"{SAMPLE}@v{version}").fingerprint
