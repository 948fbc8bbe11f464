"""`verify` names exactly what is damaged; `show` says what is there."""

from __future__ import annotations

import json

import pytest

from pipelines.dataset import writer
from pipelines.dataset.catalog import version_path
from pipelines.dataset.inspect import Problem, files, quarantined, show, verify
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.reader import open_dataset
from pipelines.dataset.tables import open_parquet
from pipelines.storage import Storage
from tests.unit.dataset.rows import image_id, image_page_end, ingest


@pytest.fixture
def storage(tmp_path, monkeypatch) -> Storage:
    monkeypatch.setattr(writer, "MAX_GROUP_ROWS", 7)
    storage = Storage.open(tmp_path)
    ingest(storage, {0: range(30), 1: range(30, 50)})
    return storage


def flip(storage: Storage, path: str, offset: int) -> None:
    data = bytearray(storage.read(path))
    data[offset] ^= 1
    storage.put(path, bytes(data))


def damage(storage: Storage) -> list[Problem]:
    return list(verify(open_dataset(storage.uri)))


def test_a_whole_dataset_has_no_problems(storage):
    publish_patch(storage.uri, [Change(image_id(3), "label", "yak", "x")])
    assert damage(storage) == []
    assert open_dataset(storage.uri).verify() == []


def test_a_flipped_bit_in_an_image_names_file_row_group_and_rows(storage):
    shard = open_dataset(storage.uri).shards("train")[0]
    flip(storage, shard.path, image_page_end(storage, shard.path, 1))
    (problem,) = damage(storage)
    assert (problem.path, problem.row_group, problem.rows) == (shard.path, 1, (7, 13))
    assert str(problem).startswith(f"{shard.path}, row group 1 (rows 7 to 13): a page is damaged: ")


def test_a_flipped_bit_is_found_wherever_it_is(storage):
    """Every column's pages, the footer, and the bytes between."""
    shard = open_dataset(storage.uri).shards("test")[0]
    whole = storage.read(shard.path)
    metadata = open_parquet(storage, shard.path).metadata
    group = metadata.row_group(0)
    for index in range(group.num_columns):
        column = group.column(index)
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        flip(storage, shard.path, start + column.total_compressed_size - 1)
        (problem,) = damage(storage)
        assert (problem.path, problem.row_group) == (shard.path, 0), column.path_in_schema
        storage.put(shard.path, whole)
    for offset in range(0, len(whole), len(whole) // 50):
        flip(storage, shard.path, offset)
        problems = damage(storage)
        assert problems, offset
        assert {problem.path for problem in problems} == {shard.path}
        storage.put(shard.path, whole)
    assert damage(storage) == []


def test_a_cut_a_missing_and_a_swapped_file_are_told_apart(storage):
    dataset = open_dataset(storage.uri)
    first, second = dataset.shards("train")
    whole = storage.read(first.path)
    storage.put(first.path, whole[:-20])
    (problem,) = damage(storage)
    assert problem.row_group is None
    assert f"the file has {len(whole) - 20} bytes; {len(whole)} were written; its footer cannot be read" in str(problem)
    storage.delete(first.path)
    assert [str(problem) for problem in damage(storage)] == [f"{first.path}: the file is missing"]
    storage.put(first.path, storage.read(second.path))
    assert all(problem.path == first.path for problem in damage(storage))
    assert damage(storage)
    storage.put(first.path, whole)
    assert damage(storage) == []


def test_damage_outside_shards_is_found(storage):
    publish_patch(storage.uri, [Change(image_id(3), "label", "yak", "x")])
    dataset = open_dataset(storage.uri)
    others = [entry["path"] for entry in [*dataset.catalog["shard_lists"], *dataset.catalog["patches"]]]
    others += [file.path for file in dataset.quarantine_files()]
    assert len(others) == 4
    for path in others:
        whole = storage.read(path)
        flip(storage, path, len(whole) // 2)
        assert [(problem.path, problem.message) for problem in damage(storage)][:1] == [
            (path, "the bytes are not those that were written: SHA-256 differs")
        ]
        storage.put(path, whole)


def test_a_catalog_that_does_not_fit_its_rows_is_found(storage):
    catalog = json.loads(storage.read(version_path(1)))
    catalog["splits"]["train"]["fingerprint"] = "0" * 64
    storage.put(version_path(1), json.dumps(catalog).encode())
    (problem,) = damage(storage)
    assert problem.path == version_path(1)
    assert "the 40 live rows of split 'train' have fingerprint" in problem.message


def test_an_image_with_two_live_rows_is_found(storage):
    catalog = json.loads(storage.read(version_path(1)))
    catalog["shard_lists"] *= 2
    storage.put(version_path(1), json.dumps(catalog).encode())
    messages = [problem.message for problem in damage(storage)]
    assert f"image {image_id(3)} has 2 live rows" in messages
    assert sum(message.endswith("has 2 live rows") for message in messages) == 50


def test_show_says_what_a_version_holds(storage):
    publish_patch(storage.uri, [Change(image_id(3), "label", "yak", "x"), Change(image_id(5), "live", False, "x")])
    seen = show(storage.uri, samples=3)
    json.dumps(seen)  # plain data
    assert (seen["version"], seen["versions"], seen["rows"], seen["patches"]) == (2, [1, 2], 49, 2)
    assert seen["splits"]["train"]["labels"] == {"cat": 13, "dog": 13, "eel": 12, "yak": 1}
    assert seen["splits"]["train"]["shards"] == 2
    assert len(seen["splits"]["test"]["samples"]) == 3
    assert len(seen["mean"]) == len(seen["std"]) == 3
    assert [line["stage"] for line in seen["history"]] == ["ingest", "patch"]
    assert seen["counts"]["quarantined"] == 2
    first = show(f"{storage.uri}@v1")
    assert (first["rows"], first["patches"]) == (50, 0)


def test_quarantined_members_and_files_are_listed(storage):
    dataset = open_dataset(storage.uri)
    assert [(row["key"], row["reason"]) for row in quarantined(dataset)] == [
        ("bad-0.png", "EMPTY"),
        ("bad-1.png", "EMPTY"),
    ]
    assert files(storage.uri, "test") == [f"{storage.uri}/{file.path}" for file in dataset.shards("test")]
