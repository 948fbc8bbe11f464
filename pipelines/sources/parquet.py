"""Images in Parquet: one file or a folder of them, as Hugging Face `datasets` and this project write it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from pipelines.dataset.schema import OUR_COLUMNS
from pipelines.errors import DataError, InputError
from pipelines.sources.base import Entry, Listing, Member, Source, Unit, image_id, member_of
from pipelines.sources.columns import Columns
from pipelines.sources.labels import Label, read_label
from pipelines.sources.names import SPLIT_WORDS, path_parts
from pipelines.sources.units import unit_bytes
from pipelines.storage import Storage, StoredFile

MAX_IMAGE_BYTES = 64 * 2**20
_MAGIC = b"PAR1"
_BATCH_ROWS = 64
_BUFFER_BYTES = 8 * 2**20
"""Read at once of a column, which may be as large as its row group."""
_IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content", "data")
_LABEL_NAMES = ("label", "labels", "class", "fine_label", "category", "target", "cls")


class _Layout(NamedTuple):
    """Where images, labels and what else travels are in a file."""

    image: str
    is_struct: bool
    label: str
    names: tuple[str, ...]
    """Class names of integer labels; empty where labels are text, or numbers without names."""
    carried: tuple[str, ...]
    """Further columns of plain values, which travel as text."""


class ParquetSource(Source):
    """The rows of Parquet files; a key is FILE!/PATH with the row's own path, or FILE!/ROW where it has none."""

    def __init__(self, storage: Storage, uri: str, files: Sequence[StoredFile], name: str, columns: Columns) -> None:
        super().__init__(uri, name)
        self._storage = storage
        self._files = list(files)
        self._columns = columns

    @override
    def _list(self) -> Listing:
        splits = [_split_of(file.path) for file in self._files]
        is_given = all(splits)
        parts: list[tuple[tuple[str, ...], list[Entry]]] = []
        for number, file in enumerate(self._files):
            parts.append(self._entries(number, file.path, splits[number] if is_given else None))
        named = tuple(dict.fromkeys(name for names, _ in parts for name in names))
        self.carried = tuple(name for name in named if name not in OUR_COLUMNS)
        left_out = [name for name in named if name in OUR_COLUMNS]
        entries = tuple(_carrying(entry, names, self.carried) for names, part in parts for entry in part)
        words = f"the columns {', '.join(left_out)} of {self.uri} are not carried: the dataset has its own of that name"
        return Listing(entries, warnings=(words,) if left_out else ())

    def _entries(self, number: int, path: str, split: str | None) -> tuple[tuple[str, ...], list[Entry]]:
        """Return the names of a file's further columns, and its rows with what stands in them."""
        if self._storage.read(path, 0, len(_MAGIC)) != _MAGIC:  # Arrow looks at the end alone
            raise InputError(f"{self._storage.address(path)} is no whole Parquet file", mend="fetch it again")
        with self._parquet(path) as parquet:
            self._check_rows(parquet, self._files[number])
            try:
                layout = _layout(parquet.schema_arrow, self._columns, self._storage.address(path))
                return layout.carried, list(self._rows_of(parquet, layout, number, path, split))
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(
                    f"{self._storage.address(path)} is no whole Parquet file: {error}", mend="fetch it again"
                ) from error

    def _check_rows(self, parquet: pq.ParquetFile, file: StoredFile) -> None:
        """Refuse a file whose footer claims rows that it cannot hold, before anything is made for each of them."""
        facts = parquet.metadata
        groups = [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]
        if not 0 <= facts.num_rows == sum(groups) <= file.size or min(groups, default=0) < 0:
            raise InputError(
                f"{self._storage.address(file.path)} is no whole Parquet file: its {file.size:,} bytes claim"
                f" {facts.num_rows:,} rows, its row groups {sum(groups):,}",
                mend="fetch it again",
            )

    def _rows_of(
        self, parquet: pq.ParquetFile, layout: _Layout, number: int, path: str, split: str | None
    ) -> Iterator[Entry]:
        where = self._storage.address(path)
        names = _own_names(parquet, layout, where)
        row = 0
        for group in range(parquet.num_row_groups):
            facts = parquet.metadata.row_group(group)
            size = max(1, facts.total_byte_size // max(1, facts.num_rows))
            labels = _labels(parquet, group, layout, self._columns.separator, where)
            cells = _cells(parquet, group, layout, where)
            if len(labels) != facts.num_rows or len(cells) != facts.num_rows:
                raise pa.ArrowInvalid(f"row group {group} has {len(labels)} labels for {facts.num_rows} rows")
            for place in range(facts.num_rows):
                key = f"{path}!/{names[row]}"
                yield Entry(
                    key=key,
                    occurrence=0,
                    image_id=image_id(self.name, key.encode(), 0),
                    size=size,
                    label=labels[place],
                    given_split=split,
                    detail=(number, group, place),
                    carried=cells[place],
                )
                row += 1

    @override
    def listing_digest(self) -> str:
        digest = hashlib.sha256(json.dumps(self._columns[:2]).encode())
        for file in self._files:
            digest.update(f"\n{file.path}\0{file.size}\0{file.etag or f'{file.modified:.6f}'}".encode())
        return digest.hexdigest()

    @override
    def tokens(self) -> list[str]:
        """Return for each row the state of its file: of a folder that grew by a file only that one is read."""
        states = [f"{file.size}-{file.etag or f'{file.modified:.6f}'}" for file in self._files]
        return [states[entry.detail[0]] for entry in self.listing().entries]

    @override
    def units(self) -> list[Unit]:
        """Deal whole row groups to units, as cards are dealt: a row group is read once, and units mix the files."""
        entries = self.listing().entries
        groups: dict[tuple[int, ...], list[Entry]] = {}
        for entry in entries:
            groups.setdefault(entry.detail[:2], []).append(entry)
        total = sum(entry.size for entry in entries)
        number = max(1, min(len(groups), total // unit_bytes(entries)))
        hands: list[list[Entry]] = [[] for _ in range(number)]
        for place, group in enumerate(groups.values()):
            hands[place % number] += group
        return [Unit(index, tuple(hand)) for index, hand in enumerate(hands)]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        groups: dict[tuple[int, ...], list[Entry]] = {}
        for entry in unit.entries:
            groups.setdefault(entry.detail[:2], []).append(entry)
        for (number, group), entries in groups.items():
            yield from self._read_group(self._files[number].path, group, entries)

    def _read_group(self, path: str, group: int, entries: Sequence[Entry]) -> Iterator[Member]:
        wanted = {entry.detail[2]: entry for entry in entries}
        try:
            with self._parquet(path) as parquet:
                for row, data in enumerate(self._images(parquet, path, group)):
                    if (entry := wanted.pop(row, None)) is not None:
                        yield _member(entry, data)
        except (pa.ArrowInvalid, OSError, DataError) as error:
            fault = f"row group {group} of {path} cannot be read: {error}"
            reason = "CHECKSUM" if "CRC checksum" in str(error) else "CORRUPT"
            for entry in wanted.values():
                yield member_of(entry, None, reason, fault)
            return
        for entry in wanted.values():
            yield member_of(entry, None, "CHANGED", "the file has fewer rows than when it was listed")

    def _images(self, parquet: pq.ParquetFile, path: str, group: int) -> Iterator[bytes | None]:
        layout = _layout(parquet.schema_arrow, self._columns, self._storage.address(path))
        column = f"{layout.image}.bytes" if layout.is_struct else layout.image
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column]):
            cells = batch.column(0)
            yield from (cells.field("bytes") if layout.is_struct else cells).to_pylist()

    @contextlib.contextmanager
    def _parquet(self, path: str) -> Iterator[pq.ParquetFile]:
        with self._storage.open_file(path) as file:
            try:
                parquet = pq.ParquetFile(
                    file, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
                )
                _ = parquet.schema_arrow
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(
                    f"{self._storage.address(path)} is no whole Parquet file: {error}", mend="fetch it again"
                ) from error
            except (AttributeError, TypeError, ValueError, LookupError) as error:
                # extension types that others have registered (Ray's) read what a file says of them, and trip over it
                raise InputError(
                    f"{self._storage.address(path)} has a column of a type that cannot be read: {error}",
                    mend="write its images as bytes, or as struct<bytes, path>",
                ) from error
            yield parquet


def _member(entry: Entry, data: bytes | None) -> Member:
    if entry.reason:
        return member_of(entry, None)
    if data is None:
        return member_of(entry, None, "EMPTY", "the row has no image")
    if len(data) > MAX_IMAGE_BYTES:
        return member_of(entry, None, "TOO_LARGE", f"{len(data):,} bytes are more than 64 MB")
    return member_of(entry._replace(size=len(data)), data)


def _split_of(path: str) -> str | None:
    """Return the split that a file's name says: `train-00000-of-00002.parquet`, `test.parquet` or a folder `val/`."""
    *folders, name = path_parts(path)
    words = [name.partition(".")[0].partition("-")[0], *reversed(folders)]
    return next((SPLIT_WORDS[word.lower()] for word in words if word.lower() in SPLIT_WORDS), None)


def _layout(schema: pa.Schema, columns: Columns, where: str) -> _Layout:
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
    return _Layout(image, pa.types.is_struct(schema.field(image).type), label, _class_names(schema, label), carried)


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


def _values(column: pa.ChunkedArray | pa.Array, name: str, where: str) -> list[Any]:
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


def _cells(parquet: pq.ParquetFile, group: int, layout: _Layout, where: str) -> list[tuple[str | None, ...]]:
    """Return what stands in the further columns of each row, as text; nothing where it is null or empty."""
    if not layout.carried:
        return [()] * int(parquet.metadata.row_group(group).num_rows)
    table = parquet.read_row_group(group, columns=list(layout.carried))
    columns = ([_cell(value) for value in _values(table[name], name, where)] for name in layout.carried)
    return list(zip(*columns, strict=True))


def _cell(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _carrying(entry: Entry, names: Sequence[str], wanted: Sequence[str]) -> Entry:
    """Return the entry with its values in the order of all files' columns."""
    if list(names) == list(wanted):
        return entry
    held = dict(zip(names, entry.carried, strict=True))
    return entry._replace(carried=tuple(held.get(name) for name in wanted))


def _labels(parquet: pq.ParquetFile, group: int, layout: _Layout, separator: str, where: str) -> list[Label]:
    if not layout.label:
        return [None] * int(parquet.metadata.row_group(group).num_rows)
    values = _values(parquet.read_row_group(group, columns=[layout.label]).column(0), layout.label, where)
    return [read_label(_named(value, layout.names), separator) for value in values]


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name behind an integer label, or the names behind a list of them."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None  # -1 means unlabelled there
    return value


def _own_names(parquet: pq.ParquetFile, layout: _Layout, where: str) -> list[str]:
    """Return a name for every row: its own path where all rows have one and no two the same, else its number."""
    number = int(parquet.metadata.num_rows)
    numbers = [f"{row:06d}" for row in range(number)]
    kind = parquet.schema_arrow.field(layout.image).type
    if not layout.is_struct or kind.get_field_index("path") < 0:
        return numbers
    cells = parquet.read(columns=[f"{layout.image}.path"]).column(0).combine_chunks()
    paths = _values(cells.field("path"), f"{layout.image}.path", where)
    own = [PurePosixPath(name).as_posix() if name else "" for name in paths]
    return own if all(own) and len(set(own)) == number else numbers
