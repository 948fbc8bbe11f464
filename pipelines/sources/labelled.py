"""Labels, splits and further columns from a table, for images whose folders do not say them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from pipelines.dataset.schema import OUR_COLUMNS
from pipelines.dataset.user_table import parse_rows, read_bytes
from pipelines.errors import InputError
from pipelines.sources.base import Entry, Listing, Member, Source, Unit
from pipelines.sources.names import SPLIT_WORDS

_KEYS = ("key", "file", "filename", "file_name", "path")
_LABELS = ("label", "class")
_NO_ROW = "the table of labels has no row for this image"


@dataclass(frozen=True)
class LabelTable:
    """What a table says of each image."""

    address: str
    digest: str
    rows: Mapping[str, tuple[str | None, str | None, tuple[str | None, ...]]]
    """Key -> (label, given split, carried values)."""
    carried: tuple[str, ...]
    """Names of the further columns, in the table's order."""


def read_labels(address: str) -> LabelTable:
    """Read a table of labels.

    Args:
        address: a CSV, TSV, JSONL or Parquet file with a column `key` (or file, filename, file_name, path: the image's
            path within the source), a column `label` (or class; empty means unlabelled), if wanted `split`, and any
            further columns, which travel into the dataset as text.

    Raises:
        InputError: it is no such table, names an image twice, or a split that is none.
    """
    data = read_bytes(address)
    rows: dict[str, tuple[str | None, str | None, tuple[str | None, ...]]] = {}
    key_column = label_column = ""
    carried: tuple[str, ...] = ()
    for number, row in enumerate(parse_rows(data, address), start=1):
        if not key_column:
            key_column, label_column = _pick(row, _KEYS, address), _pick(row, _LABELS, address)
            carried = tuple(name for name in row if name not in (key_column, label_column, "split"))
            if taken := sorted(OUR_COLUMNS.intersection(carried)):
                raise InputError(
                    f"{address} has a column {taken[0]!r}, which is the name of a dataset column",
                    mend="rename it or leave it out",
                )
        key = str(row.get(key_column) or "")
        if not key or key in rows:
            what = f"names {key} twice" if key else "names no image"
            raise InputError(f"{address} row {number} {what}", mend="give every image one row")
        rows[key] = (_text(row.get(label_column)), _split(row.get("split"), address, number), _cells(row, carried))
    if not rows:
        raise InputError(f"{address} has no rows: it labels nothing")
    splits = {split is None for _, split, _ in rows.values()}
    if len(splits) > 1:
        key = next(key for key, (_, split, _) in rows.items() if split is None)
        raise InputError(f"{address} gives some images a split and not {key}", mend="give all of them one, or none")
    return LabelTable(address, hashlib.sha256(data).hexdigest(), rows, carried)


class LabelledSource(Source):
    """A source whose labels, splits and further columns come from a table; images without a row are refused."""

    def __init__(self, inner: Source, table: LabelTable) -> None:
        super().__init__(inner.uri, inner.name)
        self._inner = inner
        self._table: LabelTable | None = table
        self._address, self._digest = table.address, table.digest
        self.carried = table.carried

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_table": None}  # what a unit needs of it is in its entries

    @override
    def _list(self) -> Listing:
        assert self._table is not None, "only the driver lists"
        listing = self._inner.listing()
        entries = tuple(self._labelled(entry, self._table) for entry in listing.entries)
        if all(entry.reason for entry in entries):
            known = next(iter(self._table.rows))
            raise InputError(
                f"{self._address} names none of the {len(entries):,} images of {self.uri}",
                where=f"the table has {known}, the source {entries[0].key}",
                mend="keys are paths within the source, as `resnet data show` prints them",
            )
        return replace(listing, entries=entries)

    def _labelled(self, entry: Entry, table: LabelTable) -> Entry:
        row = table.rows.get(entry.key)
        if row is None:
            empty = (None,) * len(table.carried)
            reason, message = (entry.reason, entry.message) if entry.reason else ("UNLABELLED", _NO_ROW)
            return entry._replace(label=None, given_split=None, reason=reason, message=message, carried=empty)
        label, split, cells = row
        return entry._replace(label=label, given_split=split, carried=cells)

    @override
    def listing_digest(self) -> str:
        return hashlib.sha256(f"{self._inner.listing_digest()}\0{self._digest}".encode()).hexdigest()

    @override
    def units(self) -> list[Unit]:
        entries = {entry.image_id: entry for entry in self.listing().entries}
        return [
            Unit(unit.index, tuple(entries[entry.image_id] for entry in unit.entries)) for unit in self._inner.units()
        ]

    @override
    def units_of(self, entries: Sequence[Entry]) -> list[Unit]:
        wanted = {entry.image_id: entry for entry in entries}
        inner = [entry for entry in self._inner.listing().entries if entry.image_id in wanted]
        units = self._inner.units_of(inner)
        return [Unit(unit.index, tuple(wanted[entry.image_id] for entry in unit.entries)) for unit in units]

    @override
    def tokens(self) -> list[str]:
        """Return the members' tokens joined with what the table says of them: a new label is a change too."""
        said = [json.dumps([entry.label, entry.carried]) for entry in self.listing().entries]
        short = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in said]
        return [f"{token}-{label}" for token, label in zip(self._inner.tokens(), short, strict=True)]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        return self._inner.open(unit)


def _pick(row: Mapping[str, Any], names: tuple[str, ...], address: str) -> str:
    found = [name for name in names if name in row]
    if not found:
        raise InputError(
            f"{address} has the columns {', '.join(row)}, and none of {', '.join(names)}",
            mend="a table of labels has a column key and a column label",
        )
    return found[0]


def _text(value: object) -> str | None:
    if isinstance(value, (list, dict)):
        raise InputError(f"label {value!r} is a list; an image has one label")
    return None if value is None or value == "" else str(value)


def _split(value: object, address: str, number: int) -> str | None:
    if value is None or value == "":
        return None
    split = SPLIT_WORDS.get(str(value).lower())
    if split is None:
        raise InputError(f"{address} row {number} has split {value!r}", mend="use train, val and test")
    return split


def _cells(row: Mapping[str, Any], carried: tuple[str, ...]) -> tuple[str | None, ...]:
    return tuple(None if row.get(name) in (None, "") else str(row[name]) for name in carried)
