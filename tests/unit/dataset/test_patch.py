"""Patches: rows change without being rewritten, and every figure is what a fresh dataset of those rows would say."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset import writer
from pipelines.dataset.catalog import list_versions, next_run_id, publish_version
from pipelines.dataset.collect import compact
from pipelines.dataset.content import make_catalog
from pipelines.dataset.inspect import verify
from pipelines.dataset.patch import Change, publish_patch, resolve_changes
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.rewrite import drop_rows, rewrite_touched
from pipelines.dataset.tables import open_parquet
from pipelines.dataset.writer import ShardWriter
from pipelines.errors import DataError, InputError
from pipelines.storage import Storage
from tests.unit.dataset.rows import (
    image_id,
    ingest,
    label_of,
    make_row,
    make_test_catalog,
    split_of,
    write_unit,
)


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.open(tmp_path / "patched")


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(writer, "MAX_GROUP_ROWS", 4)


def fresh(storage: Storage, rows: list[tuple[int, str | None]]) -> Dataset:
    """Ingest rows with given labels into an empty place."""
    run_id = next_run_id(storage, "f" * 32)
    shards = ShardWriter(storage, run_id, 0, "a0")
    for number, label in rows:
        shards.append(split_of(number), make_row(number, label))
    report = shards.close()
    publish_version(storage, run_id, make_test_catalog(storage, run_id, report.files, [], "photos"))
    return open_dataset(storage.uri)


def figures(dataset: Dataset) -> dict:
    names = ("rows", "fingerprint", "labels", "unlabelled")
    return {split: {name: part[name] for name in names} for split, part in dataset.catalog["splits"].items()}


def test_a_patched_dataset_is_what_a_fresh_one_of_its_rows_would_be(storage, tmp_path):
    ingest(storage, {0: range(20), 1: range(20, 40)})
    changes = [
        Change(image_id(3), "label", "yak", "seen by Ada", old=label_of(3)),
        Change(image_id(4), "label", None, "unclear"),
        Change(image_id(25), "live", False, "leak"),
        Change(image_id(26), "live", False, "leak"),
        Change(image_id(27), "flags", ["blurred"], "seen by Ada"),
    ]
    assert publish_patch(storage.uri, changes) == 2
    dataset = open_dataset(storage.uri)
    labels = {3: "yak", 4: None}
    expected = fresh(
        Storage.open(tmp_path / "fresh"), [(n, labels.get(n, label_of(n))) for n in range(40) if n not in (25, 26)]
    )
    assert figures(dataset) == figures(expected)
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.mean_std() == expected.mean_std()
    assert dataset.classes == ["cat", "dog", "eel", "yak"]
    assert dataset.catalog["rows"] == 38
    for split in dataset.splits:
        table = dataset.table(split, ["image_id", "label", "flags"])
        other = expected.table(split, ["image_id", "label"])
        assert table.select(["image_id", "label"]).to_pylist() == other.to_pylist()
        pieces = [
            dataset.read_group(split, index, table.column_names) for index in range(len(dataset.row_groups(split)))
        ]
        assert [row for piece in pieces for row in piece.to_pylist()] == table.to_pylist()
        assert [piece.num_rows for piece in pieces] == [group.num_rows for group in dataset.row_groups(split)]
    row = dataset.table("train").to_pylist()
    assert [r["flags"] for r in row if r["image_id"] == image_id(27)] == [["blurred"]]
    assert list(verify(dataset)) == []


CHANGES = st.lists(
    st.tuples(st.integers(0, 11), st.one_of(st.booleans(), st.sampled_from(["cat", "dog", "yak", None]))), max_size=8
)


@given(CHANGES)
@settings(max_examples=25, deadline=None)
def test_any_history_of_patches_ends_where_a_fresh_dataset_of_the_same_rows_begins(changes):
    """Rows are taken out, brought back and relabelled one patch after the other."""
    places = itertools.count()
    patched, other = (Storage.open(f"memory://patches-{id(changes)}-{next(places)}") for _ in range(2))
    for storage in (patched, other):
        for file in storage.list():
            storage.delete(file.path)
    ingest(patched, {0: range(12)})
    live = dict.fromkeys(range(12), True)
    labels = {number: label_of(number) for number in range(12)}
    for number, value in changes:
        if isinstance(value, bool):
            publish_patch(patched.uri, [Change(image_id(number), "live", value, "x", old=live[number])])
            live[number] = value
        elif live[number]:
            publish_patch(patched.uri, [Change(image_id(number), "label", value, "x", old=labels[number])])
            labels[number] = value
    expected = fresh(other, [(number, labels[number]) for number in range(12) if live[number]])
    last = open_dataset(patched.uri)
    assert last.catalog["rows"] == sum(live.values())
    for split, part in figures(last).items():
        assert part == figures(expected).get(split, {"rows": 0, "fingerprint": "0" * 64, "labels": {}, "unlabelled": 0})
    assert list(verify(last)) == []


def test_the_version_before_a_patch_stays_as_it_was(storage):
    ingest(storage, {0: range(20)})
    before = open_dataset(f"{storage.uri}@v1").table("train").to_pylist()
    publish_patch(storage.uri, [Change(image_id(0), "live", False, "retracted")])
    assert open_dataset(f"{storage.uri}@v1").table("train").to_pylist() == before


def test_a_row_group_without_live_rows_is_no_row_group(storage):
    ingest(storage, {0: range(20)})
    first = [number for number in range(20) if split_of(number) == "train"][:4]
    publish_patch(storage.uri, [Change(image_id(number), "live", False, "retracted") for number in first])
    dataset = open_dataset(storage.uri)
    assert [(group.index, group.num_rows) for group in dataset.row_groups("train")] == [(1, 4), (2, 4), (3, 4)]
    assert dataset.read_group("train", 0, ["image_id"]).num_rows == 4


def test_a_patch_writes_its_own_rows_only(storage):
    ingest(storage, {0: range(40)})
    publish_patch(storage.uri, [Change(image_id(3), "label", "yak", "seen by Ada")])
    (entry,) = open_dataset(storage.uri).catalog["patches"]
    (row,) = open_parquet(storage, entry["path"]).read().to_pylist()
    assert row == {
        "image_id": image_id(3),
        "shard": f"data/{'a' * 32}-0/train/part-000000-a0.parquet",
        "row": 3,
        "field": "label",
        "old": json.dumps(label_of(3)),
        "new": '"yak"',
        "reason": "seen by Ada",
    }
    assert entry["rows"] == 1


def test_rows_that_already_hold_the_value_are_dropped_and_an_empty_patch_publishes_nothing(storage):
    ingest(storage, {0: range(20)})
    same = Change(image_id(3), "label", label_of(3), "again", old="anything")
    assert publish_patch(storage.uri, [same]) is None
    assert list_versions(storage) == [1]
    assert publish_patch(storage.uri, [same, Change(image_id(4), "label", "yak", "new")]) == 2
    assert open_dataset(storage.uri).catalog["patches"][0]["rows"] == 1


def test_going_back_and_forth_publishes_each_time(storage):
    ingest(storage, {0: range(20)})
    for version, label in enumerate(["yak", label_of(3), "yak"], start=2):
        assert publish_patch(storage.uri, [Change(image_id(3), "label", label, "again")]) == version
    publish_patch(storage.uri, [Change(image_id(3), "live", False, "retracted")])
    publish_patch(storage.uri, [Change(image_id(3), "live", True, "restored")])
    last = open_dataset(storage.uri)
    assert figures(last) == figures(open_dataset(f"{storage.uri}@v4"))
    assert last.fingerprint == open_dataset(f"{storage.uri}@v2").fingerprint


def test_another_old_value_is_refused_when_publishing(storage):
    ingest(storage, {0: range(20)})
    with pytest.raises(
        DataError, match=f"image {image_id(3)} has label '{label_of(3)}' in .*; the patch expects 'owl'"
    ):
        publish_patch(storage.uri, [Change(image_id(3), "label", "yak", "seen", old="owl")])
    assert list_versions(storage) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change("0" * 32, "label", "cat", "x"), f"image {'0' * 32} is not a live row of"),
        (Change(image_id(1), "width", 3, "x"), "field 'width' cannot be patched"),
        (Change(image_id(1), "label", 3, "x"), "label cannot be 3 in a single-label dataset"),
        (Change(image_id(1), "live", "no", "x"), "live cannot be 'no'"),
        (Change(image_id(1), "label", "cat", ""), "a change needs a reason"),
    ],
)
def test_changes_that_make_no_sense_are_refused(storage, change, message):
    ingest(storage, {0: range(20)})
    with pytest.raises(InputError, match=message):
        publish_patch(storage.uri, [change])


def test_a_dead_row_is_not_found(storage):
    ingest(storage, {0: range(20)})
    publish_patch(storage.uri, [Change(image_id(3), "live", False, "retracted")])
    with pytest.raises(InputError, match="is not a live row"):
        publish_patch(storage.uri, [Change(image_id(3), "label", "yak", "x")])


def test_taking_out_what_is_out_and_bringing_back_what_is_in_changes_nothing(storage):
    ingest(storage, {0: range(20)})
    out = Change(image_id(3), "live", False, "retracted")
    assert publish_patch(storage.uri, [out]) == 2
    assert publish_patch(storage.uri, [out, Change(image_id(4), "live", True, "restored")]) is None
    assert list_versions(storage) == [1, 2]


def test_an_old_version_cannot_be_patched(storage):
    ingest(storage, {0: range(20)})
    publish_patch(storage.uri, [Change(image_id(3), "live", False, "retracted")])
    with pytest.raises(InputError, match="@v1 is not the newest version; a patch changes the newest"):
        publish_patch(f"{storage.uri}@v1", [Change(image_id(4), "live", False, "x")])


def test_a_patch_that_meets_another_version_is_looked_up_again(storage, monkeypatch):
    """An append lands between opening and publishing."""
    ingest(storage, {0: range(20)})
    from pipelines.dataset import patch

    def interrupted(store, key):
        if list_versions(store) == [1]:
            ingest(store, {0: range(20, 30)}, key="b" * 32, source="more", base=1)
        return next_run_id(store, key)

    monkeypatch.setattr(patch, "next_run_id", interrupted)
    assert publish_patch(storage.uri, [Change(image_id(3), "label", "yak", "x", old=label_of(3))]) == 3
    dataset = open_dataset(storage.uri)
    assert set(dataset.catalog["sources"]) == {"photos", "more"}
    assert dataset.catalog["rows"] == 30
    assert dataset.catalog["splits"]["train"]["labels"]["yak"] == 1
    assert list(verify(dataset)) == []


def test_files_are_refused_while_a_patch_stands_on_them(storage):
    ingest(storage, {0: range(20)})
    assert len(open_dataset(storage.uri).files("train")) == 1
    publish_patch(storage.uri, [Change(image_id(3), "label", "yak", "x")])
    dataset = open_dataset(storage.uri)
    with pytest.raises(InputError, match=r"1 of 1 shards of split 'train' in .*@v2 are patched") as error:
        dataset.files("train")
    assert f"resnet data compact {storage.uri}" in error.value.mend
    assert "resnet data export" in error.value.mend
    assert len(dataset.files("test")) == 1  # no patch stands there


def test_compacting_keeps_rows_order_and_fingerprints(storage):
    ingest(storage, {0: range(20), 1: range(20, 40)}, key="a" * 32)
    ingest(storage, {0: range(40, 50)}, key="b" * 32, source="more", base=1)
    assert compact(storage.uri) is None  # no patch stands
    publish_patch(storage.uri, [Change(image_id(23), "label", "yak", "x"), Change(image_id(21), "live", False, "x")])
    before = open_dataset(storage.uri)
    assert compact(storage.uri) == 4
    after = open_dataset(storage.uri)
    assert after.catalog["patches"] == []
    assert figures(after) == figures(before)
    assert after.fingerprint == before.fingerprint
    for split in before.splits:
        assert after.table(split).to_pylist() == before.table(split).to_pylist()
    assert [file.path for file in after.shards("test")] == [file.path for file in before.shards("test")]
    assert len(after.files("train")) == 3
    assert after.catalog["sources"] == before.catalog["sources"]
    assert list(verify(after)) == []


def test_a_first_ingest_drops_leaks_by_writing_the_touched_shard_anew(storage):
    run_id = next_run_id(storage, "a" * 32)
    reports = [write_unit(storage, run_id, unit, range(unit * 20, unit * 20 + 20)) for unit in (0, 1)]
    files = [file for report in reports for file in report.files]
    leak = next(file for file in files if file.split == "test" and file.unit == 1)
    kept = rewrite_touched(storage, run_id, files, "leaks", drop_rows([(leak.path, 1)]))
    assert [file.rows for file in kept] == [file.rows - (file is leak) for file in files]
    assert [file.path for one, file in zip(files, kept, strict=True) if one is not leak] == [
        file.path for file in files if file is not leak
    ]
    quarantine = [file for report in reports for file in report.quarantine]
    publish_version(storage, run_id, make_test_catalog(storage, run_id, kept, quarantine, "photos"))
    dataset = open_dataset(storage.uri)
    assert dataset.num_rows("test") == 7
    assert dataset.files("test")
    assert list(verify(dataset)) == []
    all_dropped = rewrite_touched(
        storage, run_id, [leak], "none", drop_rows([(leak.path, row) for row in range(leak.rows)])
    )
    assert all_dropped == []


def test_an_unpublished_dataset_can_carry_a_patch(storage):
    """What a first ingest does when the touched shards are too large to be written anew."""
    from pipelines.dataset.patch import add_patch

    run_id = next_run_id(storage, "a" * 32)
    report = write_unit(storage, run_id, 0, range(20))
    catalog = make_test_catalog(storage, run_id, report.files, report.quarantine, "photos")
    draft = Dataset(storage.uri, 0, catalog)
    rows = resolve_changes(draft, [Change(image_id(4), "live", False, "LEAK")])
    publish_version(storage, run_id, add_patch(draft, run_id, rows))
    dataset = open_dataset(storage.uri)
    assert (dataset.version, dataset.num_rows("test")) == (1, 3)
    assert list(verify(dataset)) == []


def test_catalogs_of_no_rows_can_be_made():
    catalog = make_catalog(
        stage="ingest",
        key="k",
        run_id="k-0",
        files=[],
        shard_list={},
        sources={},
        locations={},
        task="single",
        preprocess={},
        split={},
        counts={},
        config={},
        classes=["b", "a"],
    )
    assert (catalog["rows"], catalog["classes"], catalog["fingerprint"]) == (0, ["a", "b"], "0" * 64)
