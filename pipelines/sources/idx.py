"""IDX files, as MNIST and its family are handed out: images of one size in one file, their labels in another."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from pipelines.errors import InputError
from pipelines.image.plain_png import encode_grey_png
from pipelines.sources.base import Entry, Listing, Member, Source, Unit, image_id, member_of
from pipelines.sources.names import SPLIT_WORDS
from pipelines.storage import Storage, StoredFile

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_HEADERS = {IMAGES: (b"\0\0\x08\x03", 3), LABELS: (b"\0\0\x08\x01", 1)}
MAX_FILE_BYTES = 2**31
_UNIT_ROWS = 4_096
_SPLIT_WORDS = {**SPLIT_WORDS, "t10k": "test", "t10k60k": "test"}


@dataclass(frozen=True)
class _Array:
    """The shape of an IDX file and its bytes."""

    shape: tuple[int, ...]
    data: bytes


class IdxSource(Source):
    """The images of IDX files, each as a PNG made from its pixels; keys are FILE!/NUMBER.png.

    Labels are the numbers in the file as text; files named train and test (or t10k) are given splits.
    """

    def __init__(self, storage: Storage, files: Sequence[StoredFile], name: str) -> None:
        super().__init__(storage.uri, name)
        self._storage = storage
        self._files = sorted(files, key=lambda file: file.path)
        self._images = [file.path for file in self._files if IMAGES in file.path]
        self._loaded: dict[str, _Array] = {}

    @override
    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_loaded": {}}

    @override
    def _list(self) -> Listing:
        splits = [_split_of(path) for path in self._images]
        entries: list[Entry] = []
        for number, path in enumerate(self._images):
            count, height, width = self._array(path, IMAGES).shape
            labels = self._labels(path, count)
            for row in range(count):
                key = f"{path}!/{row:06d}.png"
                entries.append(
                    Entry(
                        key=key,
                        occurrence=0,
                        image_id=image_id(self.name, key.encode(), 0),
                        size=height * width,
                        label=labels[row],
                        given_split=splits[number] if all(splits) else None,
                        reason="",
                        message="",
                        flags=(),
                        offset=0,
                        extent=0,
                        detail=(number, row),
                    )
                )
        return Listing(tuple(entries))

    def _labels(self, images: str, count: int) -> list[str | None]:
        """Return the label of each image; none where there is no file of labels."""
        path = images.replace(IMAGES, LABELS)
        if path not in {file.path for file in self._files}:
            return [None] * count
        labels = self._array(path, LABELS)
        if labels.shape[0] != count:
            raise InputError(
                f"{self._storage.address(path)} has {labels.shape[0]:,} labels for {count:,} images",
                mend="fetch both files again, from one place",
            )
        return [str(value) for value in labels.data]

    @override
    def listing_digest(self) -> str:
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.path}\0{file.size}\0{file.etag or f'{file.modified:.6f}'}\n".encode())
        return digest.hexdigest()

    @override
    def units(self) -> list[Unit]:
        entries = sorted(self.listing().entries, key=lambda entry: (entry.detail[0], entry.image_id))
        units: list[Unit] = []
        for number in range(len(self._images)):
            mine = [entry for entry in entries if entry.detail[0] == number]
            for start in range(0, len(mine), _UNIT_ROWS):
                units.append(Unit(len(units), tuple(mine[start : start + _UNIT_ROWS])))
        return units

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        for entry in unit.entries:
            number, row = entry.detail
            array = self._array(self._images[number], IMAGES)
            count, height, width = array.shape
            if row >= count:
                yield member_of(entry, None, "CHANGED", "the file has fewer images than when it was listed")
                continue
            pixels = np.frombuffer(array.data, np.uint8, height * width, row * height * width)
            yield member_of(entry, encode_grey_png(pixels.reshape(height, width)))

    def _array(self, path: str, kind: str) -> _Array:
        if path not in self._loaded:
            self._loaded[path] = _parse(self._read(path), kind, self._storage.address(path))
        return self._loaded[path]

    def _read(self, path: str) -> bytes:
        data = self._storage.read(path)
        if not data.startswith(b"\x1f\x8b"):
            return data
        unpacker = zlib.decompressobj(31)
        try:
            plain = unpacker.decompress(data, MAX_FILE_BYTES)
        except zlib.error as error:
            raise InputError(f"{self._storage.address(path)} is damaged: {error}", mend="fetch it again") from error
        if not unpacker.eof:
            what = "is cut" if len(plain) < MAX_FILE_BYTES else f"unpacks to more than {MAX_FILE_BYTES:,} bytes"
            raise InputError(f"{self._storage.address(path)} {what}", mend="fetch it again")
        return plain


def is_idx(path: str) -> bool:
    """Return whether a file's name is that of an IDX file of images or labels."""
    name = path.rpartition("/")[2].removesuffix(".gz")
    return name.endswith((IMAGES, LABELS))


def _parse(data: bytes, kind: str, address: str) -> _Array:
    magic, rank = _HEADERS[kind]
    start = 4 + 4 * rank
    if len(data) < start or data[:4] != magic:
        raise InputError(f"{address} is no IDX file of {kind.partition('-')[0]}", mend="fetch it again")
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != int(np.prod(shape, dtype=np.int64)) or 0 in shape:
        sizes = " x ".join(map(str, shape))
        raise InputError(f"{address} says {sizes} and has {len(data) - start:,} bytes", mend="fetch it again")
    return _Array(shape, data[start:])


def _split_of(path: str) -> str | None:
    words = path.rpartition("/")[2].lower().replace("_", "-").split("-")
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
