"""Patches as they are read: values that stand in place of those in a shard, merged while reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.tables import decode_table
from pipelines.errors import DataError
from pipelines.storage import Storage

RowChanges: TypeAlias = dict[str, Any]
"""Field -> value of one row; `live` (default true) says whether the row counts at all."""

ShardOverrides: TypeAlias = dict[int, RowChanges]
"""Row index in a shard -> its changes."""

Overrides: TypeAlias = dict[str, ShardOverrides]
"""Path of a shard -> its changes."""


def load_overrides(storage: Storage, entries: Sequence[Mapping[str, Any]]) -> Overrides:
    """Return what the patches of a catalog change, later patches over earlier ones.

    Raises:
        DataError: a patch file is not what the catalog says.
    """
    overrides: Overrides = {}
    for entry in entries:
        data = storage.read(entry["path"])
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise DataError(
                f"patch {storage.address(entry['path'])} is not what was written: its SHA-256 differs",
                mend="restore the file from a backup",
            )
        for row in decode_table(data, entry["path"]).to_pylist():
            overrides.setdefault(row["shard"], {}).setdefault(row["row"], {})[row["field"]] = json.loads(row["new"])
    return overrides


def live_rows(num_rows: int, changes: ShardOverrides, first: int = 0) -> npt.NDArray[np.int64] | None:
    """Return which of `num_rows` rows from `first` on live, as indices from 0; None where all of them do."""
    dead = [row - first for row, fields in changes.items() if not fields.get("live", True)]
    dead = [row for row in dead if 0 <= row < num_rows]
    if not dead:
        return None
    mask = np.ones(num_rows, dtype=bool)
    mask[dead] = False
    return np.flatnonzero(mask)


def apply_overrides(table: pa.Table, changes: ShardOverrides, first: int = 0) -> pa.Table:
    """Return the live rows of a table that holds a shard's rows from `first` on, with changed values in place."""
    if not changes:
        return table
    for name in table.column_names:
        new = {row - first: fields[name] for row, fields in changes.items() if name in fields}
        new = {row: value for row, value in new.items() if 0 <= row < table.num_rows}
        if new:
            values = table.column(name).to_pylist()
            for row, value in new.items():
                values[row] = value
            field = table.schema.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    live = live_rows(table.num_rows, changes, first)
    return table if live is None else table.take(live)
