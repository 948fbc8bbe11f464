"""A tar, plain or compressed: listed by its headers, read by ranges or as a stream; nothing is ever extracted."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from typing_extensions import override

from pipelines.errors import InputError
from pipelines.sources.ahead import read_extents
from pipelines.sources.base import Entry, Found, Listing, Member, Source, Unit, make_listing, member_of
from pipelines.sources.byte_stream import PackedStream, PlainStream, UnpackedStream, open_packed
from pipelines.sources.names import readable_key
from pipelines.sources.tar_walk import TarMember, walk_tar
from pipelines.sources.units import span_units, streamed_units
from pipelines.storage import Storage

MAX_MEMBER_BYTES = 64 * 2**20
MAX_CLASS_BYTES = 256
CLASS_ENDING = b".cls"
"""WebDataset: `000001.jpg` and `000001.cls` are one sample, the second holding its class as text."""
MAX_PART_BYTES = 2 * 2**20
"""A compressed tar of parts that unpack to at most this much each (pbzip2, bgzip) is read from any of them on."""
MAX_SHARING = 0.01
"""Share of the members that may have one time for it to tell when they were written, and not when they were packed."""
SHUFFLE_BYTES = 32 * 2**20
"""Members of a stream are mixed within windows of this size."""


class TarSource(Source):
    """The members of one tar; keys are their names as written there."""

    def __init__(self, storage: Storage, path: str, name: str, magic: bytes = b"") -> None:
        super().__init__(storage.address(path), name)
        self._storage = storage
        self._path = path
        self._magic = magic
        """First bytes of the compression, empty for a plain tar."""

    @override
    def _list(self) -> Listing:
        stream = self._stream()
        found: list[Found] = []
        faults: list[str] = []
        classes: dict[str, str] = {}
        for number, member in enumerate(walk_tar(stream)):
            if member.is_fault:
                if isinstance(stream, UnpackedStream) and stream.fault[0] == "BOMB_RATIO":
                    member = member._replace(reason=stream.fault[0], message=stream.fault[1])  # it was us who cut it
                faults.append(member.message)
                if found and member.name and found[-1].offset == member.offset:
                    found.pop()  # its data turned out to be cut only after it was met
            if member.name.endswith(CLASS_ENDING) and member.size <= MAX_CLASS_BYTES and not member.reason:
                classes[_sample(readable_key(member.name)[0])] = (
                    stream.read(member.size).decode(errors="replace").strip()
                )
            found.append(self._found(number, member))
        if isinstance(stream, UnpackedStream):
            stream.drain()
            reason, message = stream.fault
            if reason and not faults:
                faults.append(message)
                found.append(Found(self._fault_name(), 0, 0, 0, (-1,), reason, message))
        if isinstance(stream, PackedStream):
            found = _with_starts(found, stream)
        listing = make_listing(self.name, found, faults)
        if not classes:
            return listing
        return replace(
            listing,
            entries=tuple(
                entry._replace(label=classes.get(_sample(entry.key), entry.label)) for entry in listing.entries
            ),
        )

    def _found(self, number: int, member: TarMember) -> Found:
        reason, message = member.reason, member.message
        if not reason and member.size > MAX_MEMBER_BYTES:
            reason, message = "TOO_LARGE", f"{member.size:,} bytes are more than 64 MB"
        return Found(
            name=member.name or self._fault_name(),
            size=member.size,
            offset=member.offset,
            extent=member.size,
            detail=(number, member.modified),
            reason=reason,
            message=message,
        )

    def _fault_name(self) -> bytes:
        return b"!" + self._path.encode()

    @override
    def listing_digest(self) -> str:
        # one look at the archive instead of a pass over its headers: its names follow from its bytes
        file = self._storage.stat(self._path)
        if file is None:
            raise InputError(f"{self.uri} is gone", mend="check the path and run the command again")
        state = file.etag or f"{file.modified:.6f}"
        return hashlib.sha256(f"{file.size}\0{state}".encode()).hexdigest()

    @override
    def tokens(self) -> list[str]:
        """Return each member's size, time and class; a time that many share was made up, and tells nothing."""
        entries = self.listing().entries
        times = [entry.detail[1] if len(entry.detail) > 1 else 0 for entry in entries]
        sharing = Counter(times)
        few = max(1, int(len(entries) * MAX_SHARING)) if len(sharing) > 1 else 0
        state = self.listing_digest()[:16]
        return [
            f"{entry.size}-{time if time and sharing[time] <= few else state}-{entry.label or ''}"
            for entry, time in zip(entries, times, strict=True)
        ]

    @override
    def units(self) -> list[Unit]:
        entries = self.listing().entries
        return span_units(entries) if not self._magic or _has_starts(entries) else streamed_units(entries)

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        if self._magic and not _has_starts(unit.entries):
            yield from self._open_stream(unit)
            return
        starts = {entry.offset: entry.detail[2:] for entry in unit.entries if not entry.reason}

        def read(offset: int, length: int) -> bytes:
            if not self._magic:
                return self._storage.read(self._path, offset, length) if length else b""
            plain_at, packed_at = starts[offset]
            stream = self._stream((plain_at, packed_at))
            stream.skip_to(offset)
            return stream.read(length)

        for entry, data in read_extents(unit.entries, read, is_local=self._storage.is_local):
            yield _checked(entry, data)

    def _open_stream(self, unit: Unit) -> Iterator[Member]:
        """Pass over the whole stream, keep what belongs to the unit, mix it within windows."""
        wanted = {entry.detail[0]: entry for entry in unit.entries if not entry.reason}
        window = [member_of(entry, None) for entry in unit.entries if entry.reason]
        size = 0
        stream = self._stream()
        for number, member in enumerate(walk_tar(stream)):
            entry = wanted.pop(number, None)
            if entry is not None:
                is_same = member.size == entry.size
                window.append(_checked(entry, stream.read(member.size) if is_same else b""))
                size += entry.size
            if size > SHUFFLE_BYTES or not wanted:
                yield from sorted(window, key=lambda member: member.image_id)
                window, size = [], 0
            if not wanted:
                break
        window += [_checked(entry, b"") for entry in wanted.values()]
        yield from sorted(window, key=lambda member: member.image_id)

    def _stream(self, start: tuple[int, int] = (0, 0)) -> PlainStream | UnpackedStream:
        size = self._storage.size(self._path) or 0
        if self._magic:
            return open_packed(self._storage, self._path, size, self._magic, start)
        return PlainStream(self._storage, self._path, size)


def _with_starts(found: Sequence[Found], stream: PackedStream) -> list[Found]:
    """Return members with the place where unpacking may begin for them, if there are such places all along."""
    ends = [*(plain_at for plain_at, _ in stream.starts[1:]), stream.position]
    longest = max(end - start[0] for start, end in zip(stream.starts, ends, strict=True))
    if len(stream.starts) == 1 or longest > MAX_PART_BYTES:
        return list(found)
    plain = [plain_at for plain_at, _ in stream.starts]
    return [
        one if one.reason else one._replace(detail=one.detail + stream.starts[bisect_right(plain, one.offset) - 1])
        for one in found
    ]


def _has_starts(entries: Sequence[Entry]) -> bool:
    return all(entry.reason or len(entry.detail) == 4 for entry in entries)


def _sample(key: str) -> str:
    """Return what members of one WebDataset sample share: the name up to the first dot of its last component."""
    folder, slash, file = key.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _checked(entry: Entry, data: bytes) -> Member:
    if not entry.reason and len(data) != entry.size:
        return member_of(entry, None, "CHANGED", "the archive changed after it was listed")
    return member_of(entry, data)
