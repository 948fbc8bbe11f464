"""A zip read by its central directory: spans of bytes in, members out; nothing is ever extracted."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
import zlib
from collections.abc import Iterator, Sequence

from typing_extensions import override

from pipelines.errors import StorageError
from pipelines.sources.ahead import read_extents
from pipelines.sources.base import Entry, Found, Listing, Member, Source, Unit, make_listing, member_of
from pipelines.sources.units import span_units
from pipelines.sources.zip_directory import LOCAL, METHODS, parse_directory, read_directory
from pipelines.storage import Storage


class ZipSource(Source):
    """The members of one zip; keys are their names, ids survive a move of the archive."""

    def __init__(self, storage: Storage, path: str, name: str) -> None:
        super().__init__(storage.address(path), name)
        self._storage = storage
        self._path = path
        self._digest = ""

    @override
    def _list(self) -> Listing:
        size = self._storage.size(self._path) or 0
        found = read_directory(self._storage, self._path, size)
        if found is None:
            members = list(self._salvage(size))
            fault = "the zip has no directory at its end: it is cut, for example by a broken download"
            last = Found(b"!" + self._path.encode(), 0, size, 0, (), "ARCHIVE_TRUNCATED", fault)
            return make_listing(self.name, [*members, last], [fault])
        directory, count, prefix = found
        members = parse_directory(directory, count, prefix, self.uri, tells_keys=self.tells_keys)
        return make_listing(self.name, members)

    @override
    def listing_digest(self) -> str:
        if not self._digest:
            size = self._storage.size(self._path) or 0
            found = read_directory(self._storage, self._path, size)
            # the directory holds every name, size and checksum, so it stands for the bytes
            material = found[0] if found else self._storage.read(self._path)
            self._digest = hashlib.sha256(str(size).encode() + b"\0" + material).hexdigest()
        return self._digest

    @override
    def units(self) -> list[Unit]:
        return span_units(self.listing().entries)

    @override
    def units_of(self, entries: Sequence[Entry]) -> list[Unit]:
        return span_units(entries)

    @override
    def tokens(self) -> list[str]:
        # the directory's checksum; an entry without one is not read anyway
        return [f"{e.size}-{e.detail[2]:08x}" if len(e.detail) > 2 else f"{e.size}" for e in self.listing().entries]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        for entry, packed in read_extents(unit.entries, self._read, is_local=self._storage.is_local):
            yield member_of(entry, None) if entry.reason else _unpack(entry, packed)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._storage.read(self._path, offset, length)
        except StorageError:
            # the last member's extent may reach past the end, which an object store may refuse
            size = self._storage.size(self._path)
            if size is None or offset >= size or offset + length <= size:
                raise
            return self._storage.read(self._path, offset, size - offset)

    def _salvage(self, size: int) -> Iterator[Found]:
        """Walk the local headers of a zip without a directory, as far as they are whole."""
        position = 0
        while position + LOCAL.size < size:
            header = self._storage.read(self._path, position, LOCAL.size)
            signature, _, flags, method, _, _, crc, packed, length, name_size, extra_size = LOCAL.unpack(header)
            start = position + LOCAL.size + name_size + extra_size
            has_sizes = not flags & 0x9 and packed != 0xFFFFFFFF  # neither encrypted nor written as a stream
            if signature != b"PK\3\4" or not has_sizes or start + packed > size or method not in METHODS:
                return
            name = self._storage.read(self._path, position + LOCAL.size, name_size)
            if not name.endswith(b"/"):
                yield Found(name, length, position, start + packed - position, (packed, method, crc))
            position = start + packed


def _unpack(entry: Entry, data: bytes) -> Member:
    """Unpack one member, never further than its directory entry says, and check it."""
    packed, method, crc = entry.detail
    if len(data) < LOCAL.size:
        return member_of(entry, None, "ARCHIVE_TRUNCATED", "the archive ends before this member")
    signature, _, _, local_method, _, _, _, _, _, name_size, extra_size = LOCAL.unpack_from(data)
    if signature != b"PK\3\4" or local_method != method:
        return member_of(entry, None, "ARCHIVE_CORRUPT", "the member's header is not where the directory says")
    start = LOCAL.size + name_size + extra_size
    body = data[start : start + packed]
    if len(body) < packed:
        return member_of(entry, None, "ARCHIVE_TRUNCATED", "the archive ends inside this member")
    try:
        plain = _decompress(body, method, entry.size)
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, struct.error) as error:
        return member_of(entry, None, "ARCHIVE_CORRUPT", f"the member cannot be unpacked: {error}")
    if len(plain) > entry.size:
        return member_of(entry, None, "BOMB_RATIO", "the member unpacks to more than the directory says")
    if len(plain) != entry.size or zlib.crc32(plain) != crc:
        return member_of(entry, None, "CRC", "the member's checksum is wrong")
    return member_of(entry, plain)


def _decompress(body: bytes, method: int, size: int) -> bytes:
    """Return at most size + 1 bytes."""
    if method == 0:
        return body
    if method == 8:
        return zlib.decompressobj(-15).decompress(body, size + 1)
    if method == 12:
        return bz2.BZ2Decompressor().decompress(body, size + 1)
    # a zip's LZMA: two bytes of version, the size of the properties, the properties, a raw stream (APPNOTE 5.8.8)
    (properties_size,) = struct.unpack_from("<H", body, 2)
    properties, dictionary_size = struct.unpack_from("<BL", body, 4)
    if properties_size != 5 or properties >= 225:
        raise ValueError("unknown LZMA properties")
    rest, lc = divmod(properties, 9)
    pb, lp = divmod(rest, 5)
    chain = [
        {"id": lzma.FILTER_LZMA1, "dict_size": min(dictionary_size, 2**26), "lc": lc, "lp": lp, "pb": pb},
    ]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain).decompress(body[9:], size + 1)
