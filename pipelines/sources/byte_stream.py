"""Stored bytes read forward: as they are, with skips that read nothing, or through a decompressor."""

from __future__ import annotations

import abc
import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from pipelines.storage import Storage

CHUNK_BYTES = 2**18
LEAP_BYTES = 2**16
LANDING_BYTES = 2**12
"""Behind a leap of `LEAP_BYTES` a disk is read so little at a time: the next header of an archive lies as far off."""
REMOTE_CHUNK_BYTES = 2**22
"""Each request to a store costs tens of milliseconds, in which megabytes pass."""
PACKED_CHUNK_BYTES = 2**20
MAX_DRAIN_BYTES = 16 * 2**20
MAX_RATIO = 100
RATIO_FREE_BYTES = 64 * 2**20
"""An archive may unpack to this much however little it has, and beyond it to `MAX_RATIO` times what was read."""

DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: GzipUnpacker(),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}
"""By the first bytes of the file."""
ZSTD_MAGICS = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")
"""A frame, and the skippable one that parallel packers write first (RFC 8878, 3.1)."""
PACKED_MAGICS = (*DECOMPRESSORS, *ZSTD_MAGICS)


class GzipUnpacker:
    """One gzip member (RFC 1952), unpacked by hand: zlib's own reader throws good bytes away with a bad checksum."""

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self.unconsumed_tail = b""
        self._head, self._trailer = b"", b""
        self._inflater: Any = None
        self._crc = 0

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack a bounded step; raises zlib.error on damage."""
        if self._inflater is None:
            self._head += data
            start = _gzip_header_size(self._head)
            if start is None:
                return b""
            self._inflater, data = zlib.decompressobj(-15), self._head[start:]
        if self._inflater.eof:
            self._end(data)
            return b""
        plain: bytes = self._inflater.decompress(data, max_length)
        self._crc = zlib.crc32(plain, self._crc)
        self.unconsumed_tail = self._inflater.unconsumed_tail
        if self._inflater.eof:
            self.unconsumed_tail = self._inflater.unused_data
            if plain:
                return plain  # what is good is handed out before the trailer is judged
            self._end(self.unconsumed_tail)
        return plain

    def _end(self, data: bytes) -> None:
        self._trailer += data
        self.unconsumed_tail = b""
        if len(self._trailer) >= 8:
            if int.from_bytes(self._trailer[:4], "little") != self._crc:
                raise zlib.error("incorrect data check")
            self.eof, self.unused_data = True, self._trailer[8:]


def _gzip_header_size(head: bytes) -> int | None:
    """Return where the deflated data starts; None when the header is not complete."""
    if len(head) < 10:
        return None
    if head[:3] != b"\x1f\x8b\x08":
        raise zlib.error("no gzip header")
    flags, position = head[3], 10
    if flags & 4:
        position += 2 + int.from_bytes(head[10:12], "little")
    for bit in (8, 16):  # file name, comment
        if flags & bit:
            end = head.find(b"\0", position)
            if end < 0:
                return None
            position = end + 1
    position += 2 if flags & 2 else 0
    return position if position <= len(head) else None


class PlainStream:
    """A stored file, read in chunks; what is skipped beyond a chunk is never read."""

    def __init__(self, storage: Storage, path: str, size: int) -> None:
        self.position = 0
        self.size: int | None = size
        self._storage, self._path, self._total = storage, path, size
        self._chunk, self._chunk_at = b"", 0
        self._chunk_bytes = CHUNK_BYTES if storage.is_local else REMOTE_CHUNK_BYTES
        self._landing_bytes = LANDING_BYTES if storage.is_local else REMOTE_CHUNK_BYTES
        self._has_leapt = False

    def read(self, length: int) -> bytes:
        """Return the next bytes, fewer only at the end."""
        length = max(0, min(length, self._total - self.position))
        start = self.position - self._chunk_at
        if start + length > len(self._chunk):
            usual = self._landing_bytes if self._has_leapt else self._chunk_bytes
            wanted = min(max(length, usual), self._total - self.position)
            self._chunk, self._chunk_at = self._storage.read(self._path, self.position, wanted), self.position
            start = 0
        self.position += length
        return self._chunk[start : start + length]

    def skip_to(self, position: int) -> int:
        """Go forward, at most to the end."""
        self._has_leapt = position - self.position >= LEAP_BYTES
        self.position = min(position, self._total)
        return self.position


class UnpackedStream(abc.ABC):
    """What a compressed stored file unpacks to, read forward; its end is where the data ends."""

    def __init__(self) -> None:
        self.position = 0
        self.size: int | None = None
        self.fault: tuple[str, str] = ("", "")
        """Why the data ended too early: (reason, message)."""
        self._plain = bytearray()
        self._is_done = False

    def read(self, length: int) -> bytes:
        """Return the next bytes, fewer only at the end."""
        while len(self._plain) < length and not self._is_done:
            self._fill()
            if self.position + len(self._plain) > RATIO_FREE_BYTES + MAX_RATIO * self._packed_bytes():
                self._stop(
                    "BOMB_RATIO", f"{self._packed_bytes():,} bytes unpack to more than {MAX_RATIO} times as many"
                )
        data = bytes(self._plain[:length])
        del self._plain[:length]
        self.position += len(data)
        return data

    def skip_to(self, position: int) -> int:
        """Go forward by unpacking and dropping, at most to the end."""
        while self.position < position and self.read(min(position - self.position, PACKED_CHUNK_BYTES)):
            pass
        return self.position

    def drain(self) -> None:
        """Read to the end, at most 16 MB, so that the checksum at the end is seen."""
        stop = self.position + MAX_DRAIN_BYTES
        while self.position < stop and self.read(PACKED_CHUNK_BYTES):
            pass

    @abc.abstractmethod
    def _fill(self) -> None:
        """Unpack a bounded step: a few packed bytes may stand for very many."""

    @abc.abstractmethod
    def _packed_bytes(self) -> int:
        """Return how much of the file was read."""

    def _stop(self, reason: str, message: str) -> None:
        self._is_done = True
        self.fault = (reason, message)


class PackedStream(UnpackedStream):
    """A stored file of gzip, bzip2 or xz: one compressed part, or several after each other."""

    def __init__(
        self, storage: Storage, path: str, size: int, make: Callable[[], Any], start: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.starts = [start]
        """(place in what is unpacked, place in the file) of each part so far: reading may begin at any of them."""
        self.position = start[0]
        self._storage, self._path, self._total = storage, path, size
        self._make, self._unpacker = make, make()
        self._packed_at, self._packed = start[1], b""
        self._chunk_bytes = PACKED_CHUNK_BYTES if storage.is_local else REMOTE_CHUNK_BYTES

    @override
    def _fill(self) -> None:
        wants_input = getattr(self._unpacker, "needs_input", True)  # zlib hands unread input back instead
        if wants_input and not self._packed:
            wanted = min(self._chunk_bytes, self._total - self._packed_at)
            self._packed = self._storage.read(self._path, self._packed_at, wanted) if wanted else b""
            self._packed_at += len(self._packed)
        is_last = wants_input and not self._packed
        try:
            plain = self._unpacker.decompress(self._packed if wants_input else b"", PACKED_CHUNK_BYTES)
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
            is_checksum = "incorrect data check" in str(error) or "incorrect length check" in str(error)
            self._stop("CRC" if is_checksum else "ARCHIVE_CORRUPT", f"the compressed archive is damaged: {error}")
            return
        self._plain += plain
        if self._unpacker.eof:
            self._next_part(self._unpacker.unused_data)
        elif is_last and not plain:
            self._stop("ARCHIVE_TRUNCATED", "the compressed archive ends too early")
        elif wants_input:
            self._packed = getattr(self._unpacker, "unconsumed_tail", b"")

    @override
    def _packed_bytes(self) -> int:
        return self._packed_at

    def _next_part(self, rest: bytes) -> None:
        """Go on after the end of a compressed part: several of them may follow each other, or zeros."""
        rest = rest.lstrip(b"\0")
        if not rest and self._packed_at < self._total:
            wanted = min(self._chunk_bytes, self._total - self._packed_at)
            rest = self._storage.read(self._path, self._packed_at, wanted)
            self._packed_at += len(rest)
            rest = rest.lstrip(b"\0")
        self._packed = rest
        if rest:
            self.starts.append((self.position + len(self._plain), self._packed_at - len(rest)))
            self._unpacker = self._make()
        else:
            self._is_done = True


def open_packed(
    storage: Storage, path: str, size: int, magic: bytes, start: tuple[int, int] = (0, 0)
) -> UnpackedStream:
    """Return the stream of a compressed file that begins with one of `PACKED_MAGICS`; of zstd from its start alone."""
    if magic in ZSTD_MAGICS:
        from pipelines.sources.zstd_stream import ZstdStream  # pyarrow, which no other archive needs

        return ZstdStream(storage, path, size)
    return PackedStream(storage, path, size, DECOMPRESSORS[magic], start)
