"""What catalogs say of their content, and the rules of appending another source."""

from __future__ import annotations

import pytest

from pipelines.dataset.content import EXAMPLES_KEPT, append_catalog, make_classes
from pipelines.dataset.reader import open_dataset
from pipelines.errors import InputError
from pipelines.storage import Storage
from tests.unit.dataset.rows import ingest


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.open(tmp_path)


def test_a_first_catalog_counts_what_was_written(storage):
    ingest(storage, {0: range(30), 1: range(30, 50)})
    catalog = open_dataset(storage.uri).catalog
    assert catalog["rows"] == 50
    assert catalog["counts"] == {"members": 52, "written": 50, "quarantined": 2}
    train = catalog["splits"]["train"]
    assert train["rows"] == 40
    assert sum(train["labels"].values()) == 40
    assert train["unlabelled"] == 0
    assert train["bytes"] == sum(file.bytes for file in open_dataset(storage.uri).shards("train"))


def test_class_numbers_never_change():
    splits = {"train": {"labels": {"ant": 1, "cat": 2}}, "test": {"labels": {"bee": 1}}}
    assert make_classes([], splits) == ["ant", "bee", "cat"]
    assert make_classes(["dog", "cat"], splits) == ["dog", "cat", "ant", "bee"]


def test_appending_adds_up_and_equals_one_ingest_of_both(storage, tmp_path):
    ingest(storage, {0: range(20)}, key="a" * 32, source="one")
    ingest(storage, {0: range(20, 50)}, key="b" * 32, source="two", base=1)
    both = open_dataset(storage.uri).catalog
    assert both["sources"] == {"one": "a" * 32, "two": "b" * 32}
    assert both["locations"] == {"one": "/photos/one", "two": "/photos/two"}
    assert both["counts"] == {"members": 52, "written": 50, "quarantined": 2}
    assert both["rows"] == sum(part["rows"] for part in both["splits"].values()) == 50
    assert len(both["shard_lists"]) == 2

    other = Storage.open(tmp_path / "other order")
    ingest(other, {0: range(20, 50)}, key="b" * 32, source="two")
    ingest(other, {0: range(20)}, key="a" * 32, source="one", base=1)
    assert open_dataset(other.uri).fingerprint == both["fingerprint"]


def test_two_appends_at_once_are_joined(storage):
    """Both were made from version 1; the second finds version 2 standing and rebases."""
    ingest(storage, {0: range(10)}, key="a" * 32, source="one")
    assert ingest(storage, {0: range(10, 20)}, key="b" * 32, source="two", base=1) == 2
    assert ingest(storage, {0: range(20, 30)}, key="c" * 32, source="three", base=1) == 3
    assert set(open_dataset(storage.uri).catalog["sources"]) == {"one", "two", "three"}


def test_what_cannot_be_joined_is_refused(storage):
    ingest(storage, {0: range(10)}, key="a" * 32, source="one")
    with pytest.raises(InputError, match=r"source 'one' is already in the dataset \(read from /photos/one\)"):
        ingest(storage, {0: range(10, 20)}, key="b" * 32, source="one", base=0)
    standing = open_dataset(storage.uri).catalog
    addition = {**standing, "sources": {"two": "k"}, "task": "multi"}
    with pytest.raises(InputError, match="the dataset has task 'single' and this run 'multi'"):
        append_catalog(standing, addition)
    addition = {**standing, "sources": {"two": "k"}, "split": {"by": "hash", "seed": 1}}
    with pytest.raises(InputError, match=r"the dataset has split \{'by': 'hash', 'seed': 0\}"):
        append_catalog(standing, addition)


def test_of_rates_the_larger_one_is_kept(storage):
    ingest(storage, {0: range(20)}, key="a" * 32, source="one")
    one = open_dataset(storage.uri).catalog
    found = [
        {"label_conflicts": 2, "near": {"leaks": 3, "accidents": accidents, "examples": []}}
        for accidents in (0.06, 0.08, 0.01)
    ]
    catalog = {**one, "duplicates": found[0]}
    for number, duplicates in enumerate(found[1:]):
        addition = {**one, "sources": {f"other{number}": "b" * 32}, "duplicates": duplicates}
        catalog = append_catalog(catalog, addition)
    assert catalog["duplicates"] == {"label_conflicts": 6, "near": {"leaks": 9, "accidents": 0.08, "examples": []}}


def test_examples_of_both_are_kept_and_do_not_grow_without_end(storage):
    ingest(storage, {0: range(20)}, key="a" * 32, source="one")
    catalog = open_dataset(storage.uri).catalog
    catalog = {**catalog, "duplicates": {"near": {"leaks": 80, "examples": [f"one {n}" for n in range(80)]}}}
    for name in ("two", "three", "four"):
        found = {"near": {"leaks": 80, "examples": [f"{name} {n}" for n in range(80)]}}
        catalog = append_catalog(catalog, {**catalog, "sources": {name: "b" * 32}, "duplicates": found})
        examples = catalog["duplicates"]["near"]["examples"]
        assert len(examples) == 2 * EXAMPLES_KEPT
        assert {"one 0", f"{name} 0"} <= set(examples)
    assert catalog["duplicates"]["near"]["leaks"] == 320
