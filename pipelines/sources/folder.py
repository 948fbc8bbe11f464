"""A folder of images, on a disk or under an object store's prefix."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence

from typing_extensions import override

from pipelines.errors import NotFound, StorageError
from pipelines.sources.addresses import Pattern
from pipelines.sources.ahead import read_each
from pipelines.sources.base import Entry, Found, Listing, Member, Source, Unit, make_listing, member_of
from pipelines.sources.names import escaped_bytes
from pipelines.sources.units import file_units
from pipelines.storage import Storage, StoredFile

MAX_FILE_BYTES = 64 * 2**20
"""Larger files are refused by their size, unread."""


class FolderSource(Source):
    """Every file below a folder, or those that match a pattern; its key is its path relative to the folder."""

    def __init__(self, storage: Storage, name: str, pattern: Pattern | None = None) -> None:
        super().__init__(storage.address(pattern.pattern) if pattern else storage.uri, name)
        self.storage = storage
        self._pattern = pattern
        self._files: list[StoredFile] | None = None

    @override
    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_files": None}

    def files(self) -> list[StoredFile]:
        """Return the stored files, listed once."""
        if self._files is None:
            self._files = self.storage.list() if self._pattern is None else self._matching(self._pattern)
        return self._files

    def _matching(self, pattern: Pattern) -> list[StoredFile]:
        if not self.storage.is_local or "**" in pattern.pattern:
            return [file for file in self.storage.list() if pattern.matches(file.path)]
        # folders that do not match are not even listed: the base may be a home folder
        found: dict[str, StoredFile] = {}
        for path in glob.glob(pattern.pattern, root_dir=self.storage.uri):
            file = self.storage.stat(path)
            for each in [file] if file else self.storage.list(path):
                found[each.path] = each
        return [found[path] for path in sorted(found)]

    @override
    def _list(self) -> Listing:
        return make_listing(self.name, [_found(file) for file in self.files()])

    @override
    def listing_digest(self) -> str:
        digest = hashlib.sha256()
        for file in self.files():
            state = file.etag or f"{file.modified:.6f}"
            digest.update(f"{file.path}\0{file.size}\0{state}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    @override
    def units(self) -> list[Unit]:
        return file_units(self.listing().entries)

    @override
    def units_of(self, entries: Sequence[Entry]) -> list[Unit]:
        return file_units(entries)

    @override
    def tokens(self) -> list[str]:
        states = {file.path: file.etag or f"{file.modified:.6f}" for file in self.files()}
        # a set that torchvision knows lists files that may not be there
        return [f"{entry.size}-{states.get(_path(entry), '')}" for entry in self.listing().entries]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        yield from read_each(unit.entries, self._read, is_local=self.storage.is_local)

    def _read(self, entry: Entry) -> Member:
        if entry.reason:
            return member_of(entry, None)
        try:
            data = self.storage.read(_path(entry))
        except NotFound:
            return member_of(entry, None, "CHANGED", "the file was there when the source was listed and is gone")
        except StorageError as error:
            return member_of(entry, None, "UNREADABLE", error.what)
        if len(data) != entry.size:
            return member_of(entry, None, "CHANGED", f"the file had {entry.size:,} bytes when it was listed")
        return member_of(entry, data)


def _found(file: StoredFile) -> Found:
    name = file.path.encode(errors="surrogateescape")
    if file.size > MAX_FILE_BYTES:
        return Found(name, file.size, reason="TOO_LARGE", message=f"{file.size:,} bytes are more than 64 MB")
    return Found(name, file.size)


def _path(entry: Entry) -> str:
    return escaped_bytes(entry.key).decode(errors="surrogateescape") if "name_bytes" in entry.flags else entry.key
