"""The only door to stored bytes: read a range, list, put, create-if-absent, delete; on a folder or an object store.

Object stores are reached through obstore. Local writes are our own, because a put must survive a power cut:
temporary file in `_work/tmp` -> fsync -> link or rename -> fsync of the folder (obstore never syncs).
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import MemoryStore, ObjectStore, from_url
from typing_extensions import override

from pipelines.errors import AlreadyExists, InputError, NotFound, StorageError
from pipelines.local_folders import make_folder, sweep_folder, sync_folder, walk_files
from pipelines.object_listing import list_objects
from pipelines.range_file import RangeFile

TEMPORARY = "_work/tmp"
_REMOTE_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
Data = bytes | memoryview
_MEMORY_STORES: dict[str, MemoryStore] = {}


@dataclass(frozen=True, order=True)
class StoredFile:
    """One stored object: path relative to the storage root, size in bytes, seconds since the epoch, entity tag."""

    path: str
    size: int
    modified: float
    etag: str


Files = list[StoredFile]  # inside a class that has a method of that name `list` means the method


class Storage:
    """A root under which objects are read and written by relative path.

    Open one with `Storage.open(uri)`. Instances pickle as their URI, so they travel to Ray workers.
    """

    is_local = False

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"

    @staticmethod
    def open(uri: str | Path) -> Storage:
        """Return the storage behind a local path, `file://`, `s3://`, `gs://`, `az://` or, for tests, `memory://NAME`.

        Nothing is created and nothing is connected to. Object stores take credentials and endpoint from the
        environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP=true`, ...).

        Raises:
            InputError: the scheme is unknown.
        """
        text = str(uri)
        scheme, separator, rest = text.partition("://")
        if not separator:
            return LocalStorage(os.path.abspath(os.path.expanduser(text)))
        if scheme == "file":
            return LocalStorage(os.path.abspath(unquote(rest)))
        if scheme == "memory" or scheme in _REMOTE_SCHEMES:
            return ObjectStorage(text)
        raise InputError(
            f"storage address {text!r} has the unknown scheme {scheme!r}",
            mend="give a local path, file://, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return Storage.open, (self.uri,)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def child(self, path: str) -> Storage:
        """Return the storage rooted at a folder below this one."""
        return Storage.open(f"{self.uri}/{path.strip('/')}" if path.strip("/") else self.uri)

    def address(self, path: str) -> str:
        """Return the full address of an object, as other tools open it."""
        return f"{self.uri}/{path}"

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of an object, or of `length` bytes of it from `offset`.

        Raises:
            NotFound: there is no such object.
            StorageError: it cannot be read.
        """
        raise StorageError(f"{self!r} cannot be read")

    def stat(self, path: str) -> StoredFile | None:
        """Return size, time and tag of one object, or None where there is none."""
        raise StorageError(f"{self!r} cannot be read")

    def size(self, path: str) -> int | None:
        """Return the size of an object in bytes, or None where there is none."""
        file = self.stat(path)
        return None if file is None else file.size

    def exists(self, path: str) -> bool:
        """Return whether the object is there."""
        return self.size(path) is not None

    def list(self, prefix: str = "") -> list[StoredFile]:
        """Return every object below a folder, sorted by path; temporary files are left out."""
        raise StorageError(f"{self!r} cannot be listed")

    def survey(self, prefix: str = "") -> tuple[Files, Files]:
        """Return what `list` does, and what lies there and is no file to read: links to nothing, pipes, devices."""
        return self.list(prefix), []

    def put(self, path: str, data: Data, *, lasts: bool = True) -> None:
        """Write an object whole, replacing what stood there; a reader sees the old bytes or the new ones.

        With `lasts` False a power cut may take it away again, which saves the time until a disk has it.
        """
        raise StorageError(f"{self!r} cannot be written")

    def put_all(self, files: Mapping[str, Data]) -> None:
        """Put several objects, each whole by itself; at the same time where the place allows it."""
        for path, data in files.items():
            self.put(path, data)

    def create(self, path: str, data: bytes) -> None:
        """Write an object only if none stands there.

        Raises:
            AlreadyExists: one stands there; it is left as it is.
        """
        raise StorageError(f"{self!r} cannot be written")

    def delete(self, *paths: str, lasts: bool = True) -> None:
        """Delete objects; those that are missing are fine. With `lasts` False a power cut may bring them back."""
        raise StorageError(f"{self!r} cannot be written")

    def sweep_temporary(self, older_than_s: float) -> tuple[Files, Files]:
        """Delete what killed puts left behind; return that, and what is too young to be told from a put at work."""
        return [], []

    def open_file(self, path: str) -> BinaryIO:
        """Return a seekable binary file over an object, read by ranges.

        Raises:
            NotFound: there is no such object.
        """
        raise StorageError(f"{self!r} cannot be read")


class LocalStorage(Storage):
    """A folder on this machine's disk."""

    is_local = True

    def _path(self, path: str) -> Path:
        return Path(self.uri, path) if path else Path(self.uri)

    @override
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._faults(path, "read"), self._path(path).open("rb") as file:
            if offset:
                file.seek(offset)
            return file.read() if length is None else file.read(length)

    @override
    def stat(self, path: str) -> StoredFile | None:
        with self._faults(path, "read"):
            target = self._path(path)
            if not target.is_file():
                return None
            status = target.stat()
            return StoredFile(path, status.st_size, status.st_mtime, "")

    @override
    def list(self, prefix: str = "") -> list[StoredFile]:
        return self.survey(prefix)[0]

    @override
    def survey(self, prefix: str = "") -> tuple[Files, Files]:
        start = prefix.strip("/")
        found: tuple[Files, Files] = [], []
        with self._faults(prefix, "list"):
            for path, status in walk_files(self._path(start), start, left_out=TEMPORARY):
                place = found[0] if stat.S_ISREG(status.st_mode) else found[1]
                place.append(StoredFile(path, status.st_size, status.st_mtime, ""))
        return sorted(found[0]), sorted(found[1])

    @override
    def put(self, path: str, data: Data, *, lasts: bool = True) -> None:
        target = self._path(path)
        with self._faults(path, "write"), self._temporary(data, target.parent, lasts=lasts) as temporary:
            temporary.replace(target)
            if lasts:
                sync_folder(target.parent)

    @override
    def put_all(self, files: Mapping[str, Data]) -> None:
        _put_at_once(self, files)

    @override
    def create(self, path: str, data: bytes) -> None:
        target = self._path(path)
        if self.exists(path):
            raise AlreadyExists(f"{target} already exists")
        with self._faults(path, "write"), self._temporary(data, target.parent) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                raise AlreadyExists(f"{target} already exists") from None
            sync_folder(target.parent)

    @override
    def delete(self, *paths: str, lasts: bool = True) -> None:
        for path in paths:
            with self._faults(path, "delete"):
                self._path(path).unlink(missing_ok=True)
        for folder in {self._path(path).parent for path in paths} if lasts else ():
            with self._faults(str(folder), "sync"):
                if folder.is_dir():
                    sync_folder(folder)

    @override
    def sweep_temporary(self, older_than_s: float) -> tuple[Files, Files]:
        if not self._path(TEMPORARY).is_dir():
            return [], []
        with self._faults(TEMPORARY, "clean"):
            swept, left = sweep_folder(self._path(TEMPORARY), older_than_s)
        return _temporaries(swept), _temporaries(left)

    @override
    def open_file(self, path: str) -> BinaryIO:
        with self._faults(path, "read"):
            return self._path(path).open("rb")

    @contextlib.contextmanager
    def _temporary(self, data: Data, folder: Path, *, lasts: bool = True) -> Iterator[Path]:
        """Yield a synced temporary file that holds the data, on the same file system as its target."""
        make_folder(folder)  # even for what need not last: what does may lie there later, and finds it made
        make_folder(self._path(TEMPORARY))
        temporary = self._path(TEMPORARY) / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if lasts:
                    os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _faults(self, path: str, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"{self._path(path)} does not exist") from error
        except OSError as error:
            raise StorageError(
                f"cannot {verb} {self._path(path)}: {error.strerror or error}",
                mend="check that the path is right, writable, and that its disk has room",
            ) from error


class ObjectStorage(Storage):
    """A prefix in an object store, or in a process-wide memory store for tests."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        # Split by hand: to a URL parser `#` and `?` end a path, and two outputs would become one prefix.
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        self._prefix = prefix.strip("/")
        self._store: ObjectStore
        if scheme == "memory":
            self._store = _MEMORY_STORES.setdefault(bucket, MemoryStore())
            return
        try:
            self._store = from_url(f"{scheme}://{bucket}")
        except (BaseError, ValueError) as error:
            raise StorageError(
                f"{uri} cannot be opened: {str(error).strip().splitlines()[0]}",
                mend="check the address and the store's settings in the environment",
            ) from error

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}".strip("/")

    @override
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._faults(path, "read"):
            if length is not None:
                if length == 0:
                    return b""
                return bytes(obstore.get_range(self._store, self._key(path), start=offset, length=length))
            whole = obstore.get(self._store, self._key(path)).bytes()
            return bytes(whole)[offset:] if offset else bytes(whole)

    @override
    def stat(self, path: str) -> StoredFile | None:
        try:
            with self._faults(path, "read"):
                entry = obstore.head(self._store, self._key(path))
                return StoredFile(path, entry["size"], entry["last_modified"].timestamp(), entry["e_tag"] or "")
        except NotFound:
            return None

    @override
    def list(self, prefix: str = "") -> list[StoredFile]:
        cut = len(self._prefix) + 1 if self._prefix else 0
        with self._faults(prefix, "list"):
            files = [
                StoredFile(entry["path"][cut:], entry["size"], entry["last_modified"].timestamp(), entry["e_tag"] or "")
                for entry in list_objects(self._store, self._key(prefix.strip("/")))
            ]
        return sorted((file for file in files if not file.path.startswith(TEMPORARY)), key=lambda file: file.path)

    @override
    def put(self, path: str, data: Data, *, lasts: bool = True) -> None:
        with self._faults(path, "write"):
            obstore.put(self._store, self._key(path), data)

    @override
    def put_all(self, files: Mapping[str, Data]) -> None:
        _put_at_once(self, files)

    @override
    def create(self, path: str, data: bytes) -> None:
        with self._faults(path, "write"):
            # A multipart upload cannot be conditional, and the answer must be the store's own.
            obstore.put(self._store, self._key(path), data, mode="create", use_multipart=False)

    @override
    def delete(self, *paths: str, lasts: bool = True) -> None:
        if len(paths) > 1:
            # Some stores call a missing object a fault, some know no request for several: then one by one.
            with contextlib.suppress(BaseError, OSError, ValueError):
                obstore.delete(self._store, [self._key(path) for path in paths])
                return
        for path in paths:
            with contextlib.suppress(NotFound), self._faults(path, "delete"):
                obstore.delete(self._store, self._key(path))

    @override
    def open_file(self, path: str) -> BinaryIO:
        with self._faults(path, "read"):
            reader = obstore.open_reader(self._store, self._key(path))
        return cast(
            BinaryIO, io.BufferedReader(RangeFile(reader, partial(self._faults, path, "read")), buffer_size=1 << 20)
        )

    @contextlib.contextmanager
    def _faults(self, path: str, verb: str) -> Iterator[None]:
        address = self.address(path)
        try:
            yield
        except FileNotFoundError as error:  # obstore raises the built-in one
            raise NotFound(f"{address} does not exist") from error
        except AlreadyExistsError as error:
            raise AlreadyExists(f"{address} already exists") from error
        except (BaseError, OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise StorageError(
                f"cannot {verb} {address}: {first}",
                mend="check the address, the credentials in the environment and the store's endpoint",
            ) from error


def _temporaries(found: Mapping[str, os.stat_result]) -> list[StoredFile]:
    return [StoredFile(f"{TEMPORARY}/{name}", each.st_size, each.st_mtime, "") for name, each in sorted(found.items())]


def _put_at_once(storage: Storage, files: Mapping[str, Data]) -> None:
    """Put objects from as many threads: while a disk or a store makes sure of one, the next is on its way."""
    with ThreadPoolExecutor(max(1, len(files))) as pool:
        for written in [pool.submit(storage.put, path, data) for path, data in files.items()]:
            written.result()
