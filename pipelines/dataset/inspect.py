"""What is in a dataset, and whether every byte is still what was written; plain data for the command line to print."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset.catalog import list_versions, listings_of, read_version
from pipelines.dataset.fingerprint import add, to_hex
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.receipt import ShardFile
from pipelines.dataset.schema import QUARANTINE_SCHEMA, with_later_columns
from pipelines.dataset.tables import open_parquet
from pipelines.dataset.taken import TAKEN
from pipelines.dataset.writer import row_fingerprint
from pipelines.errors import DataError, InputError, NotFound
from pipelines.storage import Storage


@dataclass(frozen=True)
class Problem:
    """One difference between what was written and what stands in storage.

    Attributes:
        path: the file, relative to the dataset.
        row_group: index of the damaged row group; None where the fault is not inside one.
        rows: first and last row of the damaged row group, counted in the file; None likewise.
        message: the fault in words.
    """

    path: str
    row_group: int | None
    rows: tuple[int, int] | None
    message: str

    def __str__(self) -> str:
        if self.row_group is None or self.rows is None:
            return f"{self.path}: {self.message}"
        return f"{self.path}, row group {self.row_group} (rows {self.rows[0]} to {self.rows[1]}): {self.message}"


def show(reference: str, *, samples: int = 0) -> dict[str, Any]:
    """Return what a version holds: counts per split and class, mean and standard deviation, sources, history.

    Args:
        reference: `DATASET` or `DATASET@v3`.
        samples: how many rows of each split to add, without their images.
    """
    dataset = open_dataset(reference)
    catalog = dataset.catalog
    splits = {}
    for name in dataset.splits:
        part = catalog["splits"][name]
        splits[name] = {
            "rows": part["rows"],
            "bytes": part["bytes"],
            "shards": len(dataset.shards(name)),
            "row_groups": len(dataset.row_groups(name)),
            "fingerprint": part["fingerprint"],
            "unlabelled": part["unlabelled"],
            "labels": {label: part["labels"].get(label, 0) for label in dataset.classes},
        }
        if samples:
            splits[name]["samples"] = _samples(dataset, name, samples)
    first = "train" if catalog["splits"].get("train", {}).get("rows") else next(iter(dataset.splits), "")
    mean, std = dataset.mean_std(first) if first and dataset.num_rows(first) else ((), ())
    return {
        "uri": dataset.uri,
        "version": dataset.version,
        "versions": list_versions(dataset.storage),
        "stage": catalog.get("stage"),
        "run_id": catalog["run_id"],
        "key": catalog.get("key"),
        "task": dataset.task,
        "rows": catalog["rows"],
        "classes": dataset.classes,
        "fingerprint": dataset.fingerprint,
        "splits": splits,
        "mean": list(mean),
        "std": list(std),
        "counts": catalog["counts"],
        "sources": catalog["sources"],
        "locations": catalog["locations"],
        "patches": sum(entry["rows"] for entry in catalog["patches"]),
        "preprocess": dataset.preprocess,
        "privacy": catalog.get("privacy", {}),
        "audits": [dataset.storage.address(entry["path"]) for entry in catalog.get("audits", [])],
        "history": history(dataset.storage),
    }


def history(storage: Storage) -> list[dict[str, Any]]:
    """Return one line per version: its number, the stage and run that made it, its rows; purged ones say so."""
    lines = []
    for version in list_versions(storage):
        try:
            catalog = read_version(storage, version) or {}
        except InputError as error:
            lines.append({"version": version, "note": error.what})
            continue
        lines.append({"version": version, **{name: catalog.get(name) for name in ("stage", "run_id", "rows")}})
    return lines


def files(reference: str, split: str = "") -> list[str]:
    """Return the addresses of the live files of a dataset's split, or of predictions; see `Dataset.files`.

    Without a name it is the only split there is, else `train`.
    """
    opened = open_dataset(reference, stage_format=None)
    only = opened.splits[0] if len(opened.splits) == 1 else "train"
    return opened.files(split or only)


def quarantined(dataset: Dataset) -> list[dict[str, Any]]:
    """Return every refused member of a dataset with its reason."""
    rows: list[dict[str, Any]] = []
    for file in dataset.quarantine_files():
        table = open_parquet(dataset.storage, file.path).read()
        rows += with_later_columns(table, QUARANTINE_SCHEMA).to_pylist()
    return rows


def verify(dataset: Dataset) -> Iterator[Problem]:
    """Yield every difference between what the catalog says and what stands in storage; none means all is whole.

    Each shard, shard list, patch and quarantine file is read whole. For a damaged shard the row groups are read one
    by one, to say which of them lost rows.
    """
    whole = True
    for problem in _verify_files(dataset):
        whole = False
        yield problem
    if whole:  # else rows cannot all be read, and that they do not add up is no news
        yield from _verify_fingerprints(dataset)


def _verify_files(dataset: Dataset) -> Iterator[Problem]:
    catalog = dataset.catalog
    tables = [
        *catalog["shard_lists"],
        *catalog["patches"],
        *listings_of(catalog),
        *catalog.get("audits", []),
        *catalog.get(TAKEN, []),
    ]
    for entry in tables:
        yield from _verify_bytes(dataset.storage, entry["path"], entry["bytes"], entry["sha256"])
    try:
        shards, quarantine = dataset.shards(), dataset.quarantine_files()
    except (DataError, NotFound):
        return  # a list itself is damaged, as said above
    for file in quarantine:
        yield from _verify_bytes(dataset.storage, file.path, file.bytes, file.sha256)
    for shard in shards:
        yield from _verify_shard(dataset, shard)


def _verify_bytes(storage: Storage, path: str, size: int, sha256: str) -> Iterator[Problem]:
    try:
        data = storage.read(path)
    except NotFound:
        yield Problem(path, None, None, "the file is missing")
        return
    if len(data) != size:
        yield Problem(path, None, None, f"the file has {len(data)} bytes; {size} were written")
    elif hashlib.sha256(data).hexdigest() != sha256:
        yield Problem(path, None, None, "the bytes are not those that were written: SHA-256 differs")


def _verify_shard(dataset: Dataset, shard: ShardFile) -> Iterator[Problem]:
    outside = list(_verify_bytes(dataset.storage, shard.path, shard.bytes, shard.sha256))
    if not outside:
        return
    inside = []
    try:
        parquet = open_parquet(dataset.storage, shard.path)
        inside = list(_damaged_groups(parquet, shard))
    except NotFound:
        pass
    except DataError:
        outside = [Problem(shard.path, None, None, f"{outside[0].message}; its footer cannot be read, so no row can")]
    if inside:
        yield from inside
    else:
        yield from outside


def _damaged_groups(parquet: pq.ParquetFile, shard: ShardFile) -> Iterator[Problem]:
    first = 0
    for index, size in enumerate(shard.row_groups):
        rows = (first, first + size - 1)
        first += size
        try:
            table = parquet.read_row_group(index)
        except (pa.ArrowInvalid, OSError, IndexError) as error:
            yield Problem(shard.path, index, rows, f"a page is damaged: {error}")
            continue
        wanted = ["image", "image_id", "stored_sha256"]
        if not set(wanted) <= set(table.schema.names):
            return  # the fault is in the footer's names, and the file's hash tells of it
        for row in table.select(wanted).to_pylist():
            if hashlib.sha256(row["image"]["bytes"]).hexdigest() != row["stored_sha256"]:
                yield Problem(shard.path, index, rows, f"image {row['image_id']} has other bytes than were written")


def _verify_fingerprints(dataset: Dataset) -> Iterator[Problem]:
    """Check that the live rows add up to what the catalog says, patches applied, and that each image has one."""
    place = f"_versions/v{dataset.version:06d}.json"
    ids = []
    identity = ["image_id", "source_sha256", "stored_sha256", "label", *dataset.catalog["carried"]]
    for split in dataset.splits:
        table = dataset.table(split, identity)
        ids += table.column("image_id").chunks
        hashes = (row_fingerprint(row, split, dataset.catalog["carried"]) for row in table.to_pylist())
        if (found := to_hex(add(hashes))) != dataset.split_fingerprint(split):
            message = (
                f"the {table.num_rows} live rows of split {split!r} have fingerprint {found};"
                f" the catalog says {dataset.num_rows(split)} rows and {dataset.split_fingerprint(split)}"
            )
            yield Problem(place, None, None, message)
    counts = pa.chunked_array(ids, pa.string()).value_counts()
    for row in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        yield Problem(place, None, None, f"image {row['values']} has {row['counts']} live rows")


def _samples(dataset: Dataset, split: str, number: int) -> list[dict[str, Any]]:
    """Return rows spread evenly over a split."""
    table = dataset.table(split, ["image_id", "key", "label", "width", "height"])
    wanted = np.unique(np.linspace(0, max(table.num_rows - 1, 0), min(number, table.num_rows)).astype(np.int64))
    return list(table.take(wanted).to_pylist())
