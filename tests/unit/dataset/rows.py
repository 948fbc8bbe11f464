"""Rows and small datasets for the tests of this room, built in code."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from pipelines.dataset.catalog import next_run_id, publish_version, read_version
from pipelines.dataset.content import append_catalog, make_catalog
from pipelines.dataset.receipt import QuarantineFile, ShardFile, UnitReport, read_receipts, write_receipt
from pipelines.dataset.shards import write_shard_list
from pipelines.dataset.tables import open_parquet
from pipelines.dataset.writer import ShardWriter
from pipelines.storage import Storage

SIZE_PX = 6


@lru_cache(maxsize=4096)
def make_png(seed: int) -> bytes:
    """Return a tiny picture whose pixels depend on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_id(number: int, source: str = "photos") -> str:
    """Return the id of row `number` of a source."""
    return hashlib.sha256(f"{source}\0{number}.png\x000".encode()).hexdigest()[:32]


def make_row(number: int, label: Any = "cat", source: str = "photos") -> dict[str, Any]:
    """Return one whole row of a single-label dataset, but for `stored_sha256`, which the writer adds."""
    data = make_png(number)
    values = np.asarray(Image.open(io.BytesIO(data))).reshape(-1, 3) / 255
    return {
        "image": {"bytes": data, "path": f"{number}.png"},
        "label": label,
        "image_id": image_id(number, source),
        "source": source,
        "key": f"{number}.png",
        "occurrence": 0,
        "width": SIZE_PX,
        "height": SIZE_PX,
        "source_format": "PNG",
        "source_width": SIZE_PX,
        "source_height": SIZE_PX,
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "phash": number * 2654435761 % 2**64,
        "brightness": 0.5,
        "contrast": 0.25,
        "sharpness": 0.125,
        "channel_sum": values.sum(axis=0).tolist(),
        "channel_square_sum": (values * values).sum(axis=0).tolist(),
        "flags": [],
        "source_bytes": len(data),
        "cropped_fraction": 0.0,
    }


def split_of(number: int) -> str:
    """Return the split of row `number`: every fifth goes to test."""
    return "test" if number % 5 == 4 else "train"


def label_of(number: int) -> str:
    """Return the label of row `number`."""
    return ("cat", "dog", "eel")[number % 3]


def write_unit(
    storage: Storage, run_id: str, unit: int, numbers: Iterable[int], attempt: str = "a0", source: str = "photos"
) -> UnitReport:
    """Write one unit and its receipt; return what its receipt says."""
    writer = ShardWriter(storage, run_id, unit, attempt)
    for number in numbers:
        writer.append(split_of(number), make_row(number, label_of(number), source))
    writer.quarantine({"source": source, "key": f"bad-{unit}.png", "reason": "EMPTY", "message": "no bytes"})
    return UnitReport.from_json(write_receipt(storage, run_id, unit, writer.close().to_json()))


def make_test_catalog(
    storage: Storage, run_id: str, files: list[ShardFile], quarantine: list[QuarantineFile], source: str
) -> dict[str, Any]:
    """Write the shard list and return the catalog of one run over one source."""
    key = run_id.rpartition("-")[0]
    written = sum(file.rows for file in files)
    refused = sum(file.rows for file in quarantine)
    return make_catalog(
        stage="ingest",
        key=key,
        run_id=run_id,
        files=files,
        shard_list=write_shard_list(storage, run_id, files, quarantine),
        sources={source: key},
        locations={source: f"/photos/{source}"},
        task="single",
        preprocess={},
        split={"by": "hash", "seed": 0},
        counts={"members": written + refused, "written": written, "quarantined": refused},
        config={"source": source},
    )


def ingest(
    storage: Storage,
    units: Mapping[int, Iterable[int]],
    *,
    key: str = "a" * 32,
    source: str = "photos",
    base: int = 0,
    attempt: str = "a0",
) -> int:
    """Ingest numbered rows as units and publish them; return the version."""
    run_id = next_run_id(storage, key)
    for unit, numbers in units.items():
        write_unit(storage, run_id, unit, numbers, attempt, source)
    reports = [UnitReport.from_json(receipt) for _, receipt in sorted(read_receipts(storage, run_id).items())]
    files = [file for report in reports for file in report.files]
    quarantine = [file for report in reports for file in report.quarantine]
    own = make_test_catalog(storage, run_id, files, quarantine, source)
    standing = read_version(storage, base) if base else None
    catalog = append_catalog(standing, own) if standing else own
    return publish_version(
        storage, run_id, catalog, base=base, rebase=lambda newest, _version: append_catalog(newest, own)
    )


def image_page_end(storage: Storage, path: str, row_group: int) -> int:
    """Return the offset of the last byte of a row group's image pages."""
    column = open_parquet(storage, path).metadata.row_group(row_group).column(0)
    assert column.path_in_schema == "image.bytes"
    return int(column.data_page_offset + column.total_compressed_size - 1)
