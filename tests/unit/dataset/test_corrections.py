"""What people wish after looking at the images: tables and lists become versions; what they name must be there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.catalog import list_versions
from pipelines.dataset.collect import compact, purge
from pipelines.dataset.compare import difference, label_shift, versions_with
from pipelines.dataset.corrections import exclusions, read_relabels
from pipelines.dataset.inspect import verify
from pipelines.dataset.patch import publish_patch
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import DataError, InputError
from pipelines.storage import Storage
from tests.unit.dataset.rows import image_id, ingest, label_of, make_png


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    storage = Storage.open(tmp_path / "set")
    ingest(storage, {0: range(8), 1: range(8, 16)})
    return open_dataset(storage.uri)


def labels(dataset: Dataset) -> dict[str, str | None]:
    rows = [row for split in dataset.splits for row in dataset.table(split, ["key", "label"]).to_pylist()]
    return {row["key"]: row["label"] for row in rows}


def table(folder: Path, suffix: str) -> str:
    """Write the same three corrections in each format; the second row's image has the label already."""
    rows = [
        {"key": "3.png", "label": "owl", "reason": "beak"},
        {"key": "4.png", "label": label_of(4), "reason": ""},
        {"key": "5.png", "label": "", "reason": ""},
    ]
    path = folder / f"corrections{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        mark = "\t" if suffix == ".tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as spreadsheets write it
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_relabels(dataset: Dataset, tmp_path: Path, suffix: str) -> None:
    changes = read_relabels(dataset, table(tmp_path, suffix))
    assert [change.reason for change in changes] == ["beak"] + [f"relabelled by corrections{suffix}"] * 2
    assert publish_patch(dataset.uri, changes) == 2
    now = open_dataset(dataset.uri)
    assert labels(now) == {**labels(dataset), "3.png": "owl", "5.png": None}
    assert now.classes[-1] == "owl"  # numbers of standing classes stay
    found = difference(dataset.ref, now.ref)
    assert found.counts() == {"added": 0, "removed": 0, "relabelled": 2, "changed": 0}
    assert label_shift(found) == [("cat", "owl", 1), ("eel", "None", 1)]
    assert publish_patch(dataset.uri, read_relabels(now, table(tmp_path, suffix))) is None  # again: nothing to do


def test_an_old_label_that_does_not_stand_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(f"image_id,old_label,label\n{image_id(3)},dog,owl\n")
    with pytest.raises(DataError, match="dog"):
        publish_patch(dataset.uri, read_relabels(dataset, str(path)))
    assert list_versions(dataset.storage) == [1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "key,label\nnone.png,cat\n", "'none.png' is no image of"),
        ("a.csv", "name,label\n1.png,cat\n", "has the columns name, label; a relabelling needs label and image_id or"),
        ("a.csv", "key,class\n1.png,cat\n", "has the columns key, class"),
        ("a.csv", "", "has no rows: nothing would be relabelled"),
        ("a.csv", "key,label\n1.png,cat,dog\n", "line 2 has another number of fields than its header"),
        ("a.csv", 'key,label\n"1.png,cat\n', "cannot be read as a .csv table"),
        ("a.jsonl", '{"key": "1.png"', "cannot be read as a .jsonl table"),
        ("a.parquet", "PAR1", "cannot be read as a .parquet table"),
        ("a.xlsx", "PK", "is no table"),
    ],
)
def test_tables_that_are_none(dataset: Dataset, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_relabels(dataset, str(tmp_path / name))


def test_a_key_that_two_sources_have_needs_its_source(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "set")
    ingest(storage, {0: range(4)})
    ingest(storage, {0: range(4)}, key="b" * 32, source="more", base=1)
    dataset = open_dataset(storage.uri)
    path = tmp_path / "c.csv"
    path.write_text("key,label\n1.png,owl\n")
    with pytest.raises(InputError, match=r"1\.png names 2 images"):
        read_relabels(dataset, str(path))
    path.write_text("source,key,label\nmore,1.png,owl\n")
    (change,) = read_relabels(dataset, str(path))
    assert change.image_id == image_id(1, "more")


def test_excluded_images_leave_the_next_version_only(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text(f"image_id\n{image_id(2)}\n{image_id(1)}\n")
    changes = exclusions(dataset, ["1.png", image_id(9)], str(tmp_path / "out.csv"), "blurred")
    assert [change.image_id for change in changes] == [image_id(1), image_id(9), image_id(2)]  # each once
    assert publish_patch(dataset.uri, changes) == 2
    now = open_dataset(dataset.uri)
    assert set(labels(dataset)) - set(labels(now)) == {"1.png", "2.png", "9.png"}
    assert len(labels(open_dataset(f"{dataset.uri}@v1"))) == 16
    with pytest.raises(InputError, match="no image is named"):
        exclusions(dataset, [], "", "why")


def test_retracted_bytes_are_gone_after_compact_and_purge(dataset: Dataset) -> None:
    def holds(data: bytes) -> bool:
        return any(
            data in row["image"]["bytes"]
            for version in list_versions(dataset.storage)
            if not dataset.storage.exists(f"_versions/v{version:06d}.purged")
            for shard in open_dataset(f"{dataset.uri}@v{version}").shards()
            for row in open_dataset(f"{dataset.uri}@v{version}").written_rows(shard, ["image"]).to_pylist()
        )

    gone = [image_id(3), image_id(12)]
    assert publish_patch(dataset.uri, exclusions(dataset, gone, "", "consent withdrawn")) == 2
    assert versions_with(dataset.storage, gone) == {1: 2, 2: 2}  # a patch removes no bytes
    assert compact(dataset.uri) == 3
    assert versions_with(dataset.storage, gone) == {1: 2, 2: 2}
    assert holds(make_png(3))
    for version in (1, 2):
        purge(dataset.storage, version)
    assert versions_with(dataset.storage, gone) == {}
    assert not holds(make_png(3))
    assert holds(make_png(4))
    assert list(verify(open_dataset(dataset.uri))) == []


def test_a_difference_names_added_and_removed_images(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "set")
    ingest(storage, {0: range(4)})
    ingest(storage, {0: range(2)}, key="b" * 32, source="more", base=1)
    found = difference(f"{storage.uri}@v1", f"{storage.uri}@v2")
    assert found.counts() == {"added": 2, "removed": 0, "relabelled": 0, "changed": 0}
    assert {row["image_id"] for row in found.added} == {image_id(0, "more"), image_id(1, "more")}
    assert difference(f"{storage.uri}@v2", f"{storage.uri}@v1").counts()["removed"] == 2


def test_a_key_without_its_top_folder_is_met_with_the_whole_one(tmp_path: Path) -> None:
    from pipelines.ingest import stage
    from pipelines.ingest.config import IngestConfig
    from pipelines.ingest.unit import ingest_unit
    from tests import factories

    files = [(f"photos/cat/{n}.png", factories.make_png(n, 16, 16)) for n in range(6)]
    (tmp_path / "photos.zip").write_bytes(factories.make_zip(files))
    config = IngestConfig(source=str(tmp_path / "photos.zip"), out=str(tmp_path / "out"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    with pytest.raises(InputError, match=r"did you mean photos/cat/3\.png\?"):
        exclusions(open_dataset(str(tmp_path / "out")), ["cat/3.png"], "", "why")
