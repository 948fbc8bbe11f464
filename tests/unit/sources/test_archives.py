"""Zips and tars, whole and hostile: what each member becomes, on a disk and in an object store."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import InputError
from pipelines.sources.base import Member, Source
from pipelines.sources.resolve import open_source
from pipelines.storage import Storage
from tests import factories

JPEG, PNG = factories.make_jpeg(), factories.make_png()
GOOD = [("a/1.jpg", JPEG), ("b/2.png", PNG)]


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage.open(tmp_path)
    return Storage.open(f"memory://{tmp_path.name}-{id(request)}/some/prefix")


def open_bytes(place: Storage, name: str, data: bytes) -> Source:
    place.put(name, data)
    return open_source(place.address(name))


def members(source: Source) -> list[Member]:
    travelled = pickle.loads(pickle.dumps(source))  # workers get the source without its listing
    assert travelled._listing is None
    units = source.units()
    assert [unit.index for unit in units] == list(range(len(units)))
    read = [member for unit in units for member in travelled.open(type(unit).from_text(unit.to_text()))]
    assert len(read) == len(source.listing().entries)
    return sorted(read, key=lambda member: (member.key, member.occurrence))


def outcomes(source: Source) -> list[tuple[str, str | None, tuple[str, ...]]]:
    return [(member.key, member.reason, member.flags) for member in members(source)]


ARCHIVES: list[tuple[str, Callable[[list[tuple[str, bytes]]], bytes]]] = [
    ("x.zip", factories.make_zip),
    ("deflated.zip", lambda files: factories.make_zip(files, zipfile.ZIP_DEFLATED)),
    ("lzma.zip", lambda files: factories.make_zip(files, zipfile.ZIP_LZMA)),
    ("bzip2.zip", lambda files: factories.make_zip(files, zipfile.ZIP_BZIP2)),
    ("x.tar", factories.make_tar),
    ("gnu.tar", lambda files: factories.make_tar(files, tar_format=tarfile.GNU_FORMAT)),
    ("ustar.tar", lambda files: factories.make_tar(files, tar_format=tarfile.USTAR_FORMAT)),
    ("x.tar.gz", lambda files: gzip.compress(factories.make_tar(files))),
    ("parts.tgz", lambda files: _in_parts(factories.make_tar(files), gzip.compress)),
    ("x.tar.bz2", lambda files: bz2.compress(factories.make_tar(files))),
    ("parts.tar.bz2", lambda files: _in_parts(factories.make_tar(files), bz2.compress)),
    ("x.tar.xz", lambda files: lzma.compress(factories.make_tar(files))),
    ("x.tar.zst", lambda files: factories.zstd(factories.make_tar(files))),
    ("parts.tar.zst", lambda files: _in_parts(factories.make_tar(files), factories.zstd)),
    ("skipped.tar.zst", lambda files: factories.ZSTD_SKIPPABLE + factories.zstd(factories.make_tar(files))),
]


def _in_parts(data: bytes, pack: Callable[[bytes], bytes]) -> bytes:
    return pack(data[:1000]) + pack(data[1000:])


@pytest.mark.parametrize(("name", "make"), ARCHIVES, ids=[name for name, _ in ARCHIVES])
def test_every_member_is_read_once(place: Storage, name: str, make: Callable[..., bytes]) -> None:
    files = [(f"class{i % 3}/{i:04d}.jpg", factories.make_jpeg(i, 32, 32)) for i in range(40)]
    files += [("deep/" * 30 + "name.jpg", JPEG), ("tiny/empty.jpg", b"")]
    source = open_bytes(place, name, make(files))
    read = members(source)
    assert {member.key: member.data for member in read} == dict(files)
    assert all(member.reason is None for member in read)
    assert read[0].label == "class0"
    assert len({member.image_id for member in read}) == 42
    assert source.name == name


def test_ids_follow_the_written_rule(place: Storage) -> None:
    import hashlib

    source = open_bytes(place, "x.zip", factories.make_zip(GOOD))
    expected = hashlib.sha256(b"x.zip\0a/1.jpg\x000").hexdigest()[:32]
    assert members(source)[0].image_id == expected


def test_ids_and_digest_survive_a_move(tmp_path: Path) -> None:
    data = factories.make_zip(GOOD)
    one = open_bytes(Storage.open(tmp_path / "one"), "x.zip", data)
    other = open_bytes(Storage.open(tmp_path / "other"), "x.zip", data)
    assert [member.image_id for member in members(one)] == [member.image_id for member in members(other)]
    assert one.listing_digest() == other.listing_digest()
    changed = open_bytes(Storage.open(tmp_path / "third"), "x.zip", factories.make_zip([*GOOD[:1], ("b/2.png", JPEG)]))
    assert one.listing_digest() != changed.listing_digest()


def test_unsafe_members_are_refused_and_never_written(place: Storage, tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.rglob("evil*"))
    names = ["../../evil.jpg", "/tmp/evil.jpg", "..\\..\\evil2.jpg", "C:\\evil3.jpg"]
    for archive, make in (("x.zip", factories.make_zip), ("x.tar", factories.make_tar)):
        found = outcomes(open_bytes(place, archive, make([*GOOD, *[(name, JPEG) for name in names]])))
        assert sorted(key for key, reason, _ in found if reason == "UNSAFE_NAME") == sorted(names)
        assert sorted(key for key, reason, _ in found if reason is None) == ["a/1.jpg", "b/2.png"]
    assert sorted(tmp_path.parent.rglob("evil*")) == before


def test_links_and_devices_are_refused(place: Storage) -> None:
    kinds = [
        factories.tar_link("a/l.jpg", tarfile.SYMTYPE, "/etc/hostname"),
        factories.tar_link("a/h.jpg", tarfile.LNKTYPE, "../../etc/hostname"),
        factories.tar_link("a/i.jpg", tarfile.LNKTYPE, "a/1.jpg"),
        factories.tar_link("c.jpg", tarfile.CHRTYPE),
        factories.tar_link("d.jpg", tarfile.BLKTYPE),
        factories.tar_link("e.jpg", tarfile.FIFOTYPE),
        factories.tar_link("folder", tarfile.DIRTYPE),
    ]
    found = {
        key: reason for key, reason, _ in outcomes(open_bytes(place, "x.tar", factories.make_tar([*GOOD, *kinds])))
    }
    assert found == {
        "a/1.jpg": None,
        "b/2.png": None,
        "a/l.jpg": "LINK",
        "a/h.jpg": "LINK",
        "a/i.jpg": "LINK",
        "c.jpg": "SPECIAL",
        "d.jpg": "SPECIAL",
        "e.jpg": "SPECIAL",
    }
    linked = factories.make_zip([*GOOD, (factories.zip_link("a/l.jpg"), b"/etc/hostname")])
    assert ("a/l.jpg", "LINK", ()) in outcomes(open_bytes(place, "x.zip", linked))


@pytest.mark.parametrize(("archive", "make"), [("x.zip", factories.make_zip), ("x.tar", factories.make_tar)])
def test_equal_names_are_two_images(place: Storage, archive: str, make: Callable[..., bytes]) -> None:
    read = members(open_bytes(place, archive, make([*GOOD, ("a/1.jpg", PNG)])))
    twins = [member for member in read if member.key == "a/1.jpg"]
    assert [(twin.occurrence, twin.data, twin.flags) for twin in twins] == [
        (0, JPEG, ("dup_name",)),
        (1, PNG, ("dup_name",)),
    ]
    assert twins[0].image_id != twins[1].image_id


def test_names_that_differ_in_case_are_two_images(place: Storage) -> None:
    found = outcomes(open_bytes(place, "x.zip", factories.make_zip([("A/1.jpg", JPEG), ("a/1.JPG", PNG)])))
    assert found == [("A/1.jpg", None, ()), ("a/1.JPG", None, ())]


def test_odd_names_are_kept_reversibly(place: Storage) -> None:
    info = tarfile.TarInfo("a/\udcff\udcfe.jpg")
    tar = factories.make_tar([info], tar_format=tarfile.GNU_FORMAT)
    assert outcomes(open_bytes(place, "x.tar", tar)) == [("a/\\xff\\xfe.jpg", None, ("name_bytes",))]
    zipped = factories.make_zip([("a/1.jpg", JPEG)]).replace(b"a/1.jpg", b"a/\x81.jpg")
    assert outcomes(open_bytes(place, "x.zip", zipped)) == [("a/ü.jpg", None, ("name_bytes",))]


def test_system_files_are_counted_not_read(place: Storage) -> None:
    extra = [("__MACOSX/a/._1.jpg", b"x"), ("a/.DS_Store", b"x"), ("Thumbs.db", b"x"), ("labels.csv", b"x")]
    for archive, make in (("x.zip", factories.make_zip), ("x.tar", factories.make_tar)):
        source = open_bytes(place, archive, make([*GOOD, *extra]))
        assert source.listing().ignored == {".csv files": 1, "system files": 3}
        assert len(members(source)) == 2


def test_cut_tar_keeps_what_is_whole(place: Storage) -> None:
    whole = factories.make_tar(GOOD)
    for archive, data in (
        ("x.tar", whole[:8_000]),
        ("x.tar.gz", gzip.compress(whole)[:-4000]),
        ("x.tar.zst", factories.zstd(whole[:8_000]) + factories.zstd(whole[8_000:])[:-4000]),
    ):
        source = open_bytes(place, archive, data)
        assert source.listing().faults == (f"the archive ends inside this member of {len(PNG):,} bytes",)
        assert outcomes(source) == [("a/1.jpg", None, ()), ("b/2.png", "ARCHIVE_TRUNCATED", ())]


def test_damaged_tar_headers(place: Storage) -> None:
    broken = bytearray(factories.make_tar(GOOD))
    second = 512 + -(-len(JPEG) // 512) * 512
    broken[second + 148 : second + 156] = b"9999999\0"
    source = open_bytes(place, "x.tar", bytes(broken))
    assert outcomes(source) == [("!x.tar", "ARCHIVE_CORRUPT", ()), ("a/1.jpg", None, ())]
    assert source.listing().faults == (f"the header at byte {second:,} has a wrong checksum",)


def test_tar_sizes_that_lie(place: Storage) -> None:
    claimed = tarfile.TarInfo("big.jpg")
    claimed.size = 8 * 10**9
    source = open_bytes(place, "x.tar", claimed.tobuf(tarfile.GNU_FORMAT) + bytes(512))
    assert outcomes(source) == [("big.jpg", "ARCHIVE_TRUNCATED", ())]
    negative = bytearray(tarfile.TarInfo("n.jpg").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 10 + b"\xfe\x00"
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    source = open_bytes(place, "y.tar", bytes(negative) + bytes(1024))
    assert outcomes(source) == [("!y.tar", "ARCHIVE_CORRUPT", ())]


def test_wrong_checksums(place: Storage) -> None:
    packed = bytearray(gzip.compress(factories.make_tar(GOOD)))
    packed[-5] ^= 0xFF
    source = open_bytes(place, "x.tar.gz", bytes(packed))
    assert outcomes(source) == [("!x.tar.gz", "CRC", ()), ("a/1.jpg", None, ()), ("b/2.png", None, ())]
    packed = bytearray(factories.zstd_stored(factories.make_tar(GOOD)))
    packed[-1] ^= 0xFF
    source = open_bytes(place, "x.tar.zst", bytes(packed))
    assert outcomes(source) == [("!x.tar.zst", "CRC", ()), ("a/1.jpg", None, ()), ("b/2.png", None, ())]
    zipped = bytearray(factories.make_zip(GOOD))
    zipped[200] ^= 0xFF
    source = open_bytes(place, "x.zip", bytes(zipped))
    assert outcomes(source) == [("a/1.jpg", "CRC", ()), ("b/2.png", None, ())]


def test_cut_zip_keeps_what_is_whole(place: Storage) -> None:
    source = open_bytes(place, "x.zip", factories.make_zip(GOOD)[:-60])
    assert source.listing().faults == (
        "the zip has no directory at its end: it is cut, for example by a broken download",
    )
    assert outcomes(source) == [("!x.zip", "ARCHIVE_TRUNCATED", ()), ("a/1.jpg", None, ()), ("b/2.png", None, ())]


def test_bombs_are_not_unpacked(place: Storage) -> None:
    bomb = factories.make_zip([("a/1.jpg", JPEG), ("bomb.jpg", bytes(8 * 2**20))], zipfile.ZIP_DEFLATED)
    assert outcomes(open_bytes(place, "x.zip", bomb)) == [("a/1.jpg", None, ()), ("bomb.jpg", "BOMB_RATIO", ())]
    assert outcomes(open_bytes(place, "x.tar", factories.sparse_tar(10**9))) == [
        ("GNUSparseFile.0/s.jpg", "SPARSE", ())
    ]
    with pytest.raises(InputError, match=r"has overlapping members \(OVERLAP\)"):
        open_bytes(place, "y.zip", factories.overlapping_zip(1000)).listing()


@pytest.mark.parametrize(("name", "pack"), [("x.tar.gz", gzip.compress), ("x.tar.zst", factories.zstd)])
def test_a_stream_that_unpacks_to_hundreds_of_times_its_size_is_left(
    place: Storage, name: str, pack: Callable[[bytes], bytes]
) -> None:
    bomb = pack(factories.make_tar([*GOOD, ("zeros.jpg", bytes(90 * 2**20)), ("after.jpg", JPEG)]))
    source = open_bytes(place, name, bomb)
    assert [(key, reason) for key, reason, _ in outcomes(source)] == [
        ("a/1.jpg", None),
        ("b/2.png", None),
        ("zeros.jpg", "BOMB_RATIO"),
    ]


def test_a_zstd_window_that_wants_gigabytes_is_refused(place: Storage) -> None:
    wide = bytes.fromhex("28b52ffd00a8") + bytes.fromhex("010000")  # no content size, a window of 2 GB
    source = open_bytes(place, "x.tar.zst", wide)
    assert outcomes(source) == [("!x.tar.zst", "BOMB_RATIO", ())]
    assert "window of more than 128 MB" in source.listing().faults[0]


def test_a_directory_that_understates_the_size_is_a_bomb(place: Storage) -> None:
    honest = factories.make_zip([("a/1.jpg", bytes(100_000))], zipfile.ZIP_DEFLATED)
    lying = bytearray(honest)
    at = honest.find(b"PK\x01\x02")
    lying[at + 24 : at + 28] = struct.pack("<L", 1_000)
    assert outcomes(open_bytes(place, "x.zip", bytes(lying))) == [("a/1.jpg", "BOMB_RATIO", ())]


def test_encrypted_members(place: Storage) -> None:
    data = bytearray(factories.make_zip(GOOD[:1]))
    data[6] |= 1
    data[bytes(data).find(b"PK\x01\x02") + 8] |= 1
    assert outcomes(open_bytes(place, "x.zip", bytes(data))) == [("a/1.jpg", "ENCRYPTED", ())]


def test_prefixed_zip(place: Storage) -> None:
    source = open_bytes(place, "x.zip", b"MZ" + bytes(500) + factories.make_zip(GOOD))
    assert outcomes(source) == [("a/1.jpg", None, ("prefix",)), ("b/2.png", None, ("prefix",))]


def test_zips_with_two_readings_are_refused(place: Storage) -> None:
    hidden = factories.make_zip([("evil/1.jpg", PNG)])
    outer = bytearray(factories.make_zip(GOOD))
    outer[-2:] = struct.pack("<H", len(hidden))
    with pytest.raises(InputError, match=r"AMBIGUOUS.*a second directory hides in its comment"):
        open_bytes(place, "x.zip", bytes(outer) + hidden).listing()
    plain = factories.make_zip(GOOD)
    end_at = plain.rfind(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 7, 1)
    with pytest.raises(InputError, match=r"AMBIGUOUS.*its zip64 locator points elsewhere"):
        open_bytes(place, "y.zip", plain[:end_at] + locator + plain[end_at:]).listing()
    counted = bytearray(plain)
    counted[end_at + 8 : end_at + 12] = struct.pack("<HH", 1, 1)
    with pytest.raises(InputError, match=r"its end counts 1 members and its directory holds 2"):
        open_bytes(place, "z.zip", bytes(counted)).listing()


def test_zip64_archives_are_read(tmp_path: Path) -> None:
    import io

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open(zipfile.ZipInfo("a/1.jpg"), "w", force_zip64=True) as file:
        file.write(JPEG)
    plain = bytearray(out.getvalue())
    # move sizes and offset of the directory entry into a zip64 field, and add a zip64 end, as large archives have
    at, end_at = plain.find(b"PK\x01\x02"), plain.rfind(b"PK\x05\x06")
    entry = bytearray(plain[at:end_at])
    extra = struct.pack("<HHQQQ", 1, 24, len(JPEG), len(JPEG), 0)
    entry[20:28], entry[42:46] = b"\xff" * 8, b"\xff" * 4
    entry[30:32] = struct.pack("<H", len(extra))
    entry += extra
    directory_end = at + len(entry)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, directory_end, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    data = bytes(plain[:at]) + bytes(entry) + end64 + locator + end
    source = open_bytes(Storage.open(tmp_path), "x.zip", data)
    assert [(member.key, member.data) for member in members(source)] == [("a/1.jpg", JPEG)]


@pytest.mark.parametrize(("name", "pack"), [("x.tar.gz", gzip.compress), ("x.tar.bz2", bz2.compress)])
def test_a_compressed_tar_of_parts_is_read_from_any_part_on(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.sources.units.MIN_UNIT_BYTES", 300_000)
    files = [(f"c{i % 3}/{i:03d}.jpg", random.Random(i).randbytes(70_000)) for i in range(50)]
    plain = factories.make_tar(files)
    data = b"".join(pack(plain[start : start + 60_000]) for start in range(0, len(plain), 60_000))
    source = open_bytes(Storage.open(tmp_path), name, data)
    units = source.units()
    assert len(units) > 2
    assert {member.key: member.data for member in members(source)} == dict(files)
    with (tmp_path / name).open("r+b") as file:
        file.write(bytes(len(data) // 10))  # a reader that starts at the start would get nowhere now
    read = {member.key: member.reason for unit in units for member in source.open(unit)}
    assert set(read.values()) == {None, "CHANGED"}
    assert [read[f"c{i % 3}/{i:03d}.jpg"] for i in range(8, 50)] == [None] * 42


@pytest.mark.parametrize(
    "pack", [gzip.compress, lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])], ids=["one", "two"]
)
def test_one_long_part_is_read_from_the_start(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    files = [(f"c/{i}.jpg", random.Random(i).randbytes(600_000)) for i in range(5)]
    source = open_bytes(Storage.open(tmp_path), "x.tar.gz", pack(factories.make_tar(files)))
    assert all(len(entry.detail) == 2 for entry in source.listing().entries)
    assert {member.key: member.data for member in members(source)} == dict(files)
