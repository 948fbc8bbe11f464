"""Parquet as this project writes and reads it: page checksums written and verified, zstd on the columns.

zstd also on the bytes of small images: small JPEGs are mostly their headers, which repeat (4,000 of CIFAR-10: 3.6 MB to
1.1 MB). Photographs lose 1% of their size, which is not worth a quarter of a millisecond each.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError, NotFound
from pipelines.storage import Storage

_DICTIONARY = {"label", "source", "source_format", "flags.list.element", "split", "reason", "shard", "field"}


IMAGE_BYTES = "image.bytes"
MAX_PACKED_BYTES = 8 * 2**10
"""A shard's images are packed up to this mean size; 256 px photographs have 22 KB."""


def open_writer(sink: io.BytesIO, schema: pa.Schema, *, packs_images: bool = True) -> pq.ParquetWriter:
    """Return a Parquet writer whose bytes depend on the tables written to it alone.

    With `packs_images` False the bytes of images are written as they are.
    """
    columns = [path for field in schema for path in _leaf_paths(field)]
    return pq.ParquetWriter(
        sink,
        schema,
        write_page_checksum=True,
        compression={path: "NONE" if path == IMAGE_BYTES and not packs_images else "ZSTD" for path in columns},
        use_dictionary=[path for path in columns if path in _DICTIONARY],
        write_statistics=[path for path in columns if path != IMAGE_BYTES],
    )


def encode_table(table: pa.Table) -> bytes:
    """Return a small table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    with open_writer(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def open_parquet(storage: Storage, path: str) -> pq.ParquetFile:
    """Open a stored Parquet file so that a damaged page raises instead of giving other values.

    A local file is opened by pyarrow itself, which then reads without Python's global lock.

    Raises:
        NotFound: there is no such file.
        DataError: it is no Parquet file, or its footer is damaged.
    """
    if storage.is_local and not storage.exists(path):
        raise NotFound(f"{storage.address(path)} does not exist")
    return _open(pa.OSFile(storage.address(path)) if storage.is_local else storage.open_file(path), path)


def decode_table(data: bytes, name: str) -> pa.Table:
    """Return the whole table in the bytes of a Parquet file.

    Raises:
        DataError: a part of it is damaged.
    """
    file = _open(pa.BufferReader(data), name)
    try:
        return file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{name} is damaged: {error}", mend="restore the file from a backup") from error


def _open(file: BinaryIO | pa.NativeFile, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{name} cannot be read as Parquet: {error}", mend="run `resnet data verify` on its dataset"
        ) from error


def _leaf_paths(field: pa.Field) -> list[str]:
    """Return the dotted Parquet paths of a column's leaves."""
    if pa.types.is_struct(field.type):
        return [f"{field.name}.{path}" for child in field.type for path in _leaf_paths(child)]
    if pa.types.is_list(field.type):
        return [f"{field.name}.list.element"]
    return [field.name]
