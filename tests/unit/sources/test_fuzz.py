"""Seeded damage to archives, tables and arrays ends in words, in members with a reason or in members: nowhere else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import InputError
from pipelines.sources.base import Source, Unit
from pipelines.sources.labelled import LabelledSource, read_labels
from pipelines.sources.resolve import open_source
from tests import factories
from tests.watched import nothing_escapes

FILES = [(f"class{i % 3}/{i}.png", factories.make_png(i, 12, 10)) for i in range(6)] + [("x/long" * 30 + ".jpg", b"j")]
TABLE = "key,label,site\n" + "".join(f"{name},{name[:6]},s\n" for name, _ in FILES)


def _parquet() -> bytes:
    out = io.BytesIO()
    table = pa.table({"image": pa.array([data for _, data in FILES], pa.binary()), "label": list("aabbccd")})
    pq.write_table(table, out, row_group_size=3, write_page_checksum=True)
    return out.getvalue()


def _idx() -> bytes:
    return b"\0\0\x08\x03" + struct.pack(">3I", 5, 6, 7) + bytes(range(210))


SEEDS: dict[str, Callable[[], bytes]] = {
    "stored.zip": lambda: factories.make_zip(FILES),
    "deflated.zip": lambda: factories.make_zip(FILES, zipfile.ZIP_DEFLATED),
    "packed.zip": lambda: factories.make_zip(FILES, zipfile.ZIP_LZMA),
    "plain.tar": lambda: factories.make_tar(FILES),
    "x.tar.gz": lambda: gzip.compress(factories.make_tar(FILES), mtime=0),
    "x.tar.bz2": lambda: bz2.compress(factories.make_tar(FILES)),
    "x.tar.xz": lambda: lzma.compress(factories.make_tar(FILES)),
    "x.tar.zst": lambda: factories.zstd(factories.make_tar(FILES)),
    "x.parquet": _parquet,
    "train-images-idx3-ubyte": _idx,
    "labels.csv": TABLE.encode,
    "labels.jsonl": lambda: b"".join(b'{"key": "%s", "label": "a"}\n' % name.encode() for name, _ in FILES),
}
EXTREMES = [
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"77777777777\0",
    b"PK\5\6",
    b"\n",
]


def damage(data: bytes, generator: random.Random) -> bytes:
    """Flip bits, cut, repeat and move pieces, and set what may be a length to an extreme; most often near the ends."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 5)):
        size = max(1, len(changed))
        near = (generator.randrange(min(size, 600)), size - 1 - generator.randrange(min(size, 300)))
        at = generator.choice([generator.randrange(size), *near])
        kind = generator.randrange(6)
        if kind <= 1 and changed:
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 2:
            extreme = generator.choice(EXTREMES)
            changed[at : at + len(extreme)] = extreme
        elif kind == 3:
            piece = changed[at : at + generator.randrange(1, 700)]
            here = generator.randrange(size)
            changed[here:here] = piece
        elif kind == 4:
            del changed[at : at + generator.randrange(1, 700)]
        elif generator.random() < 0.3:
            del changed[at:]
    return _with_checksums(changed, generator)


def _with_checksums(data: bytearray, generator: random.Random) -> bytes:
    """Make the checksums of tar headers right again, half of the time: damage behind them is the interesting one."""
    if generator.random() < 0.5:
        for start in range(0, len(data) - 511, 512):
            if data[start + 257 : start + 262] == b"ustar":
                data[start + 148 : start + 156] = b" " * 8
                data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


def outcome(folder: Path, name: str, data: bytes) -> str:
    """Return what became of a damaged file: refused, faulty or whole."""
    place = folder / ("idx" if "idx" in name else "")
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(data)
    try:
        if name.startswith("labels"):
            read = _read(LabelledSource(open_source(str(folder / "plain.zip")), read_labels(str(folder / name))))
        else:
            read = _read(open_source(str(place if "idx" in name else place / name)))
    except InputError as error:
        message = str(error)
        message.encode()  # what cannot be printed would be a crash of its own
        return "refused" if len(message) < 4_000 else "wordy"
    return "faulty" if any(read) else "whole"


def _read(source: Source) -> list[str]:
    listed = Counter(entry.image_id for entry in source.listing().entries)
    assert max(listed.values()) == 1
    reasons = []
    for unit in source.units():
        for member in source.open(Unit.from_text(unit.to_text())):
            assert member.reason or member.data is not None
            # by the table's word alone the image may be whole
            assert member.data is None or member.reason in (None, "UNLABELLED", "LABEL_CONFLICT")
            f"{member.key}{member.label}{member.message}".encode()
            assert not (member.data is not None and len(member.data) > 64 * 2**20)
            listed[member.image_id] -= 1
            reasons.append(member.reason or "")
    assert not any(listed.values())
    return reasons


def run(folder: Path, name: str, number: int, seed: int) -> Counter[str]:
    (folder / "plain.zip").write_bytes(factories.make_zip(FILES))
    whole, generator = SEEDS[name](), random.Random(f"{seed} {name}")
    assert outcome(folder, name, whole) == "whole"
    with nothing_escapes(folder):
        return Counter(outcome(folder, name, damage(whole, generator)) for _ in range(number))


@pytest.mark.parametrize("name", SEEDS)
def test_damage_ends_in_words(tmp_path: Path, name: str) -> None:
    found = run(tmp_path, name, 250, seed=1)
    assert found["refused"] + found["faulty"] > 10
    assert not found["wordy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_much_damage_ends_in_words(tmp_path: Path, name: str) -> None:
    found = run(tmp_path, name, 6_000, seed=2)
    print(name, dict(found))
    assert found["refused"] + found["faulty"] > 100
    assert not found["wordy"]
