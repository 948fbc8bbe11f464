"""What privacy rules took out of each image: kinds and sizes, never what was said there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.tables import encode_table, open_parquet, open_writer
from pipelines.errors import AlreadyExists
from pipelines.ingest.config import PrivacyConfig
from pipelines.ingest.privacy import Box
from pipelines.ingest.stored import StoredImage
from pipelines.sources.base import Member
from pipelines.storage import Storage

MAX_TABLE_BYTES = 64 * 2**20
"""At which a table is closed and another one begun; it is in memory while it is written."""

AUDIT_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("is_encoded", pa.bool_()),  # true: the stored bytes were made from pixels alone
        pa.field("removed", pa.list_(pa.struct([pa.field("kind", pa.string()), pa.field("bytes", pa.int64())]))),
        pa.field("regions", pa.list_(pa.list_(pa.float64()))),  # [x, y, width, height] in pixels of the upright source
        pa.field("region_method", pa.string()),  # fill, pixelate or blur; null where no region was changed
    ]
)


def audit_row(member: Member, image: StoredImage, regions: Sequence[Box], privacy: PrivacyConfig) -> dict[str, Any]:
    """Return the row of one stored image."""
    return {
        "image_id": member.image_id,
        "is_encoded": image.is_encoded,
        "removed": [{"kind": block.kind, "bytes": block.size} for block in image.removed],
        "regions": [list(box) for box in regions],
        "region_method": privacy.region_method if regions else None,
    }


def write_unit_audit(store: Storage, run_id: str, unit: int, attempt: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the rows of one attempt at a unit and return the file's path; only `merge_audits` reads it."""
    path = f"audit/{run_id}-{unit:06d}-{attempt}.parquet"
    store.put(path, encode_table(pa.Table.from_pylist(list(rows), schema=AUDIT_SCHEMA)))
    return path


def merge_audits(store: Storage, run_id: str, receipts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write the audits of all units as few tables, named by their content; return what the catalog says of them.

    Empty where no privacy rule applied. The units' own files are left for `clean_run`.
    """
    paths = (receipt["audit"] for receipt in receipts if receipt.get("audit"))
    return [_merge(store, run_id, itertools.chain([path], paths)) for path in paths]


def _merge(store: Storage, run_id: str, paths: Iterator[str]) -> dict[str, Any]:
    """Write one table of the audits that come next, until it is large enough."""
    sink, rows = io.BytesIO(), 0
    with open_writer(sink, AUDIT_SCHEMA) as writer:
        for path in paths:
            table = open_parquet(store, path).read()
            writer.write_table(table)
            rows += table.num_rows
            if sink.tell() >= MAX_TABLE_BYTES:
                break
    return _write(store, run_id, sink.getvalue(), rows)


def without_rows(
    store: Storage, run_id: str, entries: Sequence[Mapping[str, Any]], image_ids: Collection[str]
) -> list[dict[str, Any]]:
    """Write a run's audits anew without some images, which do not come in; return what the catalog says of them."""
    left_out = pa.array(sorted(image_ids), pa.string())
    result = []
    for entry in entries:
        table = open_parquet(store, entry["path"]).read()
        kept = table.filter(pc.invert(pc.is_in(table.column("image_id"), value_set=left_out)))
        if kept.num_rows == table.num_rows:
            result.append(dict(entry))
        elif kept.num_rows:
            result.append(_write(store, run_id, encode_table(kept), kept.num_rows))
    return result


def _write(store: Storage, run_id: str, data: bytes, rows: int) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    path = f"audit/{run_id}-{digest[:16]}.parquet"
    with contextlib.suppress(AlreadyExists):
        store.create(path, data)
    return {"run_id": run_id, "path": path, "sha256": digest, "bytes": len(data), "rows": rows}
