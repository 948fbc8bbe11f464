"""Tables that people write by hand or export from a labelling tool: CSV, TSV, JSONL or Parquet, as plain rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.storage import Storage

MAX_CELL_BYTES = 2**17
"""Longer cells are no label, path or name; csv's own limit."""
_BATCH_ROWS = 65_536


def read_rows(address: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV, TSV, JSONL or Parquet file; cells of text tables are text, also those of digits.

    Raises:
        InputError: it is missing, none of these, damaged, or has a cell that `cell_fault` refuses.
    """
    for number, row in enumerate(parse_rows(read_bytes(address), address), start=1):
        reason, message = cell_fault(row)
        if reason:
            raise InputError(f"{address} row {number}: {message} ({reason})", mend="mend or remove that row")
        yield row


def read_bytes(address: str) -> bytes:
    """Return the bytes of a file at a path or an object store's address."""
    parent, _, name = address.rpartition("/")
    storage = Storage.open(parent or ("/" if address.startswith("/") else "."))
    if not storage.exists(name):
        raise InputError(f"table {address} does not exist", mend="check the path; it is taken from here")
    return storage.read(name)


def cell_fault(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return (reason, message) when a row has a cell that no table means to hold, else two empty texts."""
    for name, value in row.items():
        if isinstance(value, str) and "\0" in value:
            return "NUL", f"its {name} has a NUL character: the file may be cut, or no text"
        if isinstance(value, str) and len(value) > MAX_CELL_BYTES:
            return "CELL_SIZE", f"its {name} has {len(value):,} characters; {MAX_CELL_BYTES:,} are allowed"
    return "", ""


def parse_rows(data: bytes, address: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table's bytes, faulty cells included; the ending of its address says what it is.

    Raises:
        InputError: it is no such table, or a damaged one.
    """
    suffix = PurePosixPath(address).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(data, address)
        elif suffix == ".jsonl":
            # not splitlines: a JSON text may hold other line ends than \n as they are
            for number, line in enumerate(_text(data, address).split("\n"), start=1):
                if line.strip():
                    yield _json_row(line, f"{address} line {number}")
        elif suffix in (".csv", ".tsv"):
            yield from _delimited_rows(_text(data, address), suffix, address)
        else:
            raise InputError(f"{address} is no table", mend="give a .csv, .tsv, .jsonl or .parquet file")
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{address} cannot be read as a {suffix} table: {error}", mend="fetch it again") from error


def _parquet_rows(data: bytes, address: str) -> Iterator[dict[str, Any]]:
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (AttributeError, TypeError, LookupError) as error:
        # extension types that others have registered (Ray's) read what a file says of them, and trip over it
        raise InputError(f"{address} has a column of a type that cannot be read: {error}") from error
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        columns = [column_values(batch.column(i), name, address) for i, name in enumerate(table.column_names)]
        for cells in zip(*columns, strict=True):
            yield dict(zip(table.column_names, cells, strict=True))


def column_values(column: pa.ChunkedArray | pa.Array, name: str, where: str) -> list[Any]:
    """Return a column's cells as Python's values.

    Raises:
        InputError: one has no such value: bytes that are not UTF-8 in text, a date outside Python's years 1 to 9999.
    """
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, LookupError) as error:  # LookupError: a time zone that nobody knows
        raise InputError(
            f"{where} has a cell in column {name!r} that cannot be read as {column.type}: {error}",
            mend="mend the cell, or leave the column out of the file",
        ) from error
    return values


def _text(data: bytes, address: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = error.start - data.rfind(b"\n", 0, error.start)
        raise InputError(
            f"{address} line {line}, byte {byte} is 0x{data[error.start]:02X}, which is not UTF-8",
            mend=f"save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 {address}",
        ) from error


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} cannot be read as a .jsonl table: {error}", mend="write one JSON object a line"
        ) from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is no JSON object", mend='write one object a line, {"key": ..., "label": ...}')
    return row


def _delimited_rows(text: str, suffix: str, address: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # too long a cell is that row's fault, not the file's
    delimiter = "\t" if suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or ())
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"{address} has two columns {twice[0]!r}", mend="rename or remove one of them")
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{address} line {reader.line_num} has another number of fields than its header")
            yield row
    except csv.Error as error:
        raise InputError(
            f"{address} line {reader.line_num} cannot be read as a {suffix} table: {error}",
            mend="a cell with quotes or line ends is quoted, and its own quotes are doubled",
        ) from error
