"""Deleting: only what no catalog names, only of runs that are dead or published, and only after saying so."""

from __future__ import annotations

import pytest

from pipelines.dataset.catalog import list_versions, next_run_id, publish_version, read_version
from pipelines.dataset.collect import clean_run, compact, gc, named_files, owner_of, purge
from pipelines.dataset.content import append_catalog
from pipelines.dataset.inspect import history, verify
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.reader import open_dataset
from pipelines.errors import InputError, StorageError
from pipelines.storage import Storage
from tests.unit.dataset.rows import image_id, ingest, make_test_catalog, write_unit

LIVE, KILLED = "a" * 32, "b" * 32


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.open(tmp_path)


def paths(storage: Storage) -> set[str]:
    return {file.path for file in storage.list() if owner_of(file.path)}


def test_owners_of_files():
    run_id = f"{LIVE}-0"
    assert owner_of(f"data/{run_id}/train/part-000000-a.parquet") == run_id
    assert owner_of(f"data/{run_id}/_shards-ab.parquet") == run_id
    assert owner_of(f"patches/{run_id}-ab.parquet") == run_id
    assert owner_of(f"quarantine/{run_id}-000000-a.parquet") == run_id
    assert owner_of(f"_work/{run_id}/unit-000000.json") == run_id
    for path in ("_versions/v000001.json", "sheet/index.html", "notes.txt", "data/mine.parquet"):
        assert owner_of(path) == ""


def test_gc_declares_old_runs_dead_first_and_then_deletes_them(storage):
    ingest(storage, {0: range(10)}, key=LIVE)
    write_unit(storage, f"{KILLED}-0", 0, range(10))
    storage.put("notes.txt", b"of the user")
    litter = {path for path in paths(storage) if KILLED in path}
    receipts = {f"_work/{LIVE}-0/unit-000000.json"}
    done = gc(storage, dead_after_s=-1)
    assert (done.version, done.dead) == (2, [f"{KILLED}-0"])
    assert set(done.deleted) == litter | receipts
    assert done.freed_bytes > 0
    dataset = open_dataset(storage.uri)
    assert paths(storage) == named_files(storage, dataset.catalog)
    assert (dataset.version, dataset.catalog["rows"], dataset.catalog["dead"]) == (2, 10, [f"{KILLED}-0"])
    assert list(verify(dataset)) == []
    assert storage.read("notes.txt") == b"of the user"
    again = gc(storage, dead_after_s=-1)
    assert (again.version, again.dead, again.deleted, again.freed_bytes) == (None, [], [], 0)


def test_gc_leaves_young_runs_alone(storage):
    ingest(storage, {0: range(10)}, key=LIVE)
    write_unit(storage, f"{KILLED}-0", 0, range(10))
    done = gc(storage)
    assert (done.version, done.dead) == (None, [])
    assert any(KILLED in path for path in paths(storage))


def test_a_run_that_finds_itself_dead_refuses_and_its_rerun_takes_the_next_generation(storage):
    ingest(storage, {0: range(10)}, key=LIVE)
    run_id = next_run_id(storage, KILLED)
    report = write_unit(storage, run_id, 0, range(10, 20), source="more")
    own = make_test_catalog(storage, run_id, report.files, [], "more")
    catalog = append_catalog(read_version(storage), own)
    gc(storage, dead_after_s=-1)
    with pytest.raises(StorageError, match="was declared dead by gc"):
        publish_version(storage, run_id, catalog, base=1, rebase=lambda _standing, _version: catalog)
    assert next_run_id(storage, KILLED) == f"{KILLED}-1"
    assert ingest(storage, {0: range(10, 20)}, key=KILLED, source="more", base=2) == 3
    assert list(verify(open_dataset(storage.uri))) == []


def test_gc_meets_a_run_that_publishes_meanwhile(storage, monkeypatch):
    ingest(storage, {0: range(10)}, key=LIVE)
    write_unit(storage, f"{KILLED}-0", 0, range(10, 20), source="more")
    from pipelines.dataset import collect

    def interrupted(store, key):
        ingest(store, {0: range(10, 20)}, key=KILLED, source="more", base=1)
        return next_run_id(store, key)

    monkeypatch.setattr(collect, "next_run_id", interrupted)
    done = gc(storage, dead_after_s=-1)
    assert (done.version, done.dead) == (None, [])
    assert open_dataset(storage.uri).catalog["rows"] == 20
    assert list(verify(open_dataset(storage.uri))) == []


def test_gc_of_an_unpublished_place_is_refused(storage):
    write_unit(storage, f"{KILLED}-0", 0, range(10))
    with pytest.raises(InputError, match="no dataset version is published"):
        gc(storage, dead_after_s=-1)


def test_a_run_cleans_up_its_own_folder_once_it_is_published(storage):
    run_id = f"{LIVE}-0"
    write_unit(storage, run_id, 0, range(10), attempt="a0")
    write_unit(storage, run_id, 0, range(10), attempt="lost")
    ingest(storage, {0: range(5)}, key="c" * 32, source="other")
    with pytest.raises(InputError, match="nothing of it is deleted"):
        clean_run(storage, run_id)
    ingest(storage, {0: range(10)}, key=LIVE, base=1)
    deleted = clean_run(storage, run_id)
    assert all(run_id in path for path in deleted)
    assert any("lost" in path for path in deleted)
    assert list(verify(open_dataset(storage.uri))) == []
    assert {path for path in paths(storage) if run_id in path} == {
        path for path in named_files(storage, read_version(storage)) if run_id in path
    }


def test_purging_deletes_what_only_that_version_named(storage):
    ingest(storage, {0: range(10), 1: range(10, 20)}, key=LIVE)
    publish_patch(storage.uri, [Change(image_id(3), "live", False, "retracted")])
    assert compact(storage.uri) == 3
    with pytest.raises(InputError, match="@v3 is the newest version and cannot be purged"):
        purge(storage, 3)
    with pytest.raises(InputError, match="has no version v9"):
        purge(storage, 9)
    old_shard = open_dataset(f"{storage.uri}@v1").shards("train")[0].path
    assert old_shard not in purge(storage, 1)  # version 2 still reads it
    assert old_shard in purge(storage, 2)
    assert not storage.exists(old_shard)
    with pytest.raises(InputError, match="@v1 was purged"):
        open_dataset(f"{storage.uri}@v1")
    newest = open_dataset(storage.uri)
    assert list(verify(newest)) == []
    assert newest.catalog["rows"] == 19
    assert paths(storage) == named_files(storage, newest.catalog)
    assert list_versions(storage) == [1, 2, 3]
    assert ["note" in line for line in history(storage)] == [True, True, False]
    assert purge(storage, 1) == []  # again is fine
