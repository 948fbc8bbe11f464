"""What listings know of members' content, and units of some of a source's entries."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources.base import Source
from pipelines.sources.labelled import LabelledSource, read_labels
from pipelines.sources.resolve import open_source
from tests import factories

FILES = [(f"{'ab'[n % 2]}/{n}.png", factories.make_png(n, 12, 12)) for n in range(12)]


def as_folder(path: Path, files: list[tuple[str, bytes]]) -> Path:
    for name, data in files:
        target = path / name
        if not target.exists() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return path


def as_zip(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path = path.with_suffix(".zip")
    path.write_bytes(factories.make_zip(files))
    return path


def as_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path = path.with_suffix(".tar")
    path.write_bytes(factories.make_tar(files))
    return path


def as_archives(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.mkdir(exist_ok=True)
    for name, part in (("one.zip", files[:6]), ("two.tar", files[6:])):
        data = factories.make_zip(part) if name.endswith("zip") else factories.make_tar(part)
        if not (path / name).exists() or (path / name).read_bytes() != data:
            (path / name).write_bytes(data)
    return path


MAKERS: dict[str, Callable[[Path, list[tuple[str, bytes]]], Path]] = {
    "folder": as_folder,
    "zip": as_zip,
    "tar": as_tar,
    "archives": as_archives,
}


def tokens(path: Path) -> dict[str, str]:
    source = open_source(str(path))
    return {entry.key: token for entry, token in zip(source.listing().entries, source.tokens(), strict=True)}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_changed_member_has_another_token(kind: str, tmp_path: Path) -> None:
    path = MAKERS[kind](tmp_path / "set", FILES)
    before = tokens(path)
    assert tokens(path) == before
    changed = [(name, factories.make_png(99, 12, 12) if n == 3 else data) for n, (name, data) in enumerate(FILES)]
    path = MAKERS[kind](tmp_path / "set", changed)
    if kind == "tar":
        os.utime(path, (1, 1))  # all that is known of a tar's members is when it was written
    after = tokens(path)
    assert before.keys() == after.keys()
    differ = {key for key in before if before[key] != after[key]}
    key = next(key for key in before if key.endswith(FILES[3][0]))
    assert key in differ
    if kind != "tar":
        assert differ == {key}


@pytest.mark.parametrize("kind", MAKERS)
def test_units_of_some_entries_yield_just_those(kind: str, tmp_path: Path) -> None:
    source = open_source(str(MAKERS[kind](tmp_path / "set", FILES)))
    check_part(source)


def check_part(source: Source) -> None:
    part = source.listing().entries[1::3]
    units = source.units_of(part)
    assert [unit.index for unit in units] == list(range(len(units)))
    members = [member for unit in units for member in source.open(unit)]
    assert sorted(member.image_id for member in members) == sorted(entry.image_id for entry in part)
    contents = {name: data for name, data in FILES}
    for member in members:
        assert member.data == contents[member.key.rpartition("!/")[2]]
    assert {member.image_id: member.label for member in members} == {entry.image_id: entry.label for entry in part}


def test_what_a_table_says_is_part_of_the_token(tmp_path: Path) -> None:
    folder = as_folder(tmp_path / "set", FILES)

    def labelled(text: str) -> LabelledSource:
        (tmp_path / "labels.csv").write_text(text)
        return LabelledSource(open_source(str(folder)), read_labels(str(tmp_path / "labels.csv")))

    lines = [f"{name},x,{n}" for n, (name, _) in enumerate(FILES)]
    source = labelled("\n".join(["key,label,site", *lines]))
    check_part(source)
    before = source.tokens()
    lines[0] = lines[0].replace(",x,", ",y,")
    lines[1] = lines[1].replace(",1", ",9")
    after = labelled("\n".join(["key,label,site", *lines])).tokens()
    assert [one != two for one, two in zip(before, after, strict=True)].count(True) == 2


def test_a_folder_of_parquet_is_told_apart_by_files(tmp_path: Path) -> None:
    def write(name: str, start: int) -> None:
        images = [factories.make_png(start + n, 12, 12) for n in range(3)]
        pq.write_table(pa.table({"image": images, "label": ["a"] * 3}), tmp_path / "set" / name)

    (tmp_path / "set").mkdir()
    write("one.parquet", 0)
    before = tokens(tmp_path / "set")
    write("two.parquet", 3)
    after = tokens(tmp_path / "set")
    assert len(after) == 6
    assert before.items() <= after.items()
    source = open_source(str(tmp_path / "set"))
    new = [entry for entry in source.listing().entries if entry.key not in before]
    assert [[entry.key for entry in unit.entries] for unit in source.units_of(new)] == [[entry.key for entry in new]]


def timed_tar(path: Path, files: list[tuple[str, bytes, float]], kind: int) -> Path:
    with tarfile.open(path, "w", format=kind) as target:
        for name, data, time in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), time
            target.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_a_tars_times_tell_its_members_apart(kind: int, tmp_path: Path) -> None:
    files = [(name, data, 1_000.25 + n) for n, (name, data) in enumerate(FILES)]
    before = tokens(timed_tar(tmp_path / "x.tar", files, kind))
    longer = [("a/first.png", files[0][1], 5.0), *files]
    longer[4] = (longer[4][0], longer[4][1], 7_000.0)
    after = tokens(timed_tar(tmp_path / "x.tar", longer, kind))
    assert {key for key in before if after[key] != before[key]} == {longer[4][0]}
    # times that are all one were set by whoever packed it: the whole archive is the state
    packed = [(name, data, 99.0) for name, data, _ in files]
    first = tokens(timed_tar(tmp_path / "y.tar", packed, kind))
    os.utime(tmp_path / "y.tar", (1, 1))
    assert not set(first.values()) & set(tokens(tmp_path / "y.tar").values())


def test_a_tars_time_that_many_members_share_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    files = [(f"a/{n}.bmp", b"%04d" % n, 2_000.0 if n == 0 else 1_000.0) for n in range(20)]
    before = tokens(timed_tar(path, files, tarfile.GNU_FORMAT))
    files[3] = ("a/3.bmp", b"9999", 1_000.0)  # as large, and packed with the same time
    timed_tar(path, files, tarfile.GNU_FORMAT)
    os.utime(path, (1, 1))
    after = tokens(path)
    assert after["a/3.bmp"] != before["a/3.bmp"]
    assert after["a/0.bmp"] == before["a/0.bmp"]
