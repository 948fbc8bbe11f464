"""A folder of images, on a disk or under an object store's prefix."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence

from typing_extensions import override

from pipelines.errors import InputError, NotFound, StorageError
from pipelines.sources.addresses import Pattern
from pipelines.sources.ahead import read_each
from pipelines.sources.base import Entry, Found, Listing, Member, Source, Unit, make_listing, member_of
from pipelines.sources.names import escaped_bytes, ignored_as
from pipelines.sources.units import file_units
from pipelines.storage import Storage, StoredFile

logger = logging.getLogger(__name__)

_NO_FILE = "links that lead to nothing, pipes or devices"

MAX_FILE_BYTES = 64 * 2**20
"""Larger files are refused by their size, unread."""


class FolderSource(Source):
    """Every file below a folder, or those that match a pattern; its key is its path relative to the folder."""

    def __init__(self, storage: Storage, name: str, pattern: Pattern | None = None) -> None:
        super().__init__(storage.address(pattern.pattern) if pattern else storage.uri, name)
        self.storage = storage
        self._pattern = pattern
        self._files: list[StoredFile] | None = None
        self._odd: list[StoredFile] = []
        """What is no file to read, though its name may be an image's."""

    @override
    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_files": None, "_odd": []}

    def files(self) -> list[StoredFile]:
        """Return the stored files, listed once.

        Raises:
            InputError: there are none, but links that lead to nothing.
        """
        if self._files is None:
            files, odd = self.storage.survey() if self._pattern is None else self._matching(self._pattern)
            self._files, self._odd = files, [each for each in odd if not ignored_as(each.path)]
            if self._odd:  # by number alone, as a key may name a person
                logger.warning("%s holds %d of what is no file to read: %s", self.uri, len(self._odd), _NO_FILE)
            if self._odd and not files:
                raise InputError(
                    f"no images in {self.uri}, but {len(self._odd):,} of what is no file to read: {_NO_FILE}",
                    where=self.storage.address(self._odd[0].path),
                    mend="where links lead to content that is kept elsewhere, fetch it first (dvc pull, git annex get)",
                )
        return self._files

    def _matching(self, pattern: Pattern) -> tuple[list[StoredFile], list[StoredFile]]:
        if not self.storage.is_local or "**" in pattern.pattern:
            files, odd = self.storage.survey()
            matching = [[each for each in of if pattern.matches(each.path)] for of in (files, odd)]
            return matching[0], matching[1]
        # folders that do not match are not even listed: the base may be a home folder
        found: dict[str, StoredFile] = {}
        nothing: dict[str, StoredFile] = {}
        for path in glob.glob(pattern.pattern, root_dir=self.storage.uri):
            file = self.storage.stat(path)
            files, odd = ([file], []) if file else self.storage.survey(path)
            if not file and not os.path.isdir(self.storage.address(path)):
                odd = [StoredFile(path, 0, 0.0, "")]
            found |= {each.path: each for each in files}
            nothing |= {each.path: each for each in odd}
        return [found[path] for path in sorted(found)], [nothing[path] for path in sorted(nothing)]

    @override
    def _list(self) -> Listing:
        files = self.files()
        found = [_found(file) for file in files]
        if self._odd:
            found = sorted(
                [*found, *map(self._unread, self._odd)], key=lambda each: each.name.decode(errors="surrogateescape")
            )
        return make_listing(self.name, found)

    def _unread(self, odd: StoredFile) -> Found:
        """Return what cannot be read as a member with a reason, as an archive's links and devices are."""
        name = odd.path.encode(errors="surrogateescape")
        if os.path.exists(self.storage.address(odd.path)):
            return Found(name, 0, reason="SPECIAL", message="a device, pipe or socket")
        return Found(name, 0, reason="LINK", message="a symbolic link that leads to no file; fetch what it stands for")

    @override
    def listing_digest(self) -> str:
        digest = hashlib.sha256()
        for file in self.files():
            state = file.etag or f"{file.modified:.6f}"
            digest.update(f"{file.path}\0{file.size}\0{state}\n".encode(errors="surrogateescape"))
        for each in self._odd:
            digest.update(f"{each.path}\0\n".encode(errors="surrogateescape"))
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
