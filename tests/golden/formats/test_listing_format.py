"""The table of a source's listing, as it was first written, is still read; what is written today has its shape."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from pipelines.ingest.listed import compare, make_table, read_listing, write_listing
from pipelines.storage import Storage

SAMPLE = Path(__file__).with_name("listing.v1.parquet")
IDS = [f"{number:032x}" for number in (1, 2, 3)]
TOKENS = ["812-9f3a2b1c", "77-1700000000.000000", None]


def test_the_sample_is_read_and_compared() -> None:
    entry = {"path": SAMPLE.name, "sha256": hashlib.sha256(SAMPLE.read_bytes()).hexdigest()}
    table = read_listing(Storage.open(SAMPLE.parent), entry)
    assert table.to_pylist() == [
        {"image_id": bytes.fromhex(image_id), "token": token} for image_id, token in zip(IDS, TOKENS, strict=True)
    ]
    news = compare(table, make_table([IDS[2], IDS[1], "f" * 32], ["new", "78-1", "1"]))
    assert news.new.tolist() == [False, False, True]
    assert news.changed.tolist() == [False, True, False]  # of the first nothing was known
    assert news.gone == [IDS[0]]
    assert news.table.column("token").to_pylist() == ["new", "78-1", "1", TOKENS[0]]


def test_it_is_written_as_it_was(tmp_path: Path) -> None:
    entry = write_listing(Storage.open(tmp_path), "run-0", make_table(IDS, TOKENS))
    written = (tmp_path / entry["path"]).read_bytes()
    assert pq.read_schema(pa.BufferReader(written)).equals(pq.read_schema(SAMPLE))
    assert (entry["bytes"], entry["rows"]) == (len(written), 3)
    assert write_listing(Storage.open(tmp_path), "run-0", make_table(IDS, TOKENS)) == entry
    with pytest.raises(DataError, match="is not what was written"):
        read_listing(Storage.open(tmp_path), {**entry, "sha256": "0" * 64})
