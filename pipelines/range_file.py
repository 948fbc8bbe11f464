"""A seekable file over an object, read by ranges."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager

import obstore
from typing_extensions import override


class RangeFile(io.RawIOBase):
    """A raw file over obstore's reader, so that the standard library buffers it and pyarrow accepts it.

    Args:
        reader: obstore's.
        faults: makes the context in which it is asked, which turns its errors into ours.
    """

    def __init__(self, reader: obstore.ReadableFile, faults: Callable[[], AbstractContextManager[None]]) -> None:
        self._reader = reader
        self._faults = faults

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._faults():
            return int(self._reader.seek(offset, whence))

    @override
    def tell(self) -> int:
        return int(self._reader.tell())

    @override
    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        with self._faults():
            data = self._reader.read(len(view))
        view[: len(data)] = memoryview(data)
        return len(data)
