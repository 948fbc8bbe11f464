"""Tables that people write by hand or export from a labelling tool: CSV, TSV, JSONL or Parquet, as plain rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.storage import Storage


def read_rows(address: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV, TSV, JSONL or Parquet file; cells of text tables are text, also those of digits.

    Raises:
        InputError: it is missing, none of these, or a damaged one.
    """
    yield from parse_rows(read_bytes(address), address)


def read_bytes(address: str) -> bytes:
    """Return the bytes of a file at a path or an object store's address."""
    parent, _, name = address.rpartition("/")
    storage = Storage.open(parent or ("/" if address.startswith("/") else "."))
    if not storage.exists(name):
        raise InputError(f"table {address} does not exist", mend="check the path; it is taken from here")
    return storage.read(name)


def parse_rows(data: bytes, address: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table's bytes; the ending of its address says what it is.

    Raises:
        InputError: it is no such table, or a damaged one.
    """
    suffix = PurePosixPath(address).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from pq.read_table(pa.BufferReader(data)).to_pylist()
        elif suffix == ".jsonl":
            for line in data.decode("utf-8-sig").splitlines():
                if line.strip():
                    yield dict(json.loads(line))
        elif suffix in (".csv", ".tsv"):
            text = io.StringIO(data.decode("utf-8-sig"), newline="")
            reader = csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(f"{address} line {reader.line_num} has another number of fields than its header")
                yield row
        else:
            raise InputError(f"{address} is no table", mend="give a .csv, .tsv, .jsonl or .parquet file")
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise InputError(f"{address} cannot be read as a {suffix} table: {error}") from error
