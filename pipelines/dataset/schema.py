"""The Arrow schemas of what a dataset stores: image rows, quarantine rows, patch rows and the list of shards."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa

from pipelines.errors import DataError, InputError

IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

LABEL_TYPES: dict[str, pa.DataType] = {
    "single": pa.string(),  # one class name
    "multi": pa.list_(pa.string()),  # any number of class names
    "regression": pa.float64(),  # a number
}
"""The type of `label` for each catalog `task`; null always means unlabelled."""

_BEFORE_LABEL = [pa.field("image", IMAGE_TYPE)]
_AFTER_LABEL = [
    pa.field("image_id", pa.string()),  # 32 hex digits of SHA-256(source, 0, key, 0, occurrence)
    pa.field("source", pa.string()),  # name of the source
    pa.field("key", pa.string()),  # path inside the source, as written there
    pa.field("occurrence", pa.int32()),  # rank among equal keys of one source
    pa.field("width", pa.int32()),  # stored pixels
    pa.field("height", pa.int32()),
    pa.field("source_format", pa.string()),
    pa.field("source_width", pa.int32()),  # pixels before the stored geometry, upright
    pa.field("source_height", pa.int32()),
    pa.field("source_sha256", pa.string()),  # 64 hex digits, of the bytes in the source
    pa.field("stored_sha256", pa.string()),  # 64 hex digits, of `image.bytes`
    pa.field("phash", pa.uint64()),  # difference hash, 8 x 8, of the grey picture
    pa.field("brightness", pa.float32()),  # mean of the grey picture, 0 (black) to 1 (white)
    pa.field("contrast", pa.float32()),  # standard deviation of the grey picture, 0 to 1 (0.5 is the most possible)
    pa.field("sharpness", pa.float32()),  # 0 (flat or out of focus) to 1 (edges everywhere)
    # sums are of the pixels handed to the encoder, or of those stored where the source's bytes are kept; of JPEGs kept
    # so from 256 px an estimate: the sums of the decoder's reduction, scaled to all pixels
    pa.field("channel_sum", pa.list_(pa.float64())),  # 3 sums over the pixels of value / 255
    pa.field("channel_square_sum", pa.list_(pa.float64())),  # 3 sums of (value / 255) squared, likewise
    pa.field("flags", pa.list_(pa.string())),  # remarks that did not stop the image, for example exif_invalid
    pa.field("source_bytes", pa.int64()),  # size of the file in the source
    pa.field("cropped_fraction", pa.float32()),  # share of the upright source's pixels that the stored crop cut away
]

LATER_COLUMNS = frozenset({"source_bytes", "cropped_fraction", "thumbnail", "accepted"})
"""Columns that files written by earlier versions lack; they read as null there."""

OUR_COLUMNS = frozenset(field.name for field in [*_BEFORE_LABEL, pa.field("label", pa.string()), *_AFTER_LABEL])

_HUGGING_FACE = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}}, separators=(",", ":"))


def make_shard_schema(task: str = "single", carried: Sequence[pa.Field] = ()) -> pa.Schema:
    """Return the schema of a shard for a task, with the columns carried from the source at the end.

    Raises:
        InputError: a carried column has the name of one of ours.
    """
    for field in carried:
        if field.name in OUR_COLUMNS:
            raise InputError(
                f"the source's column {field.name!r} has the name of a dataset column",
                mend="rename it in the source, or leave it out",
            )
    fields = [*_BEFORE_LABEL, pa.field("label", LABEL_TYPES[task]), *_AFTER_LABEL, *carried]
    return pa.schema(fields, metadata={"huggingface": _HUGGING_FACE})


def with_later_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema from a table that was read from a file, later ones as null where it lacks them.

    Raises:
        DataError: another column is missing.
    """
    for field in schema:
        if field.name in table.schema.names:
            continue
        if field.name not in LATER_COLUMNS:
            raise DataError(f"a file lacks the column {field.name!r}", mend="restore the file from a backup")
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names)


SHARD_SCHEMA = make_shard_schema()

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("key", pa.string()),
        pa.field("occurrence", pa.int32()),
        pa.field("image_id", pa.string()),
        pa.field("label", pa.string()),  # as written in the source; null means unlabelled
        pa.field("split", pa.string()),  # where it would have gone; null when that was not decided
        pa.field("reason", pa.string()),  # one code, for example TRUNCATED
        pa.field("message", pa.string()),
        pa.field("bytes_sha256", pa.string()),  # null when no bytes could be read
        pa.field("size_bytes", pa.int64()),
        pa.field(
            "thumbnail", pa.binary()
        ),  # JPEG or PNG, at most 96 a side; null where it does not decode, or must not
        pa.field("accepted", pa.string()),  # why the loss was accepted; null: it was not
    ]
)

PATCH_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("shard", pa.string()),  # path of the shard that holds the row
        pa.field("row", pa.int64()),  # index of the row in that shard
        pa.field("field", pa.string()),  # `label`, `flags` or `live`
        pa.field("old", pa.string()),  # JSON text
        pa.field("new", pa.string()),  # JSON text
        pa.field("reason", pa.string()),
    ]
)

SHARD_LIST_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("split", pa.string()),  # empty for quarantine files
        pa.field("unit", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("fingerprint", pa.string()),  # empty for quarantine files
        pa.field("row_groups", pa.list_(pa.int32())),  # rows of each row group, so that no footer need be read
        pa.field("labels", pa.string()),  # JSON object: class name -> rows
        pa.field("unlabelled", pa.int64()),
    ]
)
