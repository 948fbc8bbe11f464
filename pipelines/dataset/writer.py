"""Writes one unit's rows as Parquet shards, one or more per split, and its refused members as quarantine rows.

The bytes of a file depend on the rows alone, never on time, host or attempt; the attempt is only in its name.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.fingerprint import add, row_hash, to_hex
from pipelines.dataset.receipt import QuarantineFile, ShardFile, UnitReport
from pipelines.dataset.schema import LATER_COLUMNS, OUR_COLUMNS, QUARANTINE_SCHEMA, SHARD_SCHEMA
from pipelines.dataset.tables import MAX_PACKED_BYTES, encode_table, open_writer
from pipelines.storage import Storage

MAX_GROUP_ROWS = 512
MAX_GROUP_BYTES = 2 << 20
"""A row group ends before either is passed, so that a window of 512 groups stays near 1 GB."""
MAX_SHARD_BYTES = 64 << 20
"""A shard whose row groups have come to this is put, and the next part begun: a unit may hold any number of bytes."""


class ShardWriter:
    """Writes the shards and quarantine file of one attempt at one unit; they are invisible until a catalog names them.

    Args:
        storage: the dataset's root.
        run_id: the run the files belong to.
        unit: number of the unit within the run.
        attempt: a name no other attempt has; it is part of every file name.
        schema: the rows' schema; columns that are not ours are carried and enter the fingerprint.
        only_part: number of the one part to write for each split, however large; None for as many as there need be.
    """

    def __init__(
        self,
        storage: Storage,
        run_id: str,
        unit: int,
        attempt: str,
        *,
        schema: pa.Schema = SHARD_SCHEMA,
        only_part: int | None = None,
    ) -> None:
        self._storage = storage
        self._run_id = run_id
        self._unit = unit
        self._attempt = attempt
        self._schema = schema
        self._only_part = only_part
        self._shards: dict[str, _Shard] = {}
        self._done: list[ShardFile] = []
        self._parts: Counter[str] = Counter()
        """Per split, how many parts are done."""
        self._quarantine: list[dict[str, Any]] = []

    def append(self, split: str, row: Mapping[str, Any]) -> None:
        """Add one row; `stored_sha256` is computed where the row has none, and later columns are null where left out.

        Raises:
            KeyError: a column of the schema is missing from the row; that is a bug of the caller.
        """
        if split not in self._shards:
            self._shards[split] = _Shard(split, self._schema)
        shard = self._shards[split]
        if shard.has_no_room(row):
            shard.flush()
            # asked between row groups only: where a part ends changes neither them nor the order of samples
            if self._only_part is None and shard.size_bytes >= MAX_SHARD_BYTES:
                path, data = self._end(self._shards.pop(split))
                self._storage.put(path, data)
                shard = self._shards[split] = _Shard(split, self._schema)
        shard.append(row)

    def quarantine(self, row: Mapping[str, Any]) -> None:
        """Add one refused member: values for the columns of `QUARANTINE_SCHEMA`, null where left out."""
        unknown = row.keys() - set(QUARANTINE_SCHEMA.names)
        if unknown or not row.get("reason"):
            raise KeyError(f"a quarantine row needs a reason and no other columns than ours; it has {sorted(row)}")
        self._quarantine.append({name: row.get(name) for name in QUARANTINE_SCHEMA.names})

    def close(self) -> UnitReport:
        """Write all files and return what they are; call it once, then `write_receipt`."""
        self._storage.put_all(dict(self._end(shard) for shard in self._shards.values()))
        files = sorted(self._done, key=lambda file: file.split)  # the parts of a split stay in their order
        counts = {"written": sum(file.rows for file in files), "quarantined": len(self._quarantine)}
        reasons = Counter(row["reason"] for row in self._quarantine)
        counts |= {f"quarantined.{reason}": number for reason, number in sorted(reasons.items())}
        quarantine = []
        if self._quarantine:
            path = f"quarantine/{self._run_id}-{self._unit:06d}-{self._attempt}.parquet"
            quarantine.append(write_quarantine(self._storage, path, self._unit, self._quarantine))
        return UnitReport(self._unit, self._attempt, files, quarantine, counts)

    def _end(self, shard: _Shard) -> tuple[str, memoryview]:
        """Return the path and the bytes of a shard that gets no more rows, having noted it as done."""
        part = self._parts[shard.split] if self._only_part is None else self._only_part
        name = f"part-{self._unit:06d}-{self._attempt}" + (f"-{part}" if part else "")
        path = f"data/{self._run_id}/{shard.split}/{name}.parquet"
        data = shard.close()
        self._done.append(shard.describe(path, self._unit, data))
        self._parts[shard.split] += 1
        return path, data


class _Shard:
    """One shard being written: the row group at hand as rows, everything before it as encoded bytes."""

    def __init__(self, split: str, schema: pa.Schema) -> None:
        self.split = split
        self._schema = schema
        self._names = frozenset(schema.names)
        self._carried = [name for name in schema.names if name not in OUR_COLUMNS]
        self._later = dict.fromkeys(name for name in schema.names if name in LATER_COLUMNS)
        self._sink = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._group_bytes = 0
        self._groups: list[int] = []
        self._hashes: list[int] = []
        self._labels: Counter[str] = Counter()
        self._unlabelled = 0

    def has_no_room(self, row: Mapping[str, Any]) -> bool:
        """Return whether the row group at hand must be flushed before a row."""
        size = self._group_bytes + len(row["image"]["bytes"])
        return bool(self._rows) and (len(self._rows) == MAX_GROUP_ROWS or size > MAX_GROUP_BYTES)

    @property
    def size_bytes(self) -> int:
        """Return how large the flushed row groups are as they were encoded."""
        return self._sink.tell()

    def append(self, row: Mapping[str, Any]) -> None:
        data = row["image"]["bytes"]
        whole = {**self._later, **row}
        if "stored_sha256" not in row:
            whole["stored_sha256"] = hashlib.sha256(data).hexdigest()
        if whole.keys() != self._names:
            odd = sorted(whole.keys() ^ self._names)
            raise KeyError(f"the row and the shard schema differ in {odd}")
        self._rows.append(whole)
        self._group_bytes += len(data)
        self._hashes.append(row_fingerprint(whole, self.split, self._carried))
        for name in label_names(whole["label"]):
            self._labels[name] += 1
        self._unlabelled += whole["label"] is None

    def flush(self) -> None:
        """End the row group at hand."""
        if self._writer is None:
            packs = self._group_bytes <= MAX_PACKED_BYTES * len(self._rows)
            self._writer = open_writer(self._sink, self._schema, packs_images=packs)
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._groups.append(len(self._rows))
        self._rows = []
        self._group_bytes = 0

    def close(self) -> memoryview:
        """Return the whole file."""
        if self._rows:
            self.flush()
        assert self._writer is not None, "a shard has at least the row for which it was made"
        self._writer.close()
        return self._sink.getbuffer()  # a copy would hold a unit's bytes twice

    def describe(self, path: str, unit: int, data: memoryview) -> ShardFile:
        """Return what is known of the file once it stands under a path."""
        return ShardFile(
            path=path,
            split=self.split,
            unit=unit,
            rows=sum(self._groups),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            fingerprint=to_hex(add(self._hashes)),
            row_groups=tuple(self._groups),
            labels=dict(sorted(self._labels.items())),
            unlabelled=self._unlabelled,
        )


def row_fingerprint(row: Mapping[str, Any], split: str, carried: Sequence[str]) -> int:
    """Return the row hash of a row that holds at least the identity, label and carried columns."""
    return row_hash(
        row["image_id"],
        row["source_sha256"],
        row["stored_sha256"],
        row["label"],
        split,
        {name: row[name] for name in carried},
    )


def label_names(label: str | float | list[str] | None) -> list[str]:
    """Return the class names in a label; a number (regression) and null name none."""
    if isinstance(label, str):
        return [label]
    return list(label) if isinstance(label, list) else []


def write_quarantine(storage: Storage, path: str, unit: int, rows: Sequence[Mapping[str, Any]]) -> QuarantineFile:
    """Write quarantine rows as one file; rows lacking a column hold null there."""
    data = encode_table(pa.Table.from_pylist(list(rows), schema=QUARANTINE_SCHEMA))
    storage.put(path, data)
    return QuarantineFile(path, unit, len(rows), len(data), hashlib.sha256(data).hexdigest())
