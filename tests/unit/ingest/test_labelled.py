"""Labels from a table: they reach the rows with their further columns; what has no row is refused with a reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.dataset import inspect
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import InputError
from pipelines.image.decode import decode_image
from pipelines.ingest import stage, unit
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.plan import plan
from pipelines.ingest.unit import ingest_unit
from pipelines.sources.labelled import LabelledSource, read_labels
from pipelines.sources.resolve import open_source
from pipelines.sources.units import MAX_UNIT_ROWS
from tests import factories


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.jpg").write_bytes(factories.make_jpeg(number, 32, 32))
    return folder


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def usual_rows() -> list[dict[str, str]]:
    return [
        {"filename": f"{n:02d}.jpg", "class": "ab"[n % 2], "camera": f"cam{n % 3}", "site": "" if n == 4 else "north"}
        for n in range(30)
    ]


def ingest(source: Path, out: Path, table: Path, **settings: Any) -> Dataset:
    config = IngestConfig(source=str(source), out=str(out), labels=str(table), **settings)
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(out))
    assert list(inspect.verify(dataset)) == []
    return dataset


def all_rows(dataset: Dataset, columns: list[str]) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for split in dataset.splits for row in dataset.table(split, ["key", *columns]).to_pylist()}


def test_labels_and_further_columns_reach_the_rows(flat: Path, tmp_path: Path) -> None:
    dataset = ingest(flat, tmp_path / "out", write_table(tmp_path / "labels.csv", usual_rows()))
    assert dataset.classes == ["a", "b"]
    assert dataset.catalog["carried"] == ["camera", "site"]
    rows = all_rows(dataset, ["label", "camera", "site"])
    assert rows["04.jpg"] == {"key": "04.jpg", "label": "a", "camera": "cam1", "site": None}
    assert rows["05.jpg"] == {"key": "05.jpg", "label": "b", "camera": "cam2", "site": "north"}
    plain = pq.read_table(dataset.files("train")[0])  # other tools see them too
    assert plain.schema.field("camera").type == "string"


def test_a_split_column_is_the_split(flat: Path, tmp_path: Path) -> None:
    rows = [{**row, "split": "valid" if n < 5 else "test" if n < 10 else "train"} for n, row in enumerate(usual_rows())]
    dataset = ingest(flat, tmp_path / "out", write_table(tmp_path / "labels.csv", rows))
    assert dataset.catalog["split"]["by"] == "given"
    assert {split: dataset.num_rows(split) for split in dataset.splits} == {"test": 5, "train": 20, "val": 5}


def test_an_image_without_a_row_is_refused_with_a_reason(flat: Path, tmp_path: Path) -> None:
    dataset = ingest(flat, tmp_path / "out", write_table(tmp_path / "labels.csv", usual_rows()[:28]))
    refused = inspect.quarantined(dataset)
    assert [(row["key"], row["reason"]) for row in refused] == [("28.jpg", "UNLABELLED"), ("29.jpg", "UNLABELLED")]
    assert refused[0]["message"] == "the table of labels has no row for this image"
    assert refused[0]["bytes_sha256"] == hashlib.sha256((flat / "28.jpg").read_bytes()).hexdigest()
    assert decode_image(refused[0]["thumbnail"]).pixels.shape == (32, 32, 3), "whoever labels it can see it"
    assert dataset.catalog["rows"] == 28


def test_a_table_that_names_little_fills_no_disk_with_pictures(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit, "MAX_THUMBNAILS", 1)
    refused = inspect.quarantined(
        ingest(flat, tmp_path / "out", write_table(tmp_path / "labels.csv", usual_rows()[:28]))
    )
    assert [row["thumbnail"] is not None for row in refused] == [True, False]
    assert all(row["bytes_sha256"] for row in refused)


def test_an_empty_label_is_an_unlabelled_row(flat: Path, tmp_path: Path) -> None:
    rows = usual_rows()
    rows[3]["class"] = ""
    dataset = ingest(flat, tmp_path / "out", write_table(tmp_path / "labels.csv", rows))
    assert all_rows(dataset, ["label"])["03.jpg"]["label"] is None


def test_the_key_follows_the_tables_content_not_its_place(flat: Path, tmp_path: Path) -> None:
    def key(table: Path) -> str:
        return plan(IngestConfig(source=str(flat), labels=str(table))).key

    first = write_table(tmp_path / "a.csv", usual_rows())
    assert key(first) == key(write_table(tmp_path / "b.csv", usual_rows()))
    other = usual_rows()
    other[0]["class"] = "b"
    assert key(first) != key(write_table(tmp_path / "c.csv", other))


def test_a_table_labels_an_archive_too(tmp_path: Path) -> None:
    files = [(f"{n}.png", factories.make_png(n, 16, 16)) for n in range(20)]
    (tmp_path / "flat.zip").write_bytes(factories.make_zip(files))
    (tmp_path / "labels.jsonl").write_text(
        "\n".join(json.dumps({"key": f"{n}.png", "label": f"c{n % 2}"}) for n in range(20))
    )
    dataset = ingest(tmp_path / "flat.zip", tmp_path / "out", tmp_path / "labels.jsonl")
    assert all_rows(dataset, ["label"])["7.png"]["label"] == "c1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,label\nelsewhere/00.jpg,a\n", "names none of the 30 images"),
        ("key,label,label\n00.jpg,a,b\n", "has two columns 'label'"),
        ("key,label\n,a\n", "row 1 names no image"),
        ("name,label\n00.jpg,a\n", "has the columns name, label, and none of key, file"),
        ("key,kind\n00.jpg,a\n", "and none of label, class"),
        ("key,label,split\n00.jpg,a,holdout\n", "row 1 has split 'holdout'"),
        ("key,label,split\n00.jpg,a,train\n01.jpg,a,\n", "gives some images a split and not that of row 2"),
        ("key,label,width\n00.jpg,a,3\n", "has a column 'width', which is the name of a dataset column"),
        ("key,label\n", "has no rows: it labels nothing"),
    ],
)
def test_tables_that_cannot_be_meant(flat: Path, tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        ingest(flat, tmp_path / "out", table)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="does not exist"):
        ingest(flat, tmp_path / "out", tmp_path / "none.csv")


def test_rows_of_the_table_that_are_refused_make_units_as_large_as_any(flat: Path, tmp_path: Path) -> None:
    text = "".join(f"../{number}.jpg,a\n" for number in range(MAX_UNIT_ROWS + 8))
    (tmp_path / "t.csv").write_text(f"key,label\n00.jpg,a\n{text}")
    source = LabelledSource(open_source(str(flat)), read_labels(str(tmp_path / "t.csv")))
    sizes = [len(unit.entries) for unit in source.units() if unit.entries[0].reason == "UNSAFE_PATH"]
    assert sizes == [MAX_UNIT_ROWS, 8]
