"""Every hostile or damaged archive of the reliability page (A01 to A35) through a whole ingest, to its stated end.

Beside the bad member each archive holds good ones, whose rows must be those of a clean archive. Nothing is changed
outside the folder of the test, no process is started, no connection made.
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset import inspect
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import InputError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from tests import factories
from tests.watched import nothing_escapes

IMAGES = [factories.make_jpeg(seed, 24, 24) for seed in range(12)]
GOOD = [(f"{'ab'[i % 2]}/{i}.jpg", data) for i, data in enumerate(IMAGES)]
MORE = factories.make_png(77, 24, 24)
"""A picture that no good member shows."""


@dataclass(frozen=True)
class Case:
    """One archive and its end: `error` when it is refused as a whole, else what is quarantined and what is added."""

    name: str
    data: Callable[[], bytes]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Key -> reason."""
    added: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of a further row -> its flags."""
    error: str = ""
    fault: str = ""
    """Why the archive is refused unless what is readable is asked for; then `refused` and `lost` hold."""
    lost: int = 0
    """Good members behind the damage, at the end."""
    flag: str = ""
    """On every row."""
    ignored: int = 0


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    return factories.make_tar([*GOOD, *members], tar_format=form)


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    return factories.make_zip([*GOOD, *members], method)


def link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    return factories.tar_link(name, kind, target)


def header_of(data: bytes, name: bytes) -> int:
    at = data.rfind(name)
    return at - at % 512


def with_size(data: bytes, name: bytes, value: bytes) -> bytes:
    """Return a tar with another size in the header of a member, its checksum right."""
    at, changed = header_of(data, name), bytearray(data)
    changed[at + 124 : at + 136] = value
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def bad_header() -> bytes:
    data = tar()
    at = header_of(data, b"a/10.jpg") + 148
    return data[:at] + b"9999999\0" + data[at + 8 :]


def encrypted() -> bytes:
    data = bytearray(zipped(("a/x.png", MORE)))
    directory = bytes(data).rfind(b"PK\1\2")
    (offset,) = struct.unpack_from("<L", data, directory + 42)
    data[offset + 6] |= 1
    data[directory + 8] |= 1
    return bytes(data)


def false_locator() -> bytes:
    data = zipped()
    end = data.rfind(b"PK\5\6")
    return data[:end] + struct.pack("<4sLQL", b"PK\6\7", 0, 7, 1) + data[end:]


def hidden_directory() -> bytes:
    hidden = factories.make_zip([("evil/1.jpg", MORE)])
    return zipped()[:-2] + struct.pack("<H", len(hidden)) + hidden


def sparse() -> bytes:
    return factories.make_tar(GOOD)[: header_of(tar(), b"b/11.jpg") + 512 + 512 * -(-len(IMAGES[11]) // 512)] + (
        factories.sparse_tar(200 * 2**20)
    )


JPEG11 = -(-len(IMAGES[11]) // 512) * 512
WINDOWS = ("..\\..\\evil.png", "C:\\evil.png")
DEEP = factories.make_tar([("d/x.png", MORE), ("in.tar", factories.make_tar([("y.png", MORE)]))])
CASES: dict[str, Case] = {
    "A01 name upwards": Case("x.tar", lambda: tar(("../../evil.png", MORE)), {"../../evil.png": "UNSAFE_NAME"}),
    "A02 absolute name": Case("x.tar", lambda: tar(("/tmp/evil.png", MORE)), {"/tmp/evil.png": "UNSAFE_NAME"}),
    "A03 symbolic link": Case(
        "x.tar", lambda: tar(link("a/l.jpg", tarfile.SYMTYPE, "/etc/passwd")), {"a/l.jpg": "LINK"}
    ),
    "A04 write through a link": Case(
        "x.tar", lambda: tar(link("d", tarfile.SYMTYPE, "/tmp"), ("d/x.png", MORE)), {"d": "LINK"}, {"d/x.png": ()}
    ),
    "A05 hard link outside": Case(
        "x.tar", lambda: tar(link("a/h.jpg", tarfile.LNKTYPE, "../../etc/passwd")), {"a/h.jpg": "LINK"}
    ),
    "A06 hard link inside": Case(
        "x.tar", lambda: tar(link("a/h.jpg", tarfile.LNKTYPE, "a/0.jpg")), {"a/h.jpg": "LINK"}
    ),
    "A07 devices": Case(
        "x.tar",
        lambda: tar(
            *[
                link(f"a/{k}.jpg", t)
                for k, t in zip("cbf", (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE), strict=True)
            ]
        ),
        {"a/c.jpg": "SPECIAL", "a/b.jpg": "SPECIAL", "a/f.jpg": "SPECIAL"},
    ),
    "A08 equal names": Case(
        "x.tar", lambda: tar(("a/x.png", MORE), ("a/x.png", b"")), {"a/x.png": "EMPTY"}, {"a/x.png": ("dup_name",)}
    ),
    "A09 cut tar": Case(
        "x.tar",
        lambda: tar()[: header_of(tar(), b"b/11.jpg") + 700],
        {"b/11.jpg": "ARCHIVE_TRUNCATED"},
        fault="the archive ends inside this member",
        lost=1,
    ),
    "A10 header checksum": Case(
        "x.tar", bad_header, {"!x.tar": "ARCHIVE_CORRUPT"}, fault="has a wrong checksum", lost=2
    ),
    "A11 cut tar.gz": Case(
        "x.tar.gz",
        lambda: gzip.compress(tar()[: header_of(tar(), b"b/11.jpg")]) + gzip.compress(tar()[-14_000:])[:40],
        {"!x.tar.gz": "ARCHIVE_TRUNCATED"},
        fault="ends",
        lost=1,
    ),
    "A12 gzip checksum": Case(
        "x.tar.gz", lambda: flipped(gzip.compress(tar()), -5), {"!x.tar.gz": "CRC"}, fault="incorrect data check"
    ),
    "A13 tar in tar": Case(
        "x.tar", lambda: tar(("in.tar", DEEP)), {"in.tar!/in.tar": "NESTED"}, {"in.tar!/d/x.png": ()}
    ),
    "A14 name not UTF-8": Case(
        "x.tar",
        lambda: tar(("a/\udcff\udcfe.png", MORE), form=tarfile.GNU_FORMAT),
        added={"a/\\xff\\xfe.png": ("name_bytes",)},
    ),
    "A15 size beyond the end": Case(
        "x.tar",
        lambda: with_size(tar(), b"b/11.jpg", b"77777777777\0"),
        {"b/11.jpg": "ARCHIVE_TRUNCATED"},
        fault="the archive ends inside this member of 8,589,934,591 bytes",
        lost=1,
    ),
    "A16 long name": Case("x.tar", lambda: tar(("n" * 4_000 + ".png", MORE)), {"n" * 4_000 + ".png": "NAME_LONG"}),
    "A17 empty tar": Case("x.tar", lambda: factories.make_tar([]), error="no images in .*x.tar; it is empty"),
    "A17 empty zip": Case("x.zip", lambda: factories.make_zip([]), error="no images in .*x.zip; it is empty"),
    "A18 empty members": Case(
        "x.tar",
        lambda: tar(*[(f"e/{i}.png", b"") for i in range(500)]),
        {f"e/{i}.png": "EMPTY" for i in range(500)},
    ),
    "A19 zip names": Case(
        "x.zip",
        lambda: zipped(("../x.png", MORE), *[(name, MORE) for name in WINDOWS]),
        {"../x.png": "UNSAFE_NAME", **dict.fromkeys(WINDOWS, "UNSAFE_NAME")},
    ),
    "A20 ratio": Case(
        "x.zip",
        lambda: zipped(("a/x.png", bytes(4 * 2**20)), method=zipfile.ZIP_DEFLATED),
        {"a/x.png": "BOMB_RATIO"},
    ),
    "A21 overlap": Case("x.zip", lambda: factories.overlapping_zip(1_000), error="has overlapping members .OVERLAP."),
    "A22 encrypted": Case("x.zip", encrypted, {"a/x.png": "ENCRYPTED"}),
    "A23 no directory": Case(
        "x.zip",
        lambda: zipped()[: zipped().find(b"PK\1\2")],
        {"!x.zip": "ARCHIVE_TRUNCATED"},
        fault="the zip has no directory at its end",
    ),
    "A24 zip checksum": Case(
        "x.zip",
        lambda: flipped(zipped(("a/x.png", MORE)), zipped(("a/x.png", MORE)).find(MORE) + 60),
        {"a/x.png": "CRC"},
    ),
    "A25 equal names": Case(
        "x.zip", lambda: zipped(("a/x.png", MORE), ("a/x.png", b"")), {"a/x.png": "EMPTY"}, {"a/x.png": ("dup_name",)}
    ),
    "A26 link in a zip": Case("x.zip", lambda: zipped((factories.zip_link("a/l"), b"/etc/passwd")), {"a/l": "LINK"}),
    "A27 prefix": Case("x.zip", lambda: b"MZ" + bytes(500) + zipped(), flag="prefix"),
    "A28 code page 437": Case(
        "x.zip",
        lambda: zipped(("a/_.png", MORE)).replace(b"a/_.png", b"a/\x81.png"),
        added={"a/ü.png": ("name_bytes",)},
    ),
    "A29 names in two cases": Case(
        "x.zip", lambda: zipped(("X/1.png", MORE), ("x/1.PNG", b"")), {"x/1.PNG": "EMPTY"}, {"X/1.png": ()}
    ),
    "A30 LZMA": Case("x.zip", lambda: zipped(("a/x.png", MORE), method=zipfile.ZIP_LZMA), added={"a/x.png": ()}),
    "A31 system files": Case(
        "x.zip", lambda: zipped(("__MACOSX/a/._0.jpg", b"x"), ("a/.DS_Store", b"x"), ("Thumbs.db", b"x")), ignored=3
    ),
    "A32 sparse": Case("x.tar", sparse, {"GNUSparseFile.0/s.jpg": "SPARSE"}),
    "A33 negative size": Case(
        "x.tar",
        lambda: with_size(tar(), b"b/11.jpg", b"\xff" * 11 + b"\xfe"),
        {"!x.tar": "ARCHIVE_CORRUPT"},
        fault="size is no possible size",
        lost=1,
    ),
    "A34 false zip64 locator": Case("x.zip", false_locator, error="AMBIGUOUS.*zip64 locator points elsewhere"),
    "A35 second directory": Case("x.zip", hidden_directory, error="AMBIGUOUS.*a second directory hides in its comment"),
}


def ingest(source: Path, out: Path, **settings: Any) -> Dataset:
    config = IngestConfig(
        source=str(source), out=str(out), source_name="set", max_quarantined_fraction=0.99, **settings
    )
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(out))
    assert list(inspect.verify(dataset)) == []
    return dataset


def rows(dataset: Dataset) -> dict[str, tuple[str, str, str | None, tuple[str, ...]]]:
    columns = ["key", "image_id", "stored_sha256", "label", "flags"]
    return {
        row["key"]: (row["image_id"], row["stored_sha256"], row["label"], tuple(row["flags"]))
        for split in dataset.splits
        for row in dataset.table(split, columns).to_pylist()
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, str | None, tuple[str, ...]]]:
    place = tmp_path_factory.mktemp("clean")
    (place / "x.zip").write_bytes(factories.make_zip(GOOD))
    return rows(ingest(place / "x.zip", place / "out"))


@pytest.mark.parametrize("name", CASES)
def test_each_archive_ends_as_stated(
    tmp_path: Path, name: str, clean: dict[str, tuple[str, str, str | None, tuple[str, ...]]]
) -> None:
    case = CASES[name]
    path = tmp_path / case.name
    path.write_bytes(case.data())
    with nothing_escapes(tmp_path):
        if case.error or case.fault:
            with pytest.raises(InputError, match=case.error or case.fault) as caught:
                ingest(path, tmp_path / "out")
            assert caught.value.exit_code == 2
            assert not (tmp_path / "out" / "_versions").exists()
        if case.error:
            return
        dataset = ingest(path, tmp_path / "out", allow_broken_archive=bool(case.fault))
    refused = [(row["key"], row["reason"]) for row in inspect.quarantined(dataset)]
    assert sorted(refused) == sorted(case.refused.items())
    found = rows(dataset)
    assert {key: found.pop(key)[3] for key in case.added} == dict(case.added)
    whole = dict(list(clean.items()) if not case.lost else [])
    for key, _ in GOOD[: len(GOOD) - case.lost]:
        image_id, stored, label, flags = clean[key]
        whole[key] = (image_id, stored, label, (*flags, case.flag) if case.flag else flags)
    assert found == whole
    assert dataset.catalog["counts"]["ignored"] == case.ignored


def test_the_table_has_every_number() -> None:
    assert {name[:3] for name in CASES} == {f"A{number:02d}" for number in range(1, 36)}
