"""Labels, splits and further columns from a table, for images whose folders do not say them."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from typing_extensions import override

from pipelines.dataset.label_text import SEPARATOR
from pipelines.dataset.schema import OUR_COLUMNS
from pipelines.dataset.user_table import cell_fault, parse_rows, read_bytes
from pipelines.errors import InputError
from pipelines.sources.base import Entry, Listing, Member, Source, Unit, image_id, member_of
from pipelines.sources.labels import Label, make_names, names_of, read_label
from pipelines.sources.names import MAX_NAME_BYTES, SPLIT_WORDS, name_fault
from pipelines.sources.units import MAX_UNIT_ROWS

_KEYS = ("key", "file", "filename", "file_name", "path")
_LABELS = ("label", "class", "labels")
_NO_ROW = "the table of labels has no row for this image"
_READ_ALL_THE_SAME = ("UNLABELLED", "LABEL_CONFLICT")
"""Reasons of the table's against whole images: their hash and picture are for whoever is to label them."""
_NOWHERE = -1
"""Offset of entries that stand for a row of the table and for no bytes of the source."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:(//|:|[a-z])", re.IGNORECASE)
"""`http://...`, `file:///...`, `simplecache::...`, `pipe:id`; not `C:\\...`, which is a path."""


class LabelRow(NamedTuple):
    """What one row says; with a reason, why it is not used."""

    label: Label
    split: str | None
    cells: tuple[str | None, ...]
    """Values of the carried columns."""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class LabelTable:
    """What a table says of each image."""

    address: str
    digest: str
    rows: Mapping[str, LabelRow]
    """By key; of several rows with one key the first, refused where they do not agree."""
    repeats: tuple[tuple[str, LabelRow], ...]
    """(key, the refused row): every further row of a key."""
    carried: tuple[str, ...]
    """Names of the further columns, in the table's order."""
    warnings: tuple[str, ...] = ()


def read_labels(address: str, *, column: str = "", separator: str = "") -> LabelTable:
    """Read a table of labels.

    Labels that differ only in how their accents are written (NFC, NFD) or in white space around them are one label, in
    its NFC form without the space.

    Args:
        address: a CSV, TSV, JSONL or Parquet file with a column `key` (or file, filename, file_name, path: the image's
            path within the source), a column `label` (or class, labels; empty means unlabelled), if wanted `split`,
            and any further columns, which travel into the dataset as text. A list holds several labels.
        column: the column of labels where it has another name.
        separator: stands between the labels of one image in text; in a column `labels` it is `|` unless given.

    Raises:
        InputError: it is no such table, a row names no image, or a split is none.
    """
    data = read_bytes(address)
    rows: dict[str, LabelRow] = {}
    repeats: list[tuple[str, LabelRow]] = []
    key_column = label_column = ""
    without = 0  # the first row that gives no split
    carried: tuple[str, ...] = ()
    for number, row in enumerate(parse_rows(data, address), start=1):
        if not key_column:
            key_column = _pick(row, _KEYS, address)
            label_column = _pick(row, (column,) if column else _LABELS, address)
            carried = tuple(name for name in row if name not in (key_column, label_column, "split"))
            if taken := sorted(OUR_COLUMNS.intersection(carried)):
                raise InputError(
                    f"{address} has a column {taken[0]!r}, which is the name of a dataset column",
                    mend="rename it or leave it out",
                )
        key = str(row.get(key_column) or "")
        if not key:
            raise InputError(f"{address} row {number} names no image", mend="give every image one row")
        reason, message = cell_fault(row)
        if reason:
            said = LabelRow(None, None, (None,) * len(carried), reason, f"row {number} of the table: {message}")
        else:
            split = _split(row.get("split"), address, number)
            without = without or (0 if split else number)
            cut = separator or (SEPARATOR if label_column == "labels" else "")
            said = LabelRow(read_label(row.get(label_column), cut), split, _cells(row, carried))
        if key in rows:
            rows[key], said = _repeated(rows[key], said, number)
            repeats.append((key, said))
        else:
            rows[key] = said
    if not rows:
        raise InputError(f"{address} has no rows: it labels nothing")
    splits = {row.split is None for row in rows.values() if not row.reason}
    if len(splits) > 1:
        raise InputError(
            f"{address} gives some images a split and not that of row {without}", mend="give all of them one, or none"
        )
    rows, warnings = _merged_twins(rows)
    return LabelTable(address, hashlib.sha256(data).hexdigest(), rows, tuple(repeats), carried, warnings)


def _repeated(first: LabelRow, again: LabelRow, number: int) -> tuple[LabelRow, LabelRow]:
    """Return the first row of a key and a further one: that is refused, and both are where they do not agree."""
    if again.reason:
        return first, again
    if not first.reason and (first.label, first.split) == (again.label, again.split):
        return first, again._replace(reason="DUP_PATH", message=f"row {number} names the image again, as before")
    message = f"row {number} gives the image another label or split than a row before"
    first = first if first.reason else first._replace(reason="LABEL_CONFLICT", message=message)
    return first, again._replace(reason="LABEL_CONFLICT", message=message)


def _merged_twins(rows: Mapping[str, LabelRow]) -> tuple[dict[str, LabelRow], tuple[str, ...]]:
    """Give labels that look alike one form: NFC, no space around it; labels without such a twin stay as written."""
    written = {name for row in rows.values() for name in names_of(row.label)}
    forms = Counter(map(_form, written))
    twins = sorted(label for label, number in forms.items() if number > 1)
    if not twins:
        return dict(rows), ()
    merged = {key: row._replace(label=_twin(row.label, forms)) for key, row in rows.items()}
    return merged, tuple(
        f"label {label!r} is written in {forms[label]} ways (accents, white space): taken as one" for label in twins
    )


def _twin(label: Label, forms: Mapping[str, int]) -> Label:
    if not isinstance(label, str):
        return label and make_names(_twin(name, forms) for name in label)
    form = _form(label)
    return form if forms[form] > 1 else label


def _form(label: str) -> str:
    return unicodedata.normalize("NFC", label.strip() or label)


class LabelledSource(Source):
    """A source whose labels, splits and further columns come from a table.

    Images without a row are refused, and so are rows that contradict each other or lead out of the source; a row
    whose image is not there is counted in a warning, since a table may label more than one folder.
    """

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
        by_form = {unicodedata.normalize("NFC", key): key for key in self._table.rows}
        named = [self._named(entry.key, self._table, by_form) for entry in listing.entries]
        entries = [
            _labelled(entry, self._table.rows[key] if key else None, self.carried)
            for entry, key in zip(listing.entries, named, strict=True)
        ]
        if not any(named):
            known = next(iter(self._table.rows))
            raise InputError(
                f"{self._address} names none of the {len(entries):,} images of {self.uri}",
                where=f"the table has {known}, the source {entries[0].key}" if self.tells_keys else "",
                mend="keys are paths within the source, as `resnet data show` prints them",
            )
        met = set(named)
        absent = [(key, row) for key, row in self._table.rows.items() if key not in met]
        faulty = [(key, fault) for key, row in absent if (fault := _refused(key, row)).reason]
        rows = self._row_entries([*self._table.repeats, *faulty], Counter(entry.key for entry in entries))
        warnings = [*listing.warnings, *self._table.warnings]
        if number := len(absent) - len(faulty):
            key = next(key for key, row in absent if not _refused(key, row).reason)
            such = f", such as {key}" if self.tells_keys else ""
            warnings.append(f"{number:,} rows of {self._address} name no image of the source{such}")
        return replace(listing, entries=(*entries, *rows), warnings=tuple(warnings))

    def _named(self, key: str, table: LabelTable, by_form: Mapping[str, str]) -> str:
        """Return the table's key of an image, or ""; macOS writes accents in names otherwise than most tables."""
        return key if key in table.rows else by_form.get(unicodedata.normalize("NFC", key), "")

    def _row_entries(self, refused: Sequence[tuple[str, LabelRow]], taken: Counter[str]) -> Iterator[Entry]:
        """Yield an entry for each row of the table that is refused for itself, numbered after the images of its key."""
        for key, row in refused:
            occurrence = taken[key]
            taken[key] += 1
            yield Entry(
                key=key if len(key) <= MAX_NAME_BYTES else f"{key[:MAX_NAME_BYTES]}...",
                occurrence=occurrence,
                image_id=image_id(self.name, key.encode(errors="surrogatepass"), occurrence),
                size=0,
                label=row.label,
                given_split=row.split,
                reason=row.reason,
                message=row.message,
                flags=(),
                offset=_NOWHERE,
                extent=0,
                detail=(),
                carried=row.cells,
            )

    @override
    def listing_digest(self) -> str:
        return hashlib.sha256(f"{self._inner.listing_digest()}\0{self._digest}".encode()).hexdigest()

    @override
    def units(self) -> list[Unit]:
        return self._relabelled(self.listing().entries, self._inner.units())

    @override
    def units_of(self, entries: Sequence[Entry]) -> list[Unit]:
        wanted = {entry.image_id for entry in entries}
        inner = [entry for entry in self._inner.listing().entries if entry.image_id in wanted]
        return self._relabelled(entries, self._inner.units_of(inner) if inner else [])

    def _relabelled(self, entries: Sequence[Entry], units: Sequence[Unit]) -> list[Unit]:
        """Return units of the inner source with these entries in place of its own, then those of the table's rows."""
        by_id = {entry.image_id: entry for entry in entries}
        ours = [tuple(by_id[entry.image_id] for entry in unit.entries) for unit in units]
        rows = [entry for entry in entries if entry.offset == _NOWHERE]
        ours += [tuple(rows[start : start + MAX_UNIT_ROWS]) for start in range(0, len(rows), MAX_UNIT_ROWS)]
        return [Unit(index, part) for index, part in enumerate(ours)]

    @override
    def tokens(self) -> list[str]:
        """Return the members' tokens joined with what the table says of them: a new label is a change too."""
        entries = self.listing().entries
        said = [json.dumps([entry.label, entry.carried, entry.reason]) for entry in entries]
        short = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in said]
        inner = self._inner.tokens()
        inner += ["row"] * (len(entries) - len(inner))  # rows of the table that have no image come last
        return [f"{token}-{label}" for token, label in zip(inner, short, strict=True)]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        if unit.entries[0].offset == _NOWHERE:
            return (member_of(entry, None) for entry in unit.entries)
        refused = {entry.image_id: entry for entry in unit.entries if entry.reason in _READ_ALL_THE_SAME}
        if not refused:
            return self._inner.open(unit)
        bare = [entry._replace(reason="") if entry.image_id in refused else entry for entry in unit.entries]
        return _refused_by_table(self._inner.open(replace(unit, entries=tuple(bare))), refused)


def _refused_by_table(members: Iterable[Member], refused: Mapping[str, Entry]) -> Iterator[Member]:
    for member in members:
        entry = refused.get(member.image_id)
        yield member if entry is None else replace(member, reason=entry.reason, message=entry.message)


def _labelled(entry: Entry, row: LabelRow | None, carried: Sequence[str]) -> Entry:
    if row is None:
        row = LabelRow(None, None, (None,) * len(carried), "UNLABELLED", _NO_ROW)
    reason, message = (entry.reason, entry.message) if entry.reason else (row.reason, row.message)
    return entry._replace(label=row.label, given_split=row.split, carried=row.cells, reason=reason, message=message)


def _refused(key: str, row: LabelRow) -> LabelRow:
    """Return the row of an image that the source has not, with the reason where its key must not be looked for."""
    if row.reason:
        return row
    if _ADDRESS.match(key):
        return row._replace(reason="URL_DENIED", message="an address, and not a path within the source; not fetched")
    if name_fault(key.encode(errors="surrogatepass"))[0] in ("UNSAFE_NAME", "NAME_LONG"):
        return row._replace(reason="UNSAFE_PATH", message="the path leads out of the source; it is not looked for")
    return row


def _pick(row: Mapping[str, Any], names: tuple[str, ...], address: str) -> str:
    found = [name for name in names if name in row]
    if not found:
        raise InputError(
            f"{address} has the columns {', '.join(row)}, and none of {', '.join(names)}",
            mend="a table of labels has a column key and a column label",
        )
    return found[0]


def _split(value: object, address: str, number: int) -> str | None:
    if value is None or value == "":
        return None
    split = SPLIT_WORDS.get(str(value).lower())
    if split is None:
        raise InputError(f"{address} row {number} has split {value!r}", mend="use train, val and test")
    return split


def _cells(row: Mapping[str, Any], carried: tuple[str, ...]) -> tuple[str | None, ...]:
    return tuple(None if row.get(name) in (None, "") else str(row[name]) for name in carried)
