"""Shards: what is written is what is read, in small checked row groups, the same bytes for the same rows."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset import writer as writer_module
from pipelines.dataset.fingerprint import add, to_hex
from pipelines.dataset.receipt import UnitReport
from pipelines.dataset.schema import LABEL_TYPES, OUR_COLUMNS, SHARD_SCHEMA, make_shard_schema
from pipelines.dataset.tables import decode_table, open_parquet
from pipelines.dataset.writer import ShardWriter, row_fingerprint
from pipelines.errors import DataError, InputError, NotFound
from pipelines.storage import Storage
from tests.unit.dataset.rows import image_page_end, label_of, make_png, make_row, split_of


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.open(tmp_path)


def write(storage: Storage, numbers, attempt: str = "a0") -> UnitReport:
    writer = ShardWriter(storage, "run-0", 3, attempt)
    for number in numbers:
        writer.append(split_of(number), make_row(number, label_of(number)))
    return writer.close()


def test_rows_come_back_as_they_were_written(storage):
    report = write(storage, range(20))
    assert [(file.path, file.rows) for file in report.files] == [
        ("data/run-0/test/part-000003-a0.parquet", 4),
        ("data/run-0/train/part-000003-a0.parquet", 16),
    ]
    for file in report.files:
        data = storage.read(file.path)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        table = decode_table(data, file.path)
        assert table.schema.equals(SHARD_SCHEMA)
        numbers = [number for number in range(20) if split_of(number) == file.split]
        expected = [make_row(number, label_of(number)) for number in numbers]
        for row in expected:
            row["stored_sha256"] = hashlib.sha256(row["image"]["bytes"]).hexdigest()
        assert table.to_pylist() == expected
        assert file.fingerprint == to_hex(add(row_fingerprint(row, file.split, []) for row in expected))
        assert sum(file.labels.values()) == file.rows
        assert file.unlabelled == 0


def test_the_report_counts_rows_refused_members_and_reasons(storage):
    writer = ShardWriter(storage, "run-0", 7, "a0")
    writer.append("train", make_row(1))
    for reason in ("EMPTY", "TRUNCATED", "EMPTY"):
        writer.quarantine({"source": "photos", "key": "k", "reason": reason, "message": "m"})
    report = writer.close()
    assert report.counts == {"written": 1, "quarantined": 3, "quarantined.EMPTY": 2, "quarantined.TRUNCATED": 1}
    (file,) = report.quarantine
    assert file.path == "quarantine/run-0-000007-a0.parquet"
    rows = open_parquet(storage, file.path).read().to_pylist()
    assert [row["reason"] for row in rows] == ["EMPTY", "TRUNCATED", "EMPTY"]
    assert rows[0]["bytes_sha256"] is None
    assert UnitReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_unit_without_members_writes_nothing(storage):
    report = ShardWriter(storage, "run-0", 0, "a0").close()
    assert (report.files, report.quarantine) == ([], [])
    assert storage.list() == []


def test_row_groups_end_at_512_rows_or_2_megabytes(storage, monkeypatch):
    assert (writer_module.MAX_GROUP_ROWS, writer_module.MAX_GROUP_BYTES) == (512, 2 << 20)
    writer = ShardWriter(storage, "run-0", 0, "rows")
    for _ in range(1100):
        writer.append("train", make_row(1))
    assert writer.close().files[0].row_groups == (512, 512, 76)

    one = len(make_png(1))
    monkeypatch.setattr(writer_module, "MAX_GROUP_BYTES", 3 * one)
    writer = ShardWriter(storage, "run-0", 0, "bytes")
    for _ in range(7):
        writer.append("train", make_row(1))
    (file,) = writer.close().files
    assert file.row_groups == (3, 3, 1)
    metadata = open_parquet(storage, file.path).metadata
    assert [metadata.row_group(index).num_rows for index in range(3)] == [3, 3, 1]

    monkeypatch.setattr(writer_module, "MAX_GROUP_BYTES", one - 1)  # an image larger than a group gets its own
    writer = ShardWriter(storage, "run-0", 0, "large")
    for _ in range(2):
        writer.append("train", make_row(1))
    assert writer.close().files[0].row_groups == (1, 1)


def test_a_shard_of_many_bytes_ends_and_the_next_part_begins_at_once(storage, monkeypatch):
    assert writer_module.MAX_SHARD_BYTES == 64 << 20
    monkeypatch.setattr(writer_module, "MAX_GROUP_ROWS", 4)
    (whole,) = write(storage, [0] * 40, "whole").files  # one split
    monkeypatch.setattr(writer_module, "MAX_SHARD_BYTES", whole.bytes // 3)
    writer = ShardWriter(storage, "run-0", 3, "a0")
    for _ in range(40):
        writer.append(whole.split, make_row(0))
    there = len(storage.list("data")) - 1
    files = writer.close().files
    assert there == len(files) - 1 > 0  # all but the last were put before the end: they are not held
    folder = f"data/run-0/{whole.split}/part-000003-a0"
    assert [file.path for file in files] == [
        f"{folder}{f'-{part}' if part else ''}.parquet" for part in range(len(files))
    ]
    assert tuple(rows for file in files for rows in file.row_groups) == whole.row_groups
    for file in files:
        assert hashlib.sha256(storage.read(file.path)).hexdigest() == file.sha256
    one = ShardWriter(storage, "run-0", 3, "b0", only_part=2)
    for _ in range(40):
        one.append(whole.split, make_row(0))
    (file,) = one.close().files
    assert (file.path, file.rows) == (f"data/run-0/{whole.split}/part-000003-b0-2.parquet", 40)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12))
def test_equal_rows_give_equal_bytes_whatever_the_attempt(numbers):
    storage = Storage.open("memory://deterministic-writer")
    one, other = write(storage, numbers, "a0"), write(storage, numbers, "b1")
    assert [file.sha256 for file in one.files] == [file.sha256 for file in other.files]
    assert [file.path for file in one.files] != [file.path for file in other.files] or not numbers


def test_every_column_is_compressed_and_what_repeats_shrinks(storage):
    writer = ShardWriter(storage, "run-0", 0, "a0")
    for _ in range(200):
        writer.append("train", make_row(0))
    (file,) = writer.close().files
    group = open_parquet(storage, file.path).metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    assert columns[0].total_compressed_size * 20 < columns[0].total_uncompressed_size
    assert not columns[0].is_stats_set  # a "smallest picture" means nothing and would sit in the footer


def test_a_flipped_bit_is_found_by_the_checksum_of_its_page(storage):
    (file,) = write(storage, [0]).files
    data = bytearray(storage.read(file.path))
    data[image_page_end(storage, file.path, 0)] ^= 1
    storage.put(file.path, bytes(data))
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        open_parquet(storage, file.path).read()
    with pytest.raises(DataError, match="is damaged"):
        decode_table(bytes(data), file.path)


def test_hugging_face_metadata_names_the_image_column():
    metadata = json.loads(SHARD_SCHEMA.metadata[b"huggingface"])
    assert metadata == {"info": {"features": {"image": {"_type": "Image"}}}}


@pytest.mark.parametrize(
    ("task", "labels", "counts"),
    [
        ("multi", [["cat", "dog"], [], None, ["cat"]], {"cat": 2, "dog": 1}),
        ("regression", [1.5, None, 2.0, 1.5], {}),
        ("single", ["cat", None, "dog", "cat"], {"cat": 2, "dog": 1}),
    ],
)
def test_every_task_has_its_label_type_and_null_is_unlabelled(storage, task, labels, counts):
    writer = ShardWriter(storage, "run-0", 0, task, schema=make_shard_schema(task))
    for number, label in enumerate(labels):
        writer.append("train", make_row(number, label))
    (file,) = writer.close().files
    assert (file.labels, file.unlabelled) == (counts, 1)
    table = open_parquet(storage, file.path).read(columns=["label"])
    assert table.column("label").to_pylist() == labels
    assert table.schema.field("label").type.equals(LABEL_TYPES[task])


def test_carried_columns_are_kept_and_enter_the_fingerprint(storage):
    schema = make_shard_schema(carried=[pa.field("age", pa.int64())])
    prints = []
    for age in (1, 2):
        writer = ShardWriter(storage, "run-0", 0, f"age{age}", schema=schema)
        writer.append("train", {**make_row(0), "age": age})
        (file,) = writer.close().files
        assert open_parquet(storage, file.path).read(columns=["age"]).column("age").to_pylist() == [age]
        prints.append(file.fingerprint)
    assert prints[0] != prints[1]
    with pytest.raises(InputError, match="the source's column 'key' has the name of a dataset column"):
        make_shard_schema(carried=[pa.field("key", pa.string())])
    assert set(SHARD_SCHEMA.names) == OUR_COLUMNS


def test_rows_that_do_not_fit_the_schema_are_our_bug(storage):
    writer = ShardWriter(storage, "run-0", 0, "a0")
    row = make_row(0)
    del row["phash"]
    with pytest.raises(KeyError, match=r"differ in \['phash'\]"):
        writer.append("train", row)
    with pytest.raises(KeyError, match=r"differ in \['colour'\]"):
        writer.append("train", {**make_row(0), "colour": "red"})
    with pytest.raises(KeyError, match="a quarantine row needs a reason"):
        writer.quarantine({"key": "k"})
    with pytest.raises(KeyError, match="no other columns than ours"):
        writer.quarantine({"reason": "EMPTY", "colour": "red"})


def test_files_that_are_no_parquet_are_named(storage):
    storage.put("data/x.parquet", b"not parquet at all")
    with pytest.raises(DataError, match=r"data/x.parquet cannot be read as Parquet"):
        open_parquet(storage, "data/x.parquet")
    with pytest.raises(NotFound, match=r"y\.parquet does not exist"):
        open_parquet(storage, "data/y.parquet")
