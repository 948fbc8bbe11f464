"""Images in Parquet: one file or a folder of them, as Hugging Face `datasets` and this project write it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from pipelines.dataset.schema import OUR_COLUMNS
from pipelines.dataset.user_table import cell_fault
from pipelines.errors import DataError, InputError
from pipelines.sources.base import Entry, Listing, Member, Source, Unit, image_id, member_of
from pipelines.sources.columns import Columns
from pipelines.sources.labels import names_of
from pipelines.sources.names import MAX_NAME_BYTES, SPLIT_WORDS, is_plain, name_fault, path_parts
from pipelines.sources.parquet_columns import (
    MAX_IMAGE_BYTES,
    Layout,
    batch_rows,
    bomb_fault,
    find_layout,
    group_cells,
    group_labels,
    image_column,
    own_names,
)
from pipelines.sources.units import MAX_UNIT_BYTES, MAX_UNIT_ROWS, deal, unit_bytes
from pipelines.storage import Storage, StoredFile

MAX_GROUP_RANGES = 32
"""Each range of a row group is read from the group's start: so many come to 16 times its bytes."""
_MAGIC = b"PAR1"
_BUFFER_BYTES = 8 * 2**20
"""Read at once of a column, which may be as large as its row group."""


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
                layout = find_layout(parquet.schema_arrow, self._columns, self._storage.address(path))
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
        self, parquet: pq.ParquetFile, layout: Layout, number: int, path: str, split: str | None
    ) -> Iterator[Entry]:
        where = self._storage.address(path)
        names = own_names(parquet, layout, where)
        row = 0
        for group in range(parquet.num_row_groups):
            facts = parquet.metadata.row_group(group)
            reason, message = bomb_fault(image_column(parquet, group, layout))
            size = max(1, facts.total_byte_size // max(1, facts.num_rows))
            labels = group_labels(parquet, group, layout, self._columns.separator, where)
            cells = group_cells(parquet, group, layout, where)
            if len(labels) != facts.num_rows or len(cells) != facts.num_rows:
                raise pa.ArrowInvalid(f"row group {group} has {len(labels)} labels for {facts.num_rows} rows")
            for place in range(facts.num_rows):
                key = f"{path}!/{names[row]}"
                entry = Entry(
                    key=key,
                    occurrence=0,
                    image_id=image_id(self.name, key.encode(), 0),
                    size=size,
                    label=labels[place],
                    given_split=split,
                    reason=reason,
                    message=message,
                    detail=(number, group, place),
                    carried=cells[place],
                )
                yield entry if reason else _judged(entry, names[row], layout)
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
        """Deal row groups to units, as cards are dealt, so that units mix the files; large groups in ranges of rows."""
        entries = self.listing().entries
        pieces = [piece for group in _by_group(entries) for piece in _ranges(group)]
        return deal(pieces, sum(entry.size for entry in entries) // unit_bytes(entries))

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        for entries in _by_group(unit.entries):
            number, group, _ = entries[0].detail
            yield from self._read_group(self._files[number].path, group, entries)

    def _read_group(self, path: str, group: int, entries: Sequence[Entry]) -> Iterator[Member]:
        wanted = {entry.detail[2]: entry for entry in entries if not entry.reason}
        yield from (member_of(entry, None) for entry in entries if entry.reason)
        try:
            with self._parquet(path) as parquet:
                for row, data in self._images(parquet, path, group, wanted.keys()) if wanted else ():
                    yield _member(wanted.pop(row), data)
        except (pa.ArrowInvalid, OSError, DataError) as error:
            fault = f"row group {group} of {path} cannot be read: {error}"
            reason = "CHECKSUM" if "CRC checksum" in str(error) else "CORRUPT"
            for entry in wanted.values():
                yield member_of(entry, None, reason, fault)
            return
        for entry in wanted.values():
            yield member_of(entry, None, "CHANGED", "the file has fewer rows than when it was listed")

    def _images(
        self, parquet: pq.ParquetFile, path: str, group: int, wanted: Collection[int]
    ) -> Iterator[tuple[int, bytes | None]]:
        """Yield (row, its image) for the wanted rows of a row group, one at a time; those before are passed over.

        Arrow offers no way to begin within a row group. Passing over 400 MB takes it 0.2 s.
        """
        layout = find_layout(parquet.schema_arrow, self._columns, self._storage.address(path))
        length = batch_rows(image_column(parquet, group, layout))
        first, last = min(wanted), max(wanted)
        start = 0
        for batch in parquet.iter_batches(length, row_groups=[group], columns=[layout.image_leaf]):
            end = start + batch.num_rows
            if end > first:
                cells = batch.column(0).field("bytes") if layout.is_struct else batch.column(0)
                yield from ((row, cells[row - start].as_py()) for row in range(start, end) if row in wanted)
            if end > last:
                return
            start = end

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


def _by_group(entries: Iterable[Entry]) -> Iterable[list[Entry]]:
    """Return entries by the row group that they lie in."""
    groups: dict[tuple[int, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.detail[:2], []).append(entry)
    return groups.values()


def _ranges(group: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Cut a row group into even ranges of rows, each of which a unit may hold."""
    size = sum(entry.size for entry in group)
    number = max(-(-len(group) // MAX_UNIT_ROWS), -(-size // MAX_UNIT_BYTES))
    length = -(-len(group) // min(number, MAX_GROUP_RANGES))
    yield from (group[start : start + length] for start in range(0, len(group), length))


def _judged(entry: Entry, name: str, layout: Layout) -> Entry:
    """Return the entry as it is, or with the reason why its own name or one of its cells must not be used."""
    if not is_plain(name.encode()):
        reason, message = name_fault(name.encode())
        if reason:
            short = len(entry.key) - len(name) + MAX_NAME_BYTES
            key = entry.key if len(entry.key) <= short else f"{entry.key[:short]}..."
            return entry._replace(key=key, reason=reason, message=message)
    said = [(layout.label, label) for label in names_of(entry.label)]
    said += [(column, cell) for column, cell in zip(layout.carried, entry.carried, strict=True) if cell]
    for column, text in said:
        reason, message = cell_fault({column: text})
        if reason:
            nothing = (None,) * len(entry.carried)  # what is refused for its size must not travel
            return entry._replace(label=None, carried=nothing, reason=reason, message=message)
    return entry


def _member(entry: Entry, data: bytes | None) -> Member:
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


def _carrying(entry: Entry, names: Sequence[str], wanted: Sequence[str]) -> Entry:
    """Return the entry with its values in the order of all files' columns."""
    if list(names) == list(wanted):
        return entry
    held = dict(zip(names, entry.carried, strict=True))
    return entry._replace(carried=tuple(held.get(name) for name in wanted))
