"""Folders, addresses that are no source, and the cutting of listings into units."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.sources.base import Entry, Found, make_listing
from pipelines.sources.resolve import open_source
from pipelines.sources.units import MAX_UNIT_ROWS, file_units, read_ranges, span_units, streamed_units
from pipelines.storage import Storage
from tests import factories


def test_folder(tmp_path: Path) -> None:
    factories.write_class_folder(tmp_path / "set", {"cat": 3, "007": 2})
    (tmp_path / "set" / "readme.txt").write_text("hello")
    source = open_source(f"{tmp_path}/set/")
    assert source.name == "set"
    read = [member for unit in source.units() for member in source.open(unit)]
    assert {member.key: member.label for member in read} == {
        "007/0000.jpg": "007",
        "007/0001.jpg": "007",
        "cat/0000.jpg": "cat",
        "cat/0001.jpg": "cat",
        "cat/0002.jpg": "cat",
    }
    assert all(member.data == (tmp_path / "set" / member.key).read_bytes() for member in read)
    assert source.listing().ignored == {".txt files": 1}


def test_folder_in_an_object_store(tmp_path: Path) -> None:
    storage = Storage.open(f"memory://{tmp_path.name}")
    storage.put("set/cat/1.jpg", factories.make_jpeg())
    source = open_source(f"memory://{tmp_path.name}/set")
    assert [(m.key, m.label) for unit in source.units() for m in source.open(unit)] == [("cat/1.jpg", "cat")]


def test_folder_digest_sees_every_change(tmp_path: Path) -> None:
    root = factories.write_class_folder(tmp_path / "set", {"cat": 2})
    first = open_source(str(root)).listing_digest()
    assert open_source(str(root)).listing_digest() == first
    os.utime(root / "cat" / "0000.jpg", (1, 1))
    second = open_source(str(root)).listing_digest()
    (root / "cat" / "0001.jpg").rename(root / "cat" / "0002.jpg")
    assert len({first, second, open_source(str(root)).listing_digest()}) == 3


def test_folder_that_changes_while_it_is_read(tmp_path: Path) -> None:
    root = factories.write_class_folder(tmp_path / "set", {"cat": 3})
    source = open_source(str(root))
    units = source.units()
    (root / "cat" / "0000.jpg").unlink()
    (root / "cat" / "0001.jpg").write_bytes(b"other")
    read = {member.key: member.reason for unit in units for member in source.open(unit)}
    assert read == {"cat/0000.jpg": "CHANGED", "cat/0001.jpg": "CHANGED", "cat/0002.jpg": None}


def test_pipes_and_links_to_nowhere_are_not_opened(tmp_path: Path) -> None:
    root = factories.write_class_folder(tmp_path / "set", {"cat": 2})
    os.mkfifo(root / "cat" / "pipe.jpg")  # opening it would wait for ever
    (root / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "cat" / "round").symlink_to(root)
    (root / "cat" / "null.jpg").symlink_to("/dev/zero")
    (root / "cat" / "self.jpg").symlink_to("self.jpg")
    (root / "cat" / "odd.jpg").symlink_to("0000.jpg/x")
    (root / "cat" / ".hidden").symlink_to(tmp_path / "nowhere")
    for address in (str(root), f"{root}/**", f"{root}/cat/*.jpg"):
        source = open_source(address)
        read = {member.key.rpartition("/")[2]: member.reason for unit in source.units() for member in source.open(unit)}
        assert read == {
            "0000.jpg": None,
            "0001.jpg": None,
            "gone.jpg": "LINK",
            "null.jpg": "SPECIAL",
            "odd.jpg": "LINK",
            "pipe.jpg": "SPECIAL",
            "self.jpg": "LINK",
        }
        assert len(source.tokens()) == 7
    before = source.listing_digest()
    (tmp_path / "nowhere.jpg").write_bytes(factories.make_jpeg(7))  # as `dvc pull` does
    source = open_source(str(root))
    read = {member.key: member.reason for unit in source.units() for member in source.open(unit)}
    assert read["cat/gone.jpg"] is None
    assert source.listing_digest() != before


def test_a_folder_of_links_to_nowhere_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "0.jpg").symlink_to("../.git/annex/objects/0")
    for address in (tmp_path / "set", tmp_path / "set" / "cat" / "*.jpg"):
        with pytest.raises(
            InputError, match=f"no images in {address}, but 1 of what is no file to read: links".replace("*", r"\*")
        ):
            open_source(str(address))
    assert "holds 1 of what is no file to read" in caplog.text


def test_folder_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "set" / "cat").mkdir(parents=True)
    path = os.fsencode(tmp_path / "set" / "cat") + b"/\xff.jpg"
    with open(path, "wb") as file:
        file.write(factories.make_jpeg())
    source = open_source(str(tmp_path / "set"))
    (member,) = [member for unit in source.units() for member in source.open(unit)]
    assert (member.key, member.reason, member.flags) == ("cat/\\xff.jpg", None, ("name_bytes",))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("labels.csv", b"path,label\n", "labels.csv is a table (.csv), and a place that holds the images themselves"),
        ("one.jpg", b"\xff\xd8\xff", "one.jpg is a single image"),
        ("notes.docx", b"hello", "notes.docx is neither a folder nor an archive that is read"),
        ("none.zip", b"", "none.zip is empty (0 bytes)"),
    ],
)
def test_files_that_are_no_source(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        open_source(str(tmp_path / name))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert "mend:" in str(caught.value)


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source .*nowhere does not exist"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"source .*nowhere.zip does not exist"):
        open_source(str(tmp_path / "nowhere.zip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images in .*empty; it is empty"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"source '' names no folder or archive"):
        open_source("")


def test_sources_without_images(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.csv").write_text("x")
    (tmp_path / "texts" / "b.csv").write_text("x")
    with pytest.raises(InputError, match=r"no images in .*texts; it holds 2 \.csv files"):
        open_source(str(tmp_path / "texts")).listing()
    for name, data in (("x.tar", factories.make_tar([])), ("x.zip", factories.make_zip([]))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=r"no images in .*; it is empty"):
            open_source(str(tmp_path / name)).listing()


def listing(sizes: list[int]) -> tuple[Entry, ...]:
    offset = 0
    found = []
    for i, size in enumerate(sizes):
        found.append(Found(f"class{i * 10 // len(sizes)}/{i}.jpg".encode(), size, offset, size))
        offset += size
    return make_listing("source", found).entries


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=300))
def test_units_are_a_partition(sizes: list[int]) -> None:
    entries = listing(sizes)
    for cut in (file_units, span_units, streamed_units):
        units = cut(entries)
        assert sorted(entry.image_id for unit in units for entry in unit.entries) == sorted(e.image_id for e in entries)
        assert all(unit.entries for unit in units)
        assert [unit.index for unit in units] == list(range(len(units)))
        assert cut(entries) == units


def test_file_units_are_bounded() -> None:
    units = file_units(listing([1_000] * 10_000))
    assert max(len(unit.entries) for unit in units) <= MAX_UNIT_ROWS
    units = file_units(listing([40 * 2**20] * 10))
    assert [len(unit.entries) for unit in units] == [1] * 10


def test_units_of_a_sorted_archive_hold_all_classes() -> None:
    units = span_units(listing([900] * 50_000))
    assert len(units) == 10
    for unit in units:
        labels = {entry.label for entry in unit.entries}
        assert len(labels) == 10
        # rows are mixed, not one span after the other
        assert len({entry.label for entry in unit.entries[:50]}) >= 7


def test_reads_stay_sequential() -> None:
    units = span_units(listing([900] * 50_000))
    ranges = read_ranges(units[0].entries)
    assert sum(len(entries) for _, _, entries in ranges) == len(units[0].entries)
    assert len(ranges) < 25
    for offset, length, entries in ranges:
        assert length <= 8 * 2**20
        assert all(offset <= e.offset and e.offset + e.extent <= offset + length for e in entries)


def test_large_members_are_read_alone() -> None:
    ranges = read_ranges(listing([20 * 2**20, 100, 30 * 2**20]))
    assert [(length, len(entries)) for _, length, entries in ranges] == [
        (20 * 2**20, 1),
        (100, 1),
        (30 * 2**20, 1),
    ]
