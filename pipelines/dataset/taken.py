"""Images that somebody took out: their ids alone are kept when `compact` deletes their rows, so that they stay out."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.reader import Dataset
from pipelines.dataset.tables import decode_table, encode_table
from pipelines.errors import AlreadyExists, DataError

TAKEN = "taken_out"
"""Field of a catalog: the tables of these ids."""

RULED_OUT = ("LEAK", "NEAR_LEAK", "DUPLICATE", "NEAR_DUPLICATE", "LABEL_CONFLICT", "unchanged", "withheld")
"""Reasons in patches by which an ingest's own rules leave rows out that never counted; nobody decided about those."""

_SCHEMA = pa.schema([pa.field("image_id", pa.string())])


def write_taken(dataset: Dataset, run_id: str) -> list[dict[str, Any]]:
    """Write the ids of a dataset's rows that are out and have no other row; return what the catalog says of them all.

    A row that a changed image took the place of has another, and is not among them; nor is one that never counted.
    """
    standing = list(dataset.catalog.get(TAKEN, []))
    dead = _dead_images(dataset)
    return [*standing, write_ids(dataset, run_id, dead)] if dead else standing


def write_ids(dataset: Dataset, run_id: str, image_ids: Collection[str]) -> dict[str, Any]:
    """Write ids as a table of images that were taken out; return what a catalog says of it."""
    data = encode_table(pa.table({"image_id": sorted(image_ids)}, schema=_SCHEMA))
    digest = hashlib.sha256(data).hexdigest()
    path = f"data/{run_id}/_taken-{digest[:16]}.parquet"
    with contextlib.suppress(AlreadyExists):  # the name is the content
        dataset.storage.create(path, data)
    return {"path": path, "sha256": digest, "bytes": len(data), "rows": len(image_ids)}


def taken_out(dataset: Dataset) -> set[str]:
    """Return the ids of all images that somebody took out: by a patch that stands, or before their rows were deleted.

    Images that were refused, and so have no row, are among them once somebody took them out.
    """
    return _dead_images(dataset) | read_taken(dataset)


def read_taken(dataset: Dataset) -> set[str]:
    """Return the ids of images that were taken out before their rows were deleted.

    Raises:
        DataError: a table is not what was written.
    """
    ids: set[str] = set()
    for entry in dataset.catalog.get(TAKEN, []):
        ids.update(_read(dataset, entry))
    return ids


def ruled_out_rows(dataset: Dataset) -> set[tuple[str, int]]:
    """Return (shard, row) of the rows that a run's own rules took out, as a patch on shards too large to write anew."""
    found = set[tuple[str, int]]()
    for entry in dataset.catalog["patches"]:
        table = decode_table(dataset.storage.read(entry["path"]), entry["path"])
        for row in table.filter(pc.field("field") == "live").select(["shard", "row", "new", "reason"]).to_pylist():
            place = row["shard"], row["row"]
            if row["new"] == "false" and row["reason"] in RULED_OUT:
                found.add(place)
            else:
                found.discard(place)
    return found


def _dead_images(dataset: Dataset) -> set[str]:
    """Return the ids of the rows that somebody took out and whose image has no live row beside them."""
    ruled_out = ruled_out_rows(dataset)
    dead: set[str] = set()
    for file in dataset.shards():
        changes = dataset.overrides.get(file.path, {})
        rows = [
            row for row, change in changes.items() if not change.get("live", True) and (file.path, row) not in ruled_out
        ]
        if rows:
            dead.update(dataset.written_rows(file, ["image_id"]).column("image_id").take(rows).to_pylist())
    if dead:
        wanted = pa.array(sorted(dead), pa.string())
        for split in dataset.splits:
            ids = dataset.table(split, ["image_id"]).column("image_id")
            dead.difference_update(ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist())
    return dead


def _read(dataset: Dataset, entry: Mapping[str, Any]) -> list[str]:
    data = dataset.storage.read(entry["path"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DataError(
            f"{dataset.storage.address(entry['path'])} is not what was written: its SHA-256 differs",
            mend="restore the file from a backup",
        )
    found: list[str] = decode_table(data, entry["path"]).column("image_id").to_pylist()
    return found
