"""Archives inside archives and among loose images: read one level deep, each member once, with every limit."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset import inspect
from pipelines.dataset.reader import open_dataset
from pipelines.errors import InputError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from pipelines.sources import nested
from pipelines.sources.base import Source, Unit, image_id
from pipelines.sources.resolve import open_source
from tests import factories

IMAGES = [factories.make_png(seed, 12, 12) for seed in range(12)]
INNER = factories.make_zip([("cat/1.png", IMAGES[1]), ("dog/2.png", IMAGES[2])])
TAR = factories.make_tar([("3.png", IMAGES[3]), ("4.png", IMAGES[4])])


def members(source: Source) -> dict[str, Any]:
    travelled = pickle.loads(pickle.dumps(source))
    units = [Unit.from_text(unit.to_text()) for unit in source.units()]
    read = [member for unit in units for member in travelled.open(unit)]
    assert len(read) == len(source.listing().entries) == sum(len(unit.entries) for unit in units)
    assert len({member.image_id for member in read}) == len(read)
    assert {member.image_id for member in read} == {entry.image_id for entry in source.listing().entries}
    return {f"{member.key}{'#' * member.occurrence}": member for member in read}


def as_folder(path: Path, files: list[tuple[str, bytes]]) -> Path:
    for name, data in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_file(pack: Callable[[list[tuple[str, bytes]]], bytes]) -> Callable[[Path, list[tuple[str, bytes]]], Path]:
    def write(path: Path, files: list[tuple[str, bytes]]) -> Path:
        path.write_bytes(pack(files))
        return path

    return write


OUTER: dict[str, Callable[[Path, list[tuple[str, bytes]]], Path]] = {
    "folder": as_folder,
    "zip": as_file(factories.make_zip),
    "deflated zip": as_file(lambda files: factories.make_zip(files, zipfile.ZIP_DEFLATED)),
    "tar": as_file(factories.make_tar),
    "tar.gz": as_file(lambda files: gzip.compress(factories.make_tar(files))),
}


@pytest.mark.parametrize("kind", OUTER)
def test_archives_inside_are_opened(tmp_path: Path, kind: str) -> None:
    files = [("loose/0.png", IMAGES[0]), ("a/in.zip", INNER), ("a/birds.tar.gz", gzip.compress(TAR))]
    source = open_source(str(OUTER[kind](tmp_path / "set", files)))
    found = members(source)
    assert {key: (member.label, member.data, member.reason) for key, member in found.items()} == {
        "loose/0.png": ("loose", IMAGES[0], None),
        "a/in.zip!/cat/1.png": ("cat", IMAGES[1], None),
        "a/in.zip!/dog/2.png": ("dog", IMAGES[2], None),
        "a/birds.tar.gz!/3.png": ("birds", IMAGES[3], None),
        "a/birds.tar.gz!/4.png": ("birds", IMAGES[4], None),
    }
    assert found["a/in.zip!/cat/1.png"].image_id == image_id("set", b"a/in.zip!/cat/1.png", 0)
    assert len(set(source.tokens())) == 5


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_lies_deeper_or_is_no_archive_is_refused(tmp_path: Path, kind: str) -> None:
    deep = factories.make_zip([("x/5.png", IMAGES[5]), ("deeper.zip", INNER)])
    files = [
        ("0.png", IMAGES[0]),
        ("deep.zip", deep),
        ("none.zip", b"PK is all it is"),
        ("notes.txt.gz", gzip.compress(b"notes")),
        ("other.7z", b"7z\xbc\xaf\x27\x1c"),
        ("empty.tar", factories.make_tar([])),
        ("zero.zip", b""),
        ("overlap.zip", factories.overlapping_zip(10)),
    ]
    source = open_source(str(OUTER[kind](tmp_path / "set", files)))
    assert {key: member.reason for key, member in members(source).items()} == {
        "0.png": None,
        "deep.zip!/x/5.png": None,
        "deep.zip!/deeper.zip": "NESTED",
        **dict.fromkeys(
            ["none.zip", "notes.txt.gz", "other.7z", "empty.tar", "zero.zip", "overlap.zip"], "NESTED"
        ),
    }  # fmt: skip
    messages = {entry.key: entry.message for entry in source.listing().entries}
    assert "has overlapping members (OVERLAP)" in messages["overlap.zip"]
    assert "is empty (0 bytes)" in messages["zero.zip"]


def test_an_archive_that_holds_itself_ends(tmp_path: Path) -> None:
    inner = factories.make_tar([("in.tar", factories.make_tar([("in.tar", TAR)]))])
    (tmp_path / "set.tar").write_bytes(factories.make_tar([("in.tar", inner), ("0.png", IMAGES[0])]))
    found = members(open_source(str(tmp_path / "set.tar")))
    assert {key: member.reason for key, member in found.items()} == {"0.png": None, "in.tar!/in.tar": "NESTED"}


def test_a_damaged_archive_inside_is_a_fault_and_bad_members_are_named(tmp_path: Path) -> None:
    broken = bytearray(INNER)
    broken[60] ^= 0xFF
    files = [("0.png", IMAGES[0]), ("cut.tar", TAR[:1700]), ("crc.zip", bytes(broken))]
    (tmp_path / "set.zip").write_bytes(factories.make_zip(files))
    source = open_source(str(tmp_path / "set.zip"))
    assert {key: member.reason for key, member in members(source).items()} == {
        "0.png": None,
        "cut.tar!/3.png": None,
        "cut.tar!/4.png": "ARCHIVE_TRUNCATED",
        "crc.zip!/cat/1.png": "CRC",
        "crc.zip!/dog/2.png": None,
    }
    assert [fault.partition(":")[0] for fault in source.listing().faults] == ["cut.tar"]


def test_two_archives_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(factories.make_tar([("a.zip", INNER), ("a.zip", INNER)]))
    found = members(open_source(str(tmp_path / "set.tar")))
    assert sorted(found) == [
        "a.zip!/cat/1.png", "a.zip!/cat/1.png#", "a.zip!/dog/2.png", "a.zip!/dog/2.png#",
    ]  # fmt: skip


def test_a_name_that_is_not_utf8_around_and_inside(tmp_path: Path) -> None:
    inner = factories.make_zip([("a/1.png", IMAGES[1])]).replace(b"a/1.png", b"a/\x81.png")
    folder = as_folder(tmp_path / "set", [("0.png", IMAGES[0])])
    with open(bytes(folder) + b"/\xff.zip", "wb") as file:
        file.write(inner)
    found = members(open_source(str(folder)))
    assert {key: member.data for key, member in found.items()} == {
        "0.png": IMAGES[0],
        "\\xff.zip!/a/ü.png": IMAGES[1],
    }


def test_units_are_small_and_some_entries_make_units_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "MAX_UNIT_ROWS", 3)
    files = [(f"{n}.zip", factories.make_zip([(f"c/{i}.png", IMAGES[i]) for i in range(4)])) for n in range(3)]
    (tmp_path / "set.zip").write_bytes(factories.make_zip([*files, ("0.png", IMAGES[0])]))
    source = open_source(str(tmp_path / "set.zip"))
    assert len(members(source)) == 13
    assert max(len(unit.entries) for unit in source.units()) <= 3
    some = source.listing().entries[2:9]
    read = [member.key for unit in source.units_of(some) for member in source.open(unit)]
    assert sorted(read) == sorted(entry.key for entry in some)


def test_nested_archives_become_a_dataset(tmp_path: Path) -> None:
    files = [(f"{split}-{n}.tar", factories.make_tar([(f"k{n}/{i}.png", IMAGES[i + 4 * n]) for i in range(4)]))
             for n, split in enumerate(("train", "val", "test"))]  # fmt: skip
    (tmp_path / "set.zip").write_bytes(factories.make_zip(files))
    config = IngestConfig(source=str(tmp_path / "set.zip"), out=str(tmp_path / "out"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(tmp_path / "out"))
    assert list(inspect.verify(dataset)) == []
    assert {split: dataset.num_rows(split) for split in dataset.splits} == {"test": 4, "train": 4, "val": 4}
    assert dataset.catalog["split"]["by"] == "given"


@pytest.mark.parametrize("around", ["alone", "folder of archives", "among images"])
def test_names_stay_out_of_what_is_logged_where_they_must(tmp_path: Path, around: str) -> None:
    secret = "Jane Doe"
    files = {
        "overlap": factories.overlapping_zip(3).replace(b"k.jpg", b"Jane!"),
        "cut": factories.make_tar([(f"{secret}/1.png", factories.make_png(1, 8, 8))] * 2)[:1_560],
    }
    for name, data in files.items():
        source = as_folder(tmp_path / name, [(f"{secret}.{'zip' if name == 'overlap' else 'tar'}", data)])
        if around == "among images":
            (source / "1.png").write_bytes(factories.make_png(2, 8, 8))
        path = next(source.glob(f"{secret}.*")) if around == "alone" else source
        for tells_keys in (True, False):
            opened = open_source(str(path))
            opened.tells_keys = tells_keys
            said = ""
            try:
                said = "\n".join(opened.listing().faults)
            except InputError as error:
                said = error.what.replace(f"{secret}.zip", "")  # where to look; only the source's own address is left
            if name == "overlap" and around != "among images":
                assert "(OVERLAP)" in said
                assert ("Jane!" in said) == tells_keys
            elif name == "cut":
                assert said
                assert (secret in said) == (tells_keys and around != "alone")
