"""What the columns of a Parquet file of images hold: which is which, and the values of all but the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.user_table import column_values
from pipelines.errors import InputError
from pipelines.sources.byte_stream import MAX_RATIO, RATIO_FREE_BYTES
from pipelines.sources.columns import Columns
from pipelines.sources.labels import Label, read_label

MAX_IMAGE_BYTES = 64 * 2**20
_BATCH_ROWS = 64
"""Images made out of a column at a time, where so many fit into `MAX_IMAGE_BYTES`."""
_IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content", "data")
_LABEL_NAMES = ("label", "labels", "class", "fine_label", "category", "target", "cls")


class Layout(NamedTuple):
    """Where images, labels and what else travels are in a file."""

    image: str
    is_struct: bool
    label: str
    names: tuple[str, ...]
    """Class names of integer labels; empty where labels are text, or numbers without names."""
    carried: tuple[str, ...]
    """Further columns of plain values, which travel as text."""

    @property
    def image_leaf(self) -> str:
        """The dotted path of the images' bytes."""
        return f"{self.image}.bytes" if self.is_struct else self.image


def find_layout(schema: pa.Schema, columns: Columns, where: str) -> Layout:
    """Return which columns hold images and labels.

    Raises:
        InputError: there is no such column, or more than one that could be meant.
    """
    holds = {field.name: _holds_bytes(field.type) for field in schema}
    if columns.image:
        if not holds.get(columns.image):
            raise InputError(
                f"{where} has no column {columns.image!r} of encoded images; it has {', '.join(schema.names)}",
                mend="name another with image_column",
            )
        image = columns.image
    else:
        candidates = [name for name in _IMAGE_NAMES if holds.get(name)] or [name for name in holds if holds[name]]
        if not candidates:
            raise InputError(
                f"{where} has no column of encoded images; it has {', '.join(schema.names)}",
                mend="images are bytes, or struct<bytes, path> as Hugging Face `datasets` writes them",
            )
        if candidates[0] not in _IMAGE_NAMES and len(candidates) > 1:
            raise InputError(
                f"{where} has {len(candidates)} columns of bytes: {', '.join(candidates)}",
                mend="name one with image_column",
            )
        image = candidates[0]
    label = columns.label or next((name for name in _LABEL_NAMES if name in schema.names and name != image), "")
    if label and label not in schema.names:
        raise InputError(
            f"{where} has no column {label!r}; it has {', '.join(schema.names)}", mend="name another with label_column"
        )
    if label and pa.types.is_nested(kind := schema.field(label).type) and not _holds_names(kind):
        raise InputError(
            f"{where}: column {label!r} holds {kind}, and labels are names or lists of names",
            mend="name another column with label_column",
        )
    carried = tuple(field.name for field in schema if field.name not in (image, label) and _is_plain(field.type))
    return Layout(image, pa.types.is_struct(schema.field(image).type), label, _class_names(schema, label), carried)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    return not (pa.types.is_nested(kind) or _holds_bytes(kind) or isinstance(kind, pa.BaseExtensionType))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_names(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and not pa.types.is_nested(kind.value_type))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the names behind integer labels, as `datasets` keeps them in the file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[label]
        of_list = feature.get("feature") if isinstance(feature, dict) else feature[0]
        return tuple(map(str, (of_list or feature)["names"]))
    except (KeyError, ValueError, TypeError, IndexError):
        return ()


def group_cells(parquet: pq.ParquetFile, group: int, layout: Layout, where: str) -> list[tuple[str | None, ...]]:
    """Return what stands in the further columns of each row, as text; nothing where it is null or empty."""
    if not layout.carried:
        return [()] * int(parquet.metadata.row_group(group).num_rows)
    table = parquet.read_row_group(group, columns=list(layout.carried))
    columns = ([_cell(value) for value in column_values(table[name], name, where)] for name in layout.carried)
    return list(zip(*columns, strict=True))


def _cell(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def group_labels(parquet: pq.ParquetFile, group: int, layout: Layout, separator: str, where: str) -> list[Label]:
    """Return the label of each row of a row group."""
    if not layout.label:
        return [None] * int(parquet.metadata.row_group(group).num_rows)
    values = column_values(parquet.read_row_group(group, columns=[layout.label]).column(0), layout.label, where)
    return [read_label(_named(value, layout.names), separator) for value in values]


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name behind an integer label, or the names behind a list of them."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None  # -1 means unlabelled there
    return value


def own_names(parquet: pq.ParquetFile, layout: Layout, where: str) -> list[str]:
    """Return a name for every row: its own path where all rows have one and no two the same, else its number."""
    number = int(parquet.metadata.num_rows)
    numbers = [f"{row:06d}" for row in range(number)]
    kind = parquet.schema_arrow.field(layout.image).type
    if not layout.is_struct or kind.get_field_index("path") < 0:
        return numbers
    cells = parquet.read(columns=[f"{layout.image}.path"]).column(0).combine_chunks()
    paths = column_values(cells.field("path"), f"{layout.image}.path", where)
    own = [PurePosixPath(name).as_posix() if name else "" for name in paths]
    return own if all(own) and len(set(own)) == number else numbers


def image_column(parquet: pq.ParquetFile, group: int, layout: Layout) -> pq.ColumnChunkMetaData:
    """Return what the footer says of a row group's images."""
    facts = parquet.metadata.row_group(group)
    columns = (facts.column(number) for number in range(facts.num_columns))
    found: pq.ColumnChunkMetaData = next(column for column in columns if column.path_in_schema == layout.image_leaf)
    return found


def bomb_fault(column: pq.ColumnChunkMetaData) -> tuple[str, str]:
    """Return (reason, message) when a row group's images unpack to far more than they take, else two empty texts."""
    packed, size = column.total_compressed_size, column.total_uncompressed_size
    if size > RATIO_FREE_BYTES and size > MAX_RATIO * max(1, packed):
        return "BOMB_RATIO", f"the {packed:,} bytes of its row group's images would unpack to {size:,}"
    return "", ""


def batch_rows(column: pq.ColumnChunkMetaData) -> int:
    """Return how many rows of a row group's images may be unpacked at once."""
    size: int = column.total_uncompressed_size // max(1, column.num_values)
    if column.has_dictionary_page and column.dictionary_page_offset:
        # a row is a number there, and any may stand for as much as is in the dictionary
        saved = max(0, column.total_uncompressed_size - column.total_compressed_size)
        size = max(size, column.data_page_offset - column.dictionary_page_offset + saved)
    return max(1, min(_BATCH_ROWS, MAX_IMAGE_BYTES // max(1, size)))
