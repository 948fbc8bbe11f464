"""What a source held when it was read: a small table beside the shards, against which its next listing is compared."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.tables import decode_table, encode_table
from pipelines.errors import AlreadyExists, DataError
from pipelines.storage import Storage

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.binary(16)),  # the id's 32 hex digits as bytes
        pa.field("token", pa.string()),  # what the listing knew of the member's content; null: nothing
    ]
)


@dataclass(frozen=True)
class News:
    """How a listing differs from what a source held before.

    Attributes:
        new: which of its entries (N,) were not there.
        changed: which of them (N,) were there with other content.
        gone: ids that are no longer listed.
        table: what to keep for the next time: the listing, and after it what is gone, for it may come back.
    """

    new: npt.NDArray[np.bool_]
    changed: npt.NDArray[np.bool_]
    gone: list[str]
    table: pa.Table


def make_table(image_ids: Sequence[str], tokens: Sequence[str | None]) -> pa.Table:
    """Return the table of a listing."""
    # from one buffer: pa.array looks at every value and loads pandas for it
    whole = pa.py_buffer(bytes.fromhex("".join(image_ids)))
    ids = pa.FixedSizeBinaryArray.from_buffers(SCHEMA.field("image_id").type, len(image_ids), [None, whole])
    return pa.table([ids, pa.array(tokens, pa.string())], schema=SCHEMA)


def compare(known: pa.Table, listed: pa.Table) -> News:
    """Compare a listing with what was known; a member of which nothing was known counts as unchanged."""
    before = known.column("image_id").combine_chunks()
    now = listed.column("image_id").combine_chunks()
    place = pc.index_in(now, value_set=before)
    differs = pc.not_equal(known.column("token").take(place), listed.column("token"))
    gone = known.filter(pc.invert(pc.is_in(before, value_set=now)))
    return News(
        new=place.is_null().to_numpy(zero_copy_only=False),
        changed=pc.fill_null(differs, False).to_numpy(),
        gone=[image_id.hex() for image_id in gone.column("image_id").to_pylist()],
        table=pa.concat_tables([listed, gone]).combine_chunks(),
    )


def write_listing(storage: Storage, run_id: str, table: pa.Table) -> dict[str, Any]:
    """Write the table beside a run's shards, named by its content; return what the catalog says of it."""
    data = encode_table(table)
    digest = hashlib.sha256(data).hexdigest()
    path = f"data/{run_id}/_listing-{digest[:16]}.parquet"
    with contextlib.suppress(AlreadyExists):  # the name is the content
        storage.create(path, data)
    return {"path": path, "sha256": digest, "bytes": len(data), "rows": table.num_rows}


def read_listing(storage: Storage, entry: Mapping[str, Any]) -> pa.Table:
    """Return the table that a catalog names.

    Raises:
        DataError: it is not what was written.
    """
    data = storage.read(entry["path"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DataError(
            f"listing {storage.address(entry['path'])} is not what was written: its SHA-256 differs",
            mend="restore the file from a backup",
        )
    return decode_table(data, entry["path"])
