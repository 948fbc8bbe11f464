"""Zstandard (RFC 8878) by Arrow's decoder: Python has none before 3.14, and Arrow comes with the datasets anyway."""

from __future__ import annotations

import io

import pyarrow as pa
from typing_extensions import override

from pipelines.sources.byte_stream import CHUNK_BYTES, PlainStream, UnpackedStream
from pipelines.storage import Storage

ARROW_CHUNK_BYTES = 2**16
"""Arrow reads this much packed data at once."""


class ZstdStream(UnpackedStream):
    """A stored file of zstd frames, one after another; a window above 128 MB (`zstd --long=28`) is refused."""

    def __init__(self, storage: Storage, path: str, size: int) -> None:
        super().__init__()
        self._file = storage, path, size
        self._packed = _Packed(*self._file)
        self._unpacked = pa.CompressedInputStream(pa.PythonFile(self._packed, mode="r"), "zstd")

    @override
    def _fill(self) -> None:
        packed_at = self._packed.position
        try:
            plain = self._unpacked.read(CHUNK_BYTES if self._packed.careful_from is None else 1)
        except OSError as error:
            if self._packed.careful_from is None:
                self._go_carefully(max(0, packed_at - ARROW_CHUNK_BYTES))
            else:
                self._stop(*_fault(str(error)))
            return
        self._plain += plain
        self._is_done = not plain

    @override
    def _packed_bytes(self) -> int:
        return self._packed.position

    def _go_carefully(self, packed_at: int) -> None:
        """Come here again and go on byte by byte: Arrow throws good bytes away with the damage behind them."""
        self._packed = _Packed(*self._file, careful_from=packed_at)
        self._unpacked = pa.CompressedInputStream(pa.PythonFile(self._packed, mode="r"), "zstd")
        here = self.position + len(self._plain)
        while here:
            here -= len(self._unpacked.read(min(CHUNK_BYTES, here)))


def _fault(message: str) -> tuple[str, str]:
    if "Truncated" in message:
        return "ARCHIVE_TRUNCATED", "the compressed archive ends too early"
    if "too much memory" in message:
        return "BOMB_RATIO", "the archive wants a window of more than 128 MB; pack it with --long=27 or less"
    detail = message.removeprefix("ZSTD decompress failed: ")
    return "CRC" if "checksum" in detail else "ARCHIVE_CORRUPT", f"the compressed archive is damaged: {detail}"


class _Packed(io.RawIOBase):
    """A stored file as Arrow reads it: forward, in pieces of its choosing, from `careful_from` on of one byte."""

    def __init__(self, storage: Storage, path: str, size: int, careful_from: int | None = None) -> None:
        self.position = 0
        self.careful_from = careful_from
        self._stream = PlainStream(storage, path, size)

    @override
    def readable(self) -> bool:
        return True

    @override
    def read(self, size: int = -1, /) -> bytes:
        if self.careful_from is not None:
            size = max(1, min(size, self.careful_from - self.position))
        data = self._stream.read(size)
        self.position += len(data)
        return data
