"""What an append has to read: the members of a source that are new or changed, and what stands in their place."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from pipelines.dataset.inspect import quarantined
from pipelines.dataset.reader import Dataset
from pipelines.dataset.taken import read_taken, ruled_out_rows
from pipelines.errors import InputError
from pipelines.ingest.config import PrivacyConfig
from pipelines.ingest.listed import compare, make_table, read_listing
from pipelines.ingest.privacy import carried_columns
from pipelines.ingest.split import SplitPlan
from pipelines.sources.addresses import split_pattern
from pipelines.sources.base import Entry, Listing, Member, Source, Unit

logger = logging.getLogger(__name__)

SUPERSEDED, UNCHANGED, WITHHELD = "superseded", "unchanged", "withheld"


@dataclass(frozen=True)
class StandingRow:
    """A row that stands for a listed or vanished member: where it is, and its values as they were written."""

    image_id: str
    key: str
    split: str
    is_live: bool
    values: tuple[Any, ...]
    """What a member's row comes to (`row_values`)."""


@dataclass(frozen=True)
class KeptSplit(SplitPlan):
    """The dataset's own plan; a changed image stays in the split in which it stands."""

    kept: Mapping[str, str] = field(default_factory=dict)
    """image_id -> split."""

    @override
    def place(self, image: Entry | Member, carried: Sequence[str]) -> str:
        return self.kept.get(image.image_id) or super().place(image, carried)


class PartSource(Source):
    """Some members of a source, with the columns that the dataset carries (null where the source has none)."""

    def __init__(self, inner: Source, listing: Listing, carried: Sequence[str]) -> None:
        super().__init__(inner.uri, inner.name)
        self._inner = inner
        self.carried = tuple(carried)
        self.task = inner.task
        self.tells_keys = inner.tells_keys
        self._listing = listing

    @override
    def listing(self) -> Listing:
        assert self._listing is not None, "only the driver lists"
        return self._listing

    @override
    def _list(self) -> Listing:
        return self.listing()

    @override
    def listing_digest(self) -> str:
        return self._inner.listing_digest()

    @override
    def units(self) -> list[Unit]:
        entries = {entry.image_id: entry for entry in self.listing().entries}
        units = self._inner.units_of(self.listing().entries) if entries else []
        return [Unit(unit.index, tuple(entries[entry.image_id] for entry in unit.entries)) for unit in units]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        return self._inner.open(unit)


@dataclass(frozen=True)
class Update:
    """What an append reads, and what it knows of the rows that stand.

    Attributes:
        source: the new and changed members.
        split_plan: the dataset's plan, which places them.
        listing: the table of the whole listing, to be kept for the next time.
        replaced: image_id -> the live row that a changed member may take the place of.
        gone: live rows whose members are no longer in the source, of those that this listing covers.
        withheld: changed members that stay out because somebody took their image out of the dataset.
        remarks: sentences for people.
    """

    source: PartSource
    split_plan: KeptSplit
    listing: pa.Table
    replaced: dict[str, StandingRow]
    gone: list[StandingRow]
    withheld: int
    remarks: tuple[str, ...]

    def digest(self) -> str:
        """Return a digest of the members that are read, so that a run goes on only with the same ones."""
        ids = "\n".join(entry.image_id for entry in self.source.listing().entries)
        return hashlib.sha256(ids.encode()).hexdigest()


def find_update(dataset: Dataset, source: Source) -> Update:
    """Compare a source with what the dataset has read of it, by the listing alone.

    Raises:
        InputError: the source has columns that the dataset does not carry.
        ConfigError: the dataset is divided by a column that the source has not.
    """
    listing = source.listing()
    listed = make_table([entry.image_id for entry in listing.entries], source.tokens())
    remarks: list[str] = list(listing.warnings)
    is_known = source.name in dataset.catalog["sources"]
    news = compare(known_listing(dataset, source.name, remarks) if is_known else listed.slice(0, 0), listed)
    changed_ids = {entry.image_id for entry in compress(listing.entries, news.changed.tolist())}
    standing = standing_rows(dataset, {*changed_ids, *news.gone})
    withheld = {image_id for image_id in changed_ids if image_id in standing and not standing[image_id].is_live}
    unread = compress(listing.entries, (news.new | news.changed).tolist())
    withheld |= read_taken(dataset).intersection(entry.image_id for entry in unread)
    entries = tuple(
        entry
        for entry in compress(listing.entries, (news.new | news.changed).tolist())
        if entry.image_id not in withheld
    )
    carried = read_columns(dataset, source)
    entries = carrying(entries, source, carried, remarks)
    ignored = {} if is_known else dict(listing.ignored)
    part = PartSource(source, Listing(entries, ignored, listing.faults), carried)
    replaced = {image_id: standing[image_id] for image_id in sorted(changed_ids - withheld) if image_id in standing}
    plan = KeptSplit.from_json(dataset.catalog["split"])
    assert isinstance(plan, KeptSplit)
    plan.check([entry for entry in entries if not entry.reason], part.carried, tells_keys=source.tells_keys)
    _remark_splits(plan, entries, remarks)
    remark_moved(part, dataset.uri, plan, entries, replaced, remarks)
    vanished = [standing[image_id] for image_id in news.gone if image_id in standing and standing[image_id].is_live]
    gone = [row for row in vanished if _is_listed(row.key, source.uri)]
    if withheld:
        images = "image was" if len(withheld) == 1 else "images were"
        remarks.append(f"{len(withheld):,} changed {images} taken out of the dataset before, to stay out")
    kept = {image_id: row.split for image_id, row in replaced.items()}
    return Update(part, replace(plan, kept=kept), news.table, replaced, gone, len(withheld), tuple(remarks))


def standing_rows(dataset: Dataset, image_ids: set[str]) -> dict[str, StandingRow]:
    """Return the row of each image that has one: the live one, else one that somebody took out.

    Rows that never counted, since a rule left them out of their own run, are not given.
    """
    found: dict[str, StandingRow] = {}
    wanted = pa.array(sorted(image_ids), pa.string())
    compared = compared_columns(dataset)
    ruled_out = ruled_out_rows(dataset) if image_ids else set()
    for file in dataset.shards() if image_ids else ():
        ids = dataset.written_rows(file, ["image_id"]).column("image_id")
        hits = pc.indices_nonzero(pc.is_in(ids, value_set=wanted))
        if not len(hits):
            continue
        changes = dataset.overrides.get(file.path, {})
        rows = dataset.written_rows(file, ["image_id", "key", *compared]).take(hits).to_pylist()
        for place, row in zip(hits.to_pylist(), rows, strict=True):
            is_live = bool(changes.get(place, {}).get("live", True))
            if not is_live and (file.path, place) in ruled_out:
                continue
            if is_live or row["image_id"] not in found:
                values = row_values(row, compared)
                found[row["image_id"]] = StandingRow(row["image_id"], row["key"], file.split, is_live, values)
    return found


def compared_columns(dataset: Dataset) -> list[str]:
    """Return the columns that say whether a member's row is another one.

    Where boxes are hidden the stored bytes are among them: boxes need not travel, and other boxes hide other pixels.
    """
    hides = PrivacyConfig(**dataset.catalog.get("privacy", {})).region_column
    return ["source_sha256", "label", *(["stored_sha256"] if hides else []), *dataset.catalog["carried"]]


def row_values(row: Mapping[str, Any], compared: Sequence[str]) -> tuple[Any, ...]:
    """Return what a member's row comes to: when it is the same, the member has not changed."""
    return tuple(json.dumps(row[name]) for name in compared)


def known_listing(dataset: Dataset, name: str, remarks: list[str]) -> pa.Table:
    """Return the table of the source's earlier listing; from the rows alone where the dataset has none."""
    entry = dataset.catalog.get("origins", {}).get(name, {}).get("listing")
    if entry is not None:
        return read_listing(dataset.storage, entry)
    remarks.append(
        f"the dataset has no listing of {name}, since it was made by an earlier release: members with new keys are"
        " read, changed ones are not noticed this time"
    )
    ids: dict[str, None] = {}
    for file in dataset.shards():
        table = dataset.written_rows(file, ["image_id", "source"])
        ids.update(dict.fromkeys(table.filter(pc.field("source") == name).column("image_id").to_pylist()))
    ids.update(dict.fromkeys(row["image_id"] for row in quarantined(dataset) if row["source"] == name))
    known = [image_id for image_id in ids if image_id]
    return make_table(known, [None] * len(known))


def read_columns(dataset: Dataset, source: Source) -> list[str]:
    """Return the dataset's columns, and that of boxes to hide, which is read even where it does not travel.

    Raises:
        InputError: the dataset's privacy rule names a column of boxes, and the source has none.
    """
    privacy = PrivacyConfig(**dataset.catalog.get("privacy", {}))
    carried_columns(source.carried, privacy)
    return list(dict.fromkeys([*dataset.catalog["carried"], *filter(None, [privacy.region_column])]))


def carrying(
    entries: tuple[Entry, ...], source: Source, carried: Sequence[str], remarks: list[str]
) -> tuple[Entry, ...]:
    """Return the entries with their values in the order of the dataset's columns."""
    if surplus := [name for name in source.carried if name not in carried]:
        has = f"carries {', '.join(carried)}" if carried else "carries no columns"
        raise InputError(
            f"the source has a column {surplus[0]!r}, and the dataset {has}",
            mend="leave the column out, or ingest into a new --out",
        )
    if tuple(carried) == tuple(source.carried):
        return entries
    missing = [name for name in carried if name not in source.carried]
    if missing:
        remarks.append(f"the source has no column {', '.join(missing)}: it is empty in its rows")
    place = [source.carried.index(name) if name in source.carried else None for name in carried]
    return tuple(
        entry._replace(carried=tuple(None if at is None else entry.carried[at] for at in place)) for entry in entries
    )


def _is_listed(key: str, uri: str) -> bool:
    """Return whether a listing would name the member if it were there: a pattern leaves out what it does not match."""
    pattern = split_pattern(uri)
    return pattern is None or pattern.matches(key.partition("!/")[0])


def remark_moved(
    source: Source,
    out: str,
    plan: SplitPlan,
    entries: Sequence[Entry],
    replaced: Mapping[str, StandingRow],
    remarks: list[str],
) -> None:
    """Say which changed images have a group or time of another split now: they stay where they are, and that leaks."""
    if plan.by not in ("group", "time"):
        return
    moved = [
        (entry.key, replaced[entry.image_id].split, wanted)
        for entry in entries
        if not entry.reason and entry.image_id in replaced
        if (wanted := plan.place(entry, source.carried)) != replaced[entry.image_id].split
    ]
    if not moved:
        return
    key, stands, wanted = moved[0]
    example = f" ({key} stands in {stands}, and its {plan.column} in {wanted})" if source.tells_keys else ""
    remarks.append(
        f"{len(moved):,} changed {'images have' if len(moved) > 1 else 'image has'} a {plan.column} of another split"
        f" now{example}: what stands does not move, so held-out figures may be too good;"
        f" `resnet data exclude {shlex.quote(out)}` takes images out"
    )


def _remark_splits(plan: SplitPlan, entries: Sequence[Entry], remarks: list[str]) -> None:
    usable = [entry for entry in entries if not entry.reason]
    if plan.by == "given" and (without := sum(not entry.given_split for entry in usable)):
        remarks.append(
            f"{without:,} newcomers are in no folder of a split, as the dataset's images are: they go to train"
        )
    elif plan.by != "given" and any(entry.given_split for entry in usable):
        remarks.append(f"the newcomers' own splits are not kept: the dataset is divided by {plan.by}")
