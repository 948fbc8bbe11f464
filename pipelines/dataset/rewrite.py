"""Writes shards anew with their patches applied, so that no patch stands on them any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.dataset.overrides import Overrides, ShardOverrides, apply_overrides
from pipelines.dataset.receipt import ShardFile
from pipelines.dataset.schema import SHARD_SCHEMA, with_later_columns
from pipelines.dataset.tables import open_parquet
from pipelines.dataset.writer import ShardWriter
from pipelines.errors import DataError
from pipelines.storage import Storage


def rewrite_shard(
    storage: Storage,
    run_id: str,
    file: ShardFile,
    attempt: str,
    changes: ShardOverrides,
    *,
    schema: pa.Schema = SHARD_SCHEMA,
    part: int = 0,
) -> ShardFile | None:
    """Write one shard anew with changes applied, under a new attempt; return it, or None where no row is left.

    It comes to one shard again, however large: callers hold one beside the other.

    Args:
        storage: root of the dataset.
        run_id: the run that the new file belongs to.
        file: the shard that stands.
        attempt: a name no other attempt has.
        changes: row index -> field -> value; `{"live": False}` drops the row.
        schema: schema of the rows.
        part: number among the shards of its unit and split, which must not be written under one name.

    Raises:
        DataError: the standing shard is damaged.
    """
    parquet = open_parquet(storage, file.path)
    writer = ShardWriter(storage, run_id, file.unit, attempt, schema=schema, only_part=part)
    first = 0
    for index in range(parquet.num_row_groups):
        try:
            table = parquet.read_row_group(index)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"row group {index} of {file.path} is damaged: {error}",
                where=storage.address(file.path),
                mend="ingest again",
            ) from error
        table = with_later_columns(table, schema)
        for row in apply_overrides(table, changes, first).to_pylist():
            writer.append(file.split, row)
        first += table.num_rows
    written = writer.close().files
    return written[0] if written else None


def rewrite_touched(
    storage: Storage,
    run_id: str,
    files: Sequence[ShardFile],
    attempt: str,
    overrides: Overrides,
    *,
    schema: pa.Schema = SHARD_SCHEMA,
) -> list[ShardFile]:
    """Return the shards with every changed one written anew; those that lost all rows are left out."""
    result: list[ShardFile] = []
    parts: Counter[tuple[str, int]] = Counter()
    for file in files:
        changes = overrides.get(file.path)
        part = parts[file.split, file.unit]
        parts[file.split, file.unit] += 1
        new = rewrite_shard(storage, run_id, file, attempt, changes, schema=schema, part=part) if changes else file
        if new is not None:
            result.append(new)
    return result


def drop_rows(found: Sequence[tuple[str, int]]) -> Overrides:
    """Return the changes that drop rows given as (shard path, row index)."""
    overrides: dict[str, dict[int, dict[str, Any]]] = {}
    for shard, row in found:
        overrides.setdefault(shard, {})[row] = {"live": False}
    return overrides
