"""Archives inside an archive or among loose images: opened in memory, one level deep, with all limits of their kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from typing_extensions import override

from pipelines.errors import InputError
from pipelines.sources.archives import spoken
from pipelines.sources.base import Entry, Listing, Member, Source, Unit, image_id, member_of
from pipelines.sources.names import escaped_bytes, labels_and_splits
from pipelines.sources.units import MAX_UNIT_BYTES, MAX_UNIT_ROWS
from pipelines.storage import Storage, StoredFile

OpenArchive = Callable[[Storage, str, int], Source]
"""Opens the archive of a size at a path; raises InputError for what is none."""

_MARK = -2
_OUTER = 8
"""Numbers in the details of an inner member that stand for the archive, before the archive's own details."""


class NestedSource(Source):
    """A source with its members that are archives opened; the key of a member of one is ARCHIVE!/KEY.

    What lies deeper stays refused as NESTED. An archive inside has at most 64 MB, as every member has.
    """

    def __init__(self, outer: Source, open_archive: OpenArchive) -> None:
        super().__init__(outer.uri, outer.name)
        self._outer = outer
        self._open_archive = open_archive

    @override
    def _list(self) -> Listing:
        self._outer.tells_keys = self.tells_keys
        listing = self._outer.listing()
        archives = [e._replace(reason="", message="") for e in listing.entries if e.reason == "NESTED"]
        if not archives:
            return listing
        faults, ignored = list(listing.faults), Counter(listing.ignored)
        opened: dict[str, list[Entry] | str] = {}
        for unit in self._outer.units_of(archives):
            for archive in self._outer.open(unit):
                try:
                    inside = self._inside(archive).listing()
                except InputError as error:
                    opened[archive.image_id] = error.what
                    continue
                if inside.faults and all(entry.reason for entry in inside.entries):
                    opened[archive.image_id] = inside.faults[0]  # no archive at all, such as notes.txt.gz
                    continue
                opened[archive.image_id] = list(inside.entries)
                faults += [
                    f"{archive.key if self.tells_keys else 'an archive in it'}: {fault}" for fault in inside.faults
                ]
                ignored.update(inside.ignored)
        seen: Counter[bytes] = Counter()
        found = [each for entry in listing.entries for each in self._with_inner(entry, opened, seen)]
        return Listing(tuple(_named(found)), dict(sorted(ignored.items())), tuple(faults), listing.warnings)

    def _with_inner(
        self, entry: Entry, opened: Mapping[str, list[Entry] | str], seen: Counter[bytes]
    ) -> Iterator[Entry]:
        """Yield an entry itself, or what is inside it with keys, ids and details that lead there."""
        inside = opened.get(entry.image_id)
        if inside is None:
            yield entry
        elif isinstance(inside, str):
            yield entry._replace(message=f"an archive inside the source that cannot be opened: {inside}")
        else:
            place = (_MARK, len(entry.detail), entry.offset, entry.extent, entry.size, entry.occurrence)
            outer = (*place, len(entry.key), int("name_bytes" in entry.flags), *entry.detail)
            for inner in inside:
                name = _key_bytes(entry) + b"!/" + _key_bytes(inner)
                yield inner._replace(
                    key=f"{entry.key}!/{inner.key}",
                    image_id=image_id(self.name, name, seen[name]),
                    occurrence=seen[name],
                    detail=(*outer, *inner.detail),
                )
                seen[name] += 1

    def _inside(self, archive: Member) -> Source:
        if archive.data is None:
            raise InputError(archive.message)
        held = _Held(f"{self.uri}/{archive.key}", archive.data)
        inside = self._open_archive(held, archive.key.rpartition("/")[2], len(archive.data))
        inside.tells_keys = self.tells_keys
        return inside

    @override
    def listing_digest(self) -> str:
        return self._outer.listing_digest()

    @override
    def units(self) -> list[Unit]:
        listed = self.listing().entries
        return self.units_of(listed) if any(map(_is_inner, listed)) else self._outer.units()

    @override
    def units_of(self, entries: Sequence[Entry]) -> list[Unit]:
        plain = [entry for entry in entries if not _is_inner(entry)]
        by_id = {entry.image_id: entry for entry in plain}
        parts = [
            tuple(by_id[entry.image_id] for entry in unit.entries)
            for unit in (self._outer.units_of(plain) if plain else ())
        ]
        part: list[Entry] = []
        begun, packed_bytes = "", 0
        for entry in (entry for entry in entries if _is_inner(entry)):
            archive = _archive_of(entry)
            is_next = archive.image_id != begun
            if part and (len(part) == MAX_UNIT_ROWS or (is_next and packed_bytes + archive.size > MAX_UNIT_BYTES)):
                parts.append(tuple(part))
                part, packed_bytes, is_next = [], 0, True
            part.append(entry)
            begun, packed_bytes = archive.image_id, packed_bytes + archive.size * is_next
        return [Unit(index, each) for index, each in enumerate([*parts, tuple(part)] if part else parts)]

    @override
    def tokens(self) -> list[str]:
        if not any(map(_is_inner, self.listing().entries)):
            return self._outer.tokens()
        places = map(_place, self._outer.listing().entries)
        known = dict(zip(places, self._outer.tokens(), strict=True))
        return [
            f"{known[_archive_of(entry).image_id]}-{entry.size}" if _is_inner(entry) else known[_place(entry)]
            for entry in self.listing().entries
        ]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        if not _is_inner(unit.entries[0]):
            yield from self._outer.open(unit)
            return
        wanted: dict[str, list[Entry]] = {}
        for entry in unit.entries:
            wanted.setdefault(_archive_of(entry).image_id, []).append(entry)
        archives = tuple(_archive_of(entries[0]) for entries in wanted.values())
        for archive in self._outer.open(Unit(unit.index, archives)):
            yield from self._open_inside(archive, wanted[archive.image_id])

    def _open_inside(self, archive: Member, entries: Sequence[Entry]) -> Iterator[Member]:
        try:
            source = self._inside(archive)
        except InputError as error:
            reason = archive.reason or "CHANGED"
            yield from (member_of(entry, None, reason, f"{archive.key}: {error.what}") for entry in entries)
            return
        by_id = {entry.image_id: entry for entry in entries}
        inner = tuple(entry._replace(detail=entry.detail[_OUTER + entry.detail[1] :]) for entry in entries)
        for member in source.open(Unit(0, inner)):
            yield replace(member, key=by_id[member.image_id].key)


class _Held(Storage):
    """One object in memory, at whatever path it is asked for."""

    def __init__(self, uri: str, data: bytes) -> None:
        super().__init__(uri)
        self._data = data

    @override
    def address(self, path: str) -> str:
        return self.uri

    @override
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._data[offset : None if length is None else offset + length]

    @override
    def stat(self, path: str) -> StoredFile | None:
        return StoredFile(path, len(self._data), 0.0, "")


def _named(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Give all members the labels and splits that their folders say, an archive's name being one of these."""
    keys = [spoken(entry.key) if _is_inner(entry) else entry.key for entry in entries]
    named = labels_and_splits(keys, [bool(entry.reason) for entry in entries])
    for entry, (label, split) in zip(entries, named, strict=True):
        own = entry.label if entry.label is not None or not _is_inner(entry) else label
        yield entry._replace(label=own, given_split=split)


def _is_inner(entry: Entry) -> bool:
    return entry.detail[:1] == (_MARK,)


def _place(entry: Entry) -> str:
    return f"{entry.occurrence} {entry.key}"


def _key_bytes(entry: Entry) -> bytes:
    return escaped_bytes(entry.key) if "name_bytes" in entry.flags else entry.key.encode()


def _archive_of(entry: Entry) -> Entry:
    """Return the entry of the archive that an inner member lies in."""
    _, count, offset, extent, size, occurrence, key_size, is_escaped = entry.detail[:_OUTER]
    key = entry.key[:key_size]
    return Entry(
        key=key,
        occurrence=occurrence,
        image_id=f"{occurrence} {key}",
        size=size,
        label=None,
        given_split=None,
        reason="",
        message="",
        flags=("name_bytes",) if is_escaped else (),
        offset=offset,
        extent=extent,
        detail=entry.detail[_OUTER : _OUTER + count],
    )
