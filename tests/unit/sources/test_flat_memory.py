"""Huge archives: what the driver holds grows by a few hundred bytes a member, what a worker holds does not grow.

Run with `-m slow -s` to see the figures.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import factories

ROOT = Path(__file__).parents[3]
MEMBERS = 1_000_000
TAR_BYTES = 20 * 10**9
TAR_GZ_BYTES = 1_500 * 10**6
WORKER_BYTES = 500 * 10**6

LIST = """
import json, pickle, resource, sys, time
from pipelines.sources.resolve import open_source
began = time.monotonic()
source = open_source(sys.argv[1])
members = len(source.listing().entries)
listed = time.monotonic()
units = source.units()
with open(sys.argv[2], "wb") as out:
    pickle.dump((source, max(units, key=lambda unit: sum(e.size for e in unit.entries)).to_text()), out)
print(json.dumps({
    "members": members, "units": len(units), "largest_unit": max(len(unit.entries) for unit in units),
    "listing_s": listed - began, "units_s": time.monotonic() - listed,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""
WORK = """
import json, pickle, resource, sys, time
from pipelines.ingest.config import ImageConfig, IngestConfig
from pipelines.ingest.split import make_split_plan
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources.base import Unit
source, text = pickle.load(open(sys.argv[1], "rb"))
unit = Unit.from_text(text)
plan = make_split_plan(unit.entries, IngestConfig(source="x").split)
job = IngestJob(source, sys.argv[2], "0-0", ImageConfig(size_px=int(sys.argv[3])), plan)
began = time.monotonic()
receipt = ingest_unit(unit, job)
print(json.dumps({
    "files": len(receipt["files"]), "written_bytes": sum(file["bytes"] for file in receipt["files"]),
    "members": receipt["members"], "written": receipt["counts"]["written"], "unit_s": time.monotonic() - began,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""
WRITE_GROUP = """
import sys
import pyarrow as pa
import pyarrow.parquet as pq
from tests import factories
cell = pa.array([factories.make_jpeg(1, 640, 480) + bytes(40 * 10**6)], pa.large_binary())
table = pa.table({"image": pa.chunked_array([cell] * 24)})
pq.write_table(table, sys.argv[1], use_dictionary=False, row_group_size=24)
"""


def measure(program: str, *arguments: object) -> dict[str, float]:
    """Run a program in a process of its own and return what it prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout)
    print({name: round(value, 1) for name, value in figures.items()})
    return figures


def write_zip(path: Path, count: int) -> None:
    """Write a stored zip64 of `count` small pictures, by hand: `zipfile` would need gigabytes for its directory."""
    data = factories.make_png(1, 4, 4)
    crc, directory, at = zlib.crc32(data), bytearray(), 0
    with path.open("wb") as out:
        for number in range(count):
            name = b"class%d/%07d.png" % (number % 10, number)
            sizes = (crc, len(data), len(data), len(name))
            at += out.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, *sizes, 0) + name + data)
            offset = at - 30 - len(name) - len(data)
            directory += (
                struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, *sizes, 0, 0, 0, 0, 0, offset) + name
            )
        out.write(directory)
        end = (count, count, len(directory), at)
        out.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *end))
        out.write(struct.pack("<4sLQL", b"PK\6\7", 0, at + len(directory), 1))
        out.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def write_tar(path: Path, total_bytes: int, member_bytes: int) -> int:
    """Write a tar of ordinary members in a file with holes: a photograph each, then zeros that are not stored."""
    number = 0
    pictures = [factories.make_jpeg(seed, 640, 480) for seed in range(20)]
    with path.open("wb") as out:
        while out.tell() < total_bytes:
            info = tarfile.TarInfo(f"class{number % 10}/{number:06d}.jpg")
            info.size = member_bytes
            out.write(info.tobuf())
            written = out.write(pictures[number % len(pictures)])
            out.seek(-(-member_bytes // 512) * 512 - written, 1)
            number += 1
        out.write(bytes(1024))
    return number


def write_tar_gz(path: Path, total_bytes: int) -> int:
    """Write a .tar.gz of JPEGs of noise, of about 1 MB each, each with other last bytes of its comment."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 1100, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG", quality=85)
    picture = sink.getvalue()
    number = 0
    with gzip.open(path, "wb", compresslevel=1) as out:
        while number * len(picture) < total_bytes:
            comment = b"\xff\xfe\x00\x0a%08d" % number
            data = picture[:2] + comment + picture[2:]
            info = tarfile.TarInfo(f"class{number % 10}/{number:06d}.jpg")
            info.size = len(data)
            out.write(info.tobuf() + data + bytes(-len(data) % 512))
            number += 1
        out.write(bytes(1024))
    return number


@pytest.mark.slow
def test_a_tar_gz_whose_photographs_are_kept_as_they_are(tmp_path: Path) -> None:
    number = write_tar_gz(tmp_path / "t.tar.gz", TAR_GZ_BYTES)
    listed = measure(LIST, tmp_path / "t.tar.gz", tmp_path / "unit")
    assert (listed["members"], listed["units"]) == (number, 4)
    worked = measure(WORK, tmp_path / "unit", tmp_path / "out", 0)
    assert worked["written"] == worked["members"] == listed["largest_unit"]
    assert worked["written_bytes"] > TAR_GZ_BYTES / 5
    assert worked["files"] > 5
    assert worked["peak_bytes"] < WORKER_BYTES


@pytest.mark.slow
def test_a_zip_of_a_million_members(tmp_path: Path) -> None:
    write_zip(tmp_path / "m.zip", MEMBERS)
    listed = measure(LIST, tmp_path / "m.zip", tmp_path / "unit")
    assert listed["members"] == MEMBERS
    assert listed["largest_unit"] < 10_000
    assert listed["peak_bytes"] < 1_200 * MEMBERS
    worked = measure(WORK, tmp_path / "unit", tmp_path / "out", 256)
    assert worked["members"] == worked["written"] <= listed["largest_unit"]
    assert worked["peak_bytes"] < WORKER_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("member_bytes", [8 * 10**6, 60 * 10**6], ids=["8 MB", "60 MB"])
def test_a_tar_of_20_gigabytes_with_holes(tmp_path: Path, member_bytes: int) -> None:
    number = write_tar(tmp_path / "t.tar", TAR_BYTES, member_bytes)
    path = tmp_path / "t.tar"
    assert path.stat().st_size > TAR_BYTES
    assert path.stat().st_blocks * 512 < TAR_BYTES / 20  # holes take no room
    listed = measure(LIST, path, tmp_path / "unit")
    assert listed["members"] == number
    worked = measure(WORK, tmp_path / "unit", tmp_path / "out", 256)
    assert worked["written"] == worked["members"] > 0
    assert worked["peak_bytes"] < WORKER_BYTES


@pytest.mark.slow
def test_a_tar_of_100_000_empty_members(tmp_path: Path) -> None:
    block = bytearray(tarfile.TarInfo("0" * 20).tobuf(tarfile.USTAR_FORMAT))
    with (tmp_path / "e.tar").open("wb") as out:
        for number in range(100_000):
            block[:20] = b"class%d/%09d.jpg" % (number % 10, number)
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            out.write(block)
        out.write(bytes(1024))
    listed = measure(LIST, tmp_path / "e.tar", tmp_path / "unit")
    assert listed["members"] == 100_000
    worked = measure(WORK, tmp_path / "unit", tmp_path / "out", 256)
    assert worked["written"] == 0
    assert worked["peak_bytes"] < WORKER_BYTES


@pytest.mark.slow
def test_a_row_group_of_large_cells(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_GROUP, str(tmp_path / "t.parquet")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=280)  # apart: a child's peak begins with its parent's
    assert (tmp_path / "t.parquet").stat().st_size > 24 * 40 * 10**6 / 100  # else it would be refused as a bomb
    listed = measure(LIST, tmp_path / "t.parquet", tmp_path / "unit")
    assert listed["members"] == 24
    assert listed["largest_unit"] <= 2
    worked = measure(WORK, tmp_path / "unit", tmp_path / "out", 256)
    assert worked["written"] == worked["members"]
    assert worked["peak_bytes"] < WORKER_BYTES
