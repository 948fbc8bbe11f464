"""IDX files, as MNIST and its family are handed out: images of one size in one file, their labels in another."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from typing_extensions import override

from pipelines.errors import InputError
from pipelines.image.plain_png import encode_grey_png
from pipelines.sources.base import Entry, Listing, Member, Source, Unit, image_id, member_of
from pipelines.sources.byte_stream import DECOMPRESSORS, PackedStream, PlainStream
from pipelines.sources.names import SPLIT_WORDS
from pipelines.sources.units import MAX_UNIT_ROWS, span_units
from pipelines.storage import Storage, StoredFile

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_HEADERS = {IMAGES: (b"\0\0\x08\x03", 3), LABELS: (b"\0\0\x08\x01", 1)}
MAX_FILE_BYTES = 2**31
HELD_BYTES = 128 * 2**20
"""A file of at most this much is read and held whole by a worker; of a larger one a unit holds its own rows."""
_GZIP = b"\x1f\x8b"
_SPLIT_WORDS = {**SPLIT_WORDS, "t10k": "test", "t10k60k": "test"}


class IdxSource(Source):
    """The images of IDX files, each as a PNG made from its pixels; keys are FILE!/NUMBER.png.

    Labels are the numbers in the file as text; files named train and test (or t10k) are given splits.
    """

    def __init__(self, storage: Storage, files: Sequence[StoredFile], name: str) -> None:
        super().__init__(storage.uri, name)
        self._storage = storage
        self._files = sorted(files, key=lambda file: file.path)
        self._images = [file.path for file in self._files if IMAGES in file.path]
        self._held: tuple[str, bytes] = ("", b"")
        """The last file that was read whole: (path, its bytes, unpacked)."""

    @override
    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_held": ("", b"")}

    @override
    def _list(self) -> Listing:
        splits = [_split_of(path) for path in self._images]
        entries: list[Entry] = []
        for number, path in enumerate(self._images):
            start, (count, height, width) = self._measure(path, IMAGES)
            labels = self._labels(path, count)
            size = height * width
            for row in range(count):
                key = f"{path}!/{row:06d}.png"
                entries.append(
                    Entry(
                        key=key,
                        occurrence=0,
                        image_id=image_id(self.name, key.encode(), 0),
                        size=size,
                        label=labels[row],
                        given_split=splits[number] if all(splits) else None,
                        offset=start + row * size,
                        extent=size,
                        detail=(number, height, width, int(count * size <= HELD_BYTES)),
                    )
                )
        return Listing(tuple(entries))

    def _labels(self, images: str, count: int) -> list[str | None]:
        """Return the label of each image; none where there is no file of labels."""
        path = images.replace(IMAGES, LABELS)
        if path not in {file.path for file in self._files}:
            return [None] * count
        start, (number,) = self._measure(path, LABELS)
        if number != count:
            raise InputError(
                f"{self._storage.address(path)} has {number:,} labels for {count:,} images",
                mend="fetch both files again, from one place",
            )
        return [str(value) for value in self._stream(path).read(start + count)[start:]]

    @override
    def listing_digest(self) -> str:
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.path}\0{file.size}\0{file.etag or f'{file.modified:.6f}'}\n".encode())
        return digest.hexdigest()

    @override
    def units(self) -> list[Unit]:
        parts: list[Sequence[Entry]] = []
        entries = self.listing().entries
        for number in range(len(self._images)):
            mine = [entry for entry in entries if entry.detail[0] == number]
            if not mine[0].detail[3]:
                parts += [unit.entries for unit in span_units(mine)]
                continue
            mine.sort(key=lambda entry: entry.image_id)
            parts += [mine[start : start + MAX_UNIT_ROWS] for start in range(0, len(mine), MAX_UNIT_ROWS)]
        return [Unit(index, tuple(part)) for index, part in enumerate(parts)]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        path = self._images[unit.entries[0].detail[0]]  # a unit lies in one file
        rows = self._rows(path, unit.entries)
        for entry, data in zip(unit.entries, rows, strict=True):
            _, height, width, _ = entry.detail
            if len(data) < height * width:
                yield member_of(entry, None, "CHANGED", "the file has fewer images than when it was listed")
                continue
            yield member_of(entry, encode_grey_png(np.frombuffer(data, np.uint8).reshape(height, width)))

    def _rows(self, path: str, entries: Sequence[Entry]) -> list[bytes]:
        """Return the pixels of each entry, from the held file or from one pass over it."""
        if entries[0].detail[3]:
            if self._held[0] != path:
                self._held = ("", b"")  # never two of them
                self._held = (path, self._stream(path).read(MAX_FILE_BYTES))
            return [self._held[1][entry.offset : entry.offset + entry.extent] for entry in entries]
        stream = self._stream(path)
        found: dict[int, bytes] = {}
        for entry in sorted(entries, key=lambda entry: entry.offset):
            stream.skip_to(entry.offset)
            found[entry.offset] = stream.read(entry.extent)
        return [found[entry.offset] for entry in entries]

    def _stream(self, path: str) -> PlainStream | PackedStream:
        size = self._storage.size(path) or 0
        if self._storage.read(path, 0, min(size, len(_GZIP))) == _GZIP:
            return PackedStream(self._storage, path, size, DECOMPRESSORS[_GZIP])
        return PlainStream(self._storage, path, size)

    def _measure(self, path: str, kind: str) -> tuple[int, tuple[int, ...]]:
        """Return where a file's data starts and its shape, having seen that it has all of it and no more."""
        magic, rank = _HEADERS[kind]
        start = 4 + 4 * rank
        address = self._storage.address(path)
        stream = self._stream(path)
        head = stream.read(start)
        _check_whole(stream, address)
        if len(head) < start or head[:4] != magic:
            raise InputError(f"{address} is no IDX file of {kind.partition('-')[0]}", mend="fetch it again")
        shape = struct.unpack(f">{rank}I", head[4:])
        sizes, wanted = " x ".join(map(str, shape)), math.prod(shape)
        if wanted > MAX_FILE_BYTES:
            raise InputError(f"{address} says {sizes}: more than {MAX_FILE_BYTES:,} bytes", mend="fetch it again")
        has = stream.skip_to(start + wanted + 1) - start
        _check_whole(stream, address)
        if has != wanted or not wanted:
            words = f"{has:,} bytes" if has <= wanted else "more bytes"
            raise InputError(f"{address} says {sizes} and has {words}", mend="fetch it again")
        return start, shape


def _check_whole(stream: PlainStream | PackedStream, address: str) -> None:
    reason, message = stream.fault if isinstance(stream, PackedStream) else ("", "")
    if reason:
        what = "is cut" if reason == "ARCHIVE_TRUNCATED" else f"is damaged: {message}"
        raise InputError(f"{address} {what}", mend="fetch it again")


def is_idx(path: str) -> bool:
    """Return whether a file's name is that of an IDX file of images or labels."""
    name = path.rpartition("/")[2].removesuffix(".gz")
    return name.endswith((IMAGES, LABELS))


def _split_of(path: str) -> str | None:
    words = path.rpartition("/")[2].lower().replace("_", "-").split("-")
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
