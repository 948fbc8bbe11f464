"""The list of a run's files: a small Parquet table, named by its content, shared by every later version."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.dataset.receipt import QuarantineFile, ShardFile
from pipelines.dataset.schema import SHARD_LIST_SCHEMA
from pipelines.dataset.tables import decode_table, encode_table
from pipelines.errors import AlreadyExists, DataError
from pipelines.storage import Storage


def write_shard_list(
    storage: Storage, run_id: str, files: Sequence[ShardFile], quarantine: Sequence[QuarantineFile] = ()
) -> dict[str, Any]:
    """Write the list of a run's shards and quarantine files; return what a catalog says of it.

    Equal lists have equal names, so two drivers of one run do not disturb each other.
    """
    rows = [_shard_row(file) for file in sorted(files, key=lambda file: (file.split, file.unit))]
    rows += [_quarantine_row(file) for file in sorted(quarantine, key=lambda file: (file.unit, file.path))]
    data = encode_table(pa.Table.from_pylist(rows, schema=SHARD_LIST_SCHEMA))
    digest = hashlib.sha256(data).hexdigest()
    path = f"data/{run_id}/_shards-{digest[:16]}.parquet"
    with contextlib.suppress(AlreadyExists):  # the name is the content
        storage.create(path, data)
    return {"path": path, "sha256": digest, "bytes": len(data), "files": len(rows)}


def read_shard_list(storage: Storage, entry: Mapping[str, Any]) -> tuple[list[ShardFile], list[QuarantineFile]]:
    """Return the shards, ordered by (split, unit), and the quarantine files that a catalog's entry lists.

    Raises:
        DataError: the list is not what the catalog says.
    """
    data = storage.read(entry["path"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DataError(
            f"shard list {storage.address(entry['path'])} is not what was written: its SHA-256 differs",
            mend="restore the file from a backup",
        )
    shards, quarantine = [], []
    for row in decode_table(data, entry["path"]).to_pylist():
        if row["split"]:
            shards.append(ShardFile.from_json({**row, "labels": json.loads(row["labels"])}))
        else:
            quarantine.append(QuarantineFile(row["path"], row["unit"], row["rows"], row["bytes"], row["sha256"]))
    return shards, quarantine


def _shard_row(file: ShardFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "split": file.split,
        "unit": file.unit,
        "rows": file.rows,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "fingerprint": file.fingerprint,
        "row_groups": list(file.row_groups),
        "labels": json.dumps(file.labels, sort_keys=True, ensure_ascii=False),
        "unlabelled": file.unlabelled,
    }


def _quarantine_row(file: QuarantineFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "split": "",
        "unit": file.unit,
        "rows": file.rows,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "fingerprint": "",
        "row_groups": [],
        "labels": "{}",
        "unlabelled": 0,
    }
