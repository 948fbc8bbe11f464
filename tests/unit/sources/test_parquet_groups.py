"""Row groups of Parquet: large ones are cut, few cells are unpacked at once, and bombs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources import parquet as parquet_module
from pipelines.sources import parquet_columns
from pipelines.sources import units as units_module
from pipelines.sources.base import Member, Unit
from pipelines.sources.columns import Columns
from pipelines.sources.parquet_columns import batch_rows, find_layout, image_column
from pipelines.sources.resolve import open_source
from tests import factories

IMAGES = [factories.make_png(seed, 20, 16) for seed in range(24)]


def write(path: Path, images: list[bytes], *, rows: int, **options: Any) -> Path:
    pq.write_table(pa.table({"image": images}), path, row_group_size=rows, **options)
    return path


def members(path: Path, units: list[Unit] | None = None) -> dict[str, Member]:
    source = open_source(str(path))
    return {member.key: member for unit in units or source.units() for member in source.open(unit)}


def limit(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    for name, value in limits.items():
        for module in (parquet_module, units_module):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


def lengths(path: Path) -> list[int]:
    return [len(unit.entries) for unit in open_source(str(path)).units()]


def test_a_row_group_of_many_rows_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_columns, "_BATCH_ROWS", 5)  # ranges begin and end within batches
    path = write(tmp_path / "a.parquet", IMAGES, rows=24)
    whole = members(path)
    assert lengths(path) == [24]
    limit(monkeypatch, MAX_UNIT_ROWS=7)
    assert lengths(path) == [6, 6, 6, 6]
    assert members(path) == whole
    assert [member.data for member in whole.values()] == IMAGES
    units = open_source(str(path)).units()
    rows = [[entry.detail[2] for entry in unit.entries] for unit in units]
    assert sorted(rows) == [list(range(start, start + 6)) for start in (0, 6, 12, 18)]
    entries = open_source(str(path)).listing().entries
    some = Unit(0, (entries[22], entries[6]))  # any rows, as an append wants them
    assert [member.data for member in members(path, [some]).values()] == [IMAGES[6], IMAGES[22]]
    limit(monkeypatch, MAX_GROUP_RANGES=2)
    assert lengths(path) == [12, 12]


def test_a_row_group_of_many_bytes_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", IMAGES, rows=24)
    size = sum(entry.size for entry in open_source(str(path)).listing().entries)
    limit(monkeypatch, MIN_UNIT_BYTES=1, MAX_UNIT_BYTES=size // 3 + size // 24)
    assert lengths(path) == [8, 8, 8]
    assert [member.data for member in members(path).values()] == IMAGES


def test_units_hold_no_more_than_they_may_however_groups_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", IMAGES, rows=5)
    limit(monkeypatch, MAX_UNIT_ROWS=8)
    assert max(lengths(path)) <= 8
    assert sum(lengths(path)) == 24
    assert sorted(members(path)) == [f"a.parquet!/{row:06d}" for row in range(24)]


def test_a_range_reads_nothing_behind_its_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, MAX_UNIT_ROWS=6)
    options = {
        "compression": "none",
        "use_dictionary": False,
        "write_statistics": False,
        "write_page_checksum": True,
        "data_page_size": 1,
    }
    path = write(tmp_path / "a.parquet", IMAGES, rows=24, write_batch_size=1, **options)
    monkeypatch.setattr(parquet_columns, "_BATCH_ROWS", 2)
    data = bytearray(path.read_bytes())
    data[data.find(IMAGES[14]) + 30] ^= 1
    path.write_bytes(data)
    reasons = [member.reason for _, member in sorted(members(path).items())]
    assert reasons == [*[None] * 14, *["CHECKSUM"] * 10]  # what lies before the damage is read


def rows_at_once(path: Path) -> int:
    with pq.ParquetFile(path) as file:
        return batch_rows(image_column(file, 0, find_layout(file.schema_arrow, Columns(), "")))


def test_few_large_cells_are_unpacked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write(tmp_path / "a.parquet", IMAGES, rows=24, use_dictionary=False)
    assert rows_at_once(plain) == 64
    mean = sum(map(len, IMAGES)) // 24
    monkeypatch.setattr(parquet_columns, "MAX_IMAGE_BYTES", 3 * mean + mean // 2)
    assert rows_at_once(plain) == 3
    monkeypatch.setattr(parquet_columns, "MAX_IMAGE_BYTES", 1)
    assert rows_at_once(plain) == 1
    # one picture of 3 MB, which every row means
    large = write(tmp_path / "b.parquet", [bytes(3 * 2**20)] * 500, rows=500, compression="zstd")
    monkeypatch.setattr(parquet_columns, "MAX_IMAGE_BYTES", 64 * 2**20)
    assert rows_at_once(large) <= 21


def test_a_row_group_that_unpacks_to_far_more_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [bytes(40 * 2**20), bytes(40 * 2**20), IMAGES[0], IMAGES[1]]
    path = write(tmp_path / "a.parquet", images, rows=2, compression="zstd", use_dictionary=False)
    found = list(members(path).values())
    assert [member.reason for member in found] == ["BOMB_RATIO", "BOMB_RATIO", None, None]
    assert "bytes of its row group's images would unpack to 83,8" in found[0].message
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it was unpacked"))
    bombs = [entry for entry in open_source(str(path)).listing().entries if entry.reason]
    assert [member.data for member in members(path, [Unit(0, tuple(bombs))]).values()] == [None, None]
