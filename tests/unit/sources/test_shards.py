"""Folders of archives, and WebDataset's way of writing labels beside images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import InputError
from pipelines.sources.base import Listing, Source, Unit, image_id
from pipelines.sources.resolve import open_source
from pipelines.sources.zip import ZipSource
from tests import factories

IMAGES = [factories.make_png(seed, 16, 16) for seed in range(12)]


def members(source: Source) -> dict[str, Any]:
    units = [Unit.from_text(unit.to_text()) for unit in source.units()]  # as it travels
    return {member.key: member for unit in units for member in source.open(unit)}


def shard(path: Path, numbers: range, *, classes: bool = True) -> None:
    files: list[tuple[str, bytes]] = []
    for number in numbers:
        files.append((f"{number:06d}.png", IMAGES[number]))
        if classes:
            files += [(f"{number:06d}.cls", f"{number % 3}\n".encode()), (f"{number:06d}.json", b"{}")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(factories.make_tar(files))


def test_a_webdataset_shard_is_labelled_by_its_class_files(tmp_path: Path) -> None:
    shard(tmp_path / "shard.tar", range(6))
    source = open_source(str(tmp_path / "shard.tar"))
    found = members(source)
    assert {key: member.label for key, member in found.items()} == {f"{n:06d}.png": str(n % 3) for n in range(6)}
    assert found["000004.png"].data == IMAGES[4]
    assert source.listing().ignored == {".cls files": 6, ".json files": 6}


def test_a_folder_of_shards_is_one_source(tmp_path: Path) -> None:
    shard(tmp_path / "wds" / "train-000000.tar", range(5))
    shard(tmp_path / "wds" / "train-000001.tar", range(5, 9))
    shard(tmp_path / "wds" / "val-000000.tar", range(9, 12))
    (tmp_path / "wds" / "README.md").write_text("how it was made")
    source = open_source(str(tmp_path / "wds"))
    found = members(source)
    assert len(found) == 12
    member = found["train-000001.tar!/000007.png"]
    assert (member.data, member.label, member.given_split) == (IMAGES[7], "1", "train")
    assert member.image_id == image_id("wds", b"train-000001.tar!/000007.png", 0)
    assert found["val-000000.tar!/000010.png"].given_split == "val"
    assert [unit.index for unit in source.units()] == list(range(len(source.units())))


def test_archives_of_other_kinds_and_class_folders_inside(tmp_path: Path) -> None:
    place = tmp_path / "mixed"
    place.mkdir()
    (place / "a.zip").write_bytes(factories.make_zip([("cat/1.png", IMAGES[1]), ("dog/2.png", IMAGES[2])]))
    (place / "b.tar").write_bytes(factories.make_tar([("cat/1.png", IMAGES[3])]))
    found = members(open_source(str(place)))
    assert {key: (member.label, member.given_split, member.data) for key, member in found.items()} == {
        "a.zip!/cat/1.png": ("cat", None, IMAGES[1]),
        "a.zip!/dog/2.png": ("dog", None, IMAGES[2]),
        "b.tar!/cat/1.png": ("cat", None, IMAGES[3]),
    }


def test_one_archive_per_class_is_labelled_by_its_name(tmp_path: Path) -> None:
    for name, number in (("cats.tar", 1), ("dogs.zip", 2)):
        make = factories.make_tar if name.endswith("tar") else factories.make_zip
        (tmp_path / name).write_bytes(make([("x.png", IMAGES[number])]))
    found = members(open_source(str(tmp_path)))
    assert {member.label for member in found.values()} == {"cats", "dogs"}


def test_the_digest_follows_the_archives(tmp_path: Path) -> None:
    shard(tmp_path / "wds" / "a.tar", range(3))
    before = open_source(str(tmp_path / "wds")).listing_digest()
    shard(tmp_path / "wds" / "b.tar", range(3))
    assert open_source(str(tmp_path / "wds")).listing_digest() != before


def test_a_damaged_archive_among_them_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "wds" / "a.tar", range(3))
    shard(tmp_path / "wds" / "b.tar", range(3, 6))
    path = tmp_path / "wds" / "b.tar"
    path.write_bytes(path.read_bytes()[:2_600])
    listing = open_source(str(tmp_path / "wds")).listing()
    assert [fault.partition(":")[0] for fault in listing.faults] == ["b.tar"]
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.tar is empty"):
        open_source(str(tmp_path / "wds"))


def test_an_archive_inside_an_archive_of_a_folder_is_a_member_with_a_reason(tmp_path: Path) -> None:
    inner = factories.make_tar([("x.png", IMAGES[0])])
    (tmp_path / "a.tar").write_bytes(factories.make_tar([("1.png", IMAGES[1]), ("in.tar", inner)]))
    reasons = {entry.key: entry.reason for entry in open_source(str(tmp_path)).listing().entries}
    assert reasons == {"a.tar!/1.png": "", "a.tar!/in.tar": "NESTED"}


def test_each_archive_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        files = [(f"c/{number}-{i}.png", factories.make_png(i, 8, 8)) for i in range(4)]
        (folder / f"{number}.zip").write_bytes(factories.make_zip(files))
    (folder / "empty.zip").write_bytes(factories.make_zip([]))
    listed: list[str] = []
    whole = ZipSource._list

    def counted(self: ZipSource) -> Listing:
        listed.append(self.uri.rpartition("/")[2])
        return whole(self)

    monkeypatch.setattr(ZipSource, "_list", counted)
    source = open_source(str(folder))
    assert len(source.listing().entries) == 12
    assert sum(len(unit.entries) for unit in source.units()) == len(source.tokens()) == 12
    assert sorted(listed) == ["0.zip", "1.zip", "2.zip", "empty.zip"]
