"""The five verbs behave alike on a local folder and on an object store."""

from __future__ import annotations

import os
import pickle
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import obstore
import pytest

from pipelines import local_folders
from pipelines.errors import AlreadyExists, InputError, NotFound, StorageError
from pipelines.storage import TEMPORARY, Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "root" if request.param == "local" else f"memory://{uuid.uuid4().hex}/root")


def test_put_read_list_delete(storage: Storage) -> None:
    storage.put("a/x.bin", b"hello")
    storage.put("a/x.bin", b"hello world")
    storage.put("ab/y.bin", b"")
    assert storage.read("a/x.bin") == b"hello world"
    assert storage.read("a/x.bin", 6, 3) == b"wor"
    assert storage.read("a/x.bin", 6) == b"world"
    assert [(file.path, file.size) for file in storage.list()] == [("a/x.bin", 11), ("ab/y.bin", 0)]
    assert [file.path for file in storage.list("a")] == ["a/x.bin"]
    assert storage.child("a").read("x.bin") == b"hello world"
    assert storage.size("a/x.bin") == 11
    storage.delete("a/x.bin")
    storage.delete("a/x.bin")
    assert not storage.exists("a/x.bin")
    assert storage.list("nothing") == []


def test_several_are_deleted_where_some_are_missing(storage: Storage) -> None:
    for name in ("a", "b/c", "b/d", "e"):
        storage.put(name, b"1")
    storage.delete("a", "none", "b/c", "none/either", "e")
    assert [file.path for file in storage.list()] == ["b/d"]
    storage.delete()


def test_an_object_store_deletes_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, asked, real, refuses = (
        Storage.open(f"memory://{uuid.uuid4().hex}/root"),
        list[object](),
        obstore.delete,
        False,
    )

    def delete(store: Any, paths: str | list[str]) -> None:
        asked.append(paths)
        if refuses and isinstance(paths, list):
            raise FileNotFoundError("b")  # as Azure and Google do for one that is missing
        real(store, paths)

    monkeypatch.setattr(obstore, "delete", delete)
    for refuses in (False, True):
        asked.clear()
        storage.put("a", b"1")
        storage.put("c", b"1")
        storage.delete("a", "b", "c")
        assert asked == [["root/a", "root/b", "root/c"], *(["root/a", "root/b", "root/c"] if refuses else [])]
        assert storage.list() == []


def test_the_file_that_cannot_be_deleted_is_named(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.put("a", b"1")
    (tmp_path / "b").mkdir()
    with pytest.raises(StorageError, match=f"cannot delete {tmp_path}/b: "):
        storage.delete("a", "b")
    assert not storage.exists("a")


def test_objects_put_at_once_fail_one_by_one(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    real, together = type(storage).put, threading.Barrier(3, timeout=30)

    def put(self: Storage, path: str, data: Any, **options: Any) -> None:
        together.wait()  # broken where they do not run at the same time
        if path == "b":
            raise StorageError("cannot write b")
        real(self, path, data, **options)

    monkeypatch.setattr(type(storage), "put", put)
    with pytest.raises(StorageError, match="cannot write b"):
        storage.put_all({"a": b"1", "b": b"2", "c": b"33"})
    assert {file.path: storage.read(file.path) for file in storage.list()} == {"a": b"1", "c": b"33"}


def test_missing_object_is_not_found(storage: Storage) -> None:
    with pytest.raises(NotFound, match=r"none\.bin does not exist"):
        storage.read("none.bin")


def test_create_is_refused_the_second_time(storage: Storage) -> None:
    storage.create("c.json", b"1")
    with pytest.raises(AlreadyExists, match=r"c\.json already exists"):
        storage.create("c.json", b"2")
    assert storage.read("c.json") == b"1"


def test_one_of_many_creators_wins(storage: Storage) -> None:
    won: list[int] = []

    def attempt(number: int) -> None:
        try:
            storage.create("race", str(number).encode())
            won.append(number)
        except AlreadyExists:
            pass

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in won] == [storage.read("race")]


def test_open_file_seeks(storage: Storage) -> None:
    storage.put("f", bytes(range(100)))
    with storage.open_file("f") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == bytes(range(90, 100))
        file.seek(5)
        assert file.read(2) == b"\x05\x06"


def test_travels_by_address(storage: Storage) -> None:
    storage.put("f", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("f") == b"1"


def test_local_leaves_no_temporary_files(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.put("a", b"1")
    storage.create("b", b"1")
    with pytest.raises(AlreadyExists):
        storage.create("b", b"2")
    assert list((tmp_path / TEMPORARY).iterdir()) == []
    assert [file.path for file in storage.list()] == ["a", "b"]


def test_what_a_killed_put_left_is_swept_by_age(storage: Storage) -> None:
    assert storage.sweep_temporary(0) == ([], [])
    storage.put("a", b"1")
    if not storage.is_local:
        return
    folder = Path(storage.uri, TEMPORARY)
    for name, age in (("1-old", 700), ("2-young", 500)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    swept, left = storage.sweep_temporary(600)
    assert [(file.path, file.size) for file in swept] == [(f"{TEMPORARY}/1-old", 4)]
    assert [file.path for file in left] == [f"{TEMPORARY}/2-young"]
    assert [path.name for path in folder.iterdir()] == ["2-young"]
    assert storage.read("a") == b"1"


def test_local_syncs_the_file_before_its_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_fsync, real_link, real_replace = os.fsync, os.link, Path.replace

    def fsync(descriptor: int) -> None:
        events.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append("name")
        return real_replace(self, target)

    def link(source: Path, target: Path) -> None:
        events.append("name")
        real_link(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(Path, "replace", replace)
    storage = Storage.open(tmp_path)
    storage.put("p/a", b"1")
    assert events[-3:] == ["sync file", "name", "sync folder"]
    storage.create("p/b", b"1")
    assert events[-3:] == ["sync file", "name", "sync folder"]


def test_every_new_folder_is_synced_into_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = Storage.open(tmp_path / "root")
    storage.put("_work/run-0/attempts/unit-000000-1234", b"", lasts=False)
    storage.create("_work/run-0/unit-000000.json", b"{}")  # needs the folders that the note made
    storage.put("data/run-0/train/part", b"1")
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(folders) == 8
    assert {str(folder.parent) for folder in folders} <= set(synced)


def test_a_folder_that_another_made_meanwhile_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real_mkdir = Path.mkdir

    def mkdir(self: Path) -> None:
        real_mkdir(self)  # the other
        real_mkdir(self)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(local_folders, "sync_folder", synced.append)
    local_folders.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_unwritable_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*file/a"):
        Storage.open(tmp_path / "file").put("a", b"1")


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError) as raised:
        Storage.open("ftp://host/x")
    assert "unknown scheme 'ftp'" in str(raised.value)
    assert "give a local path" in raised.value.mend


@pytest.mark.parametrize("mark", ["#", "?", "%20"])
def test_marks_that_urls_give_a_meaning_stay_part_of_the_path(mark: str) -> None:
    place = f"memory://{uuid.uuid4().hex}"
    Storage.open(f"{place}/run{mark}1").put("a", b"1")
    Storage.open(f"{place}/run{mark}2").child("b").put("a", b"2")
    assert [file.path for file in Storage.open(place).list()] == [f"run{mark}1/a", f"run{mark}2/b/a"]


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"1")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert [file.path for file in Storage.open(tmp_path).list()] == ["a/x.jpg"]


def test_stat_says_size_and_time(storage: Storage) -> None:
    storage.put("a", b"123")
    found = storage.stat("a")
    assert found is not None
    assert (found.path, found.size) == ("a", 3)
    assert found.modified > 1e9
    assert storage.stat("b") is None
