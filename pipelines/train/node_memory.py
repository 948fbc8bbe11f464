"""Memory that the processes of one machine fill together and then all read, so that it is there once.

A file in shared memory, its pages reserved before anybody writes (a full /dev/shm would end a process without a word).
Each part of it is filled under the kernel's lock of one byte and marked as done after that, so that whoever is free
takes the next one, and the part of a process that was killed is filled by another.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

PLACE = Path("/dev/shm")  # noqa: S108 - nobody else's: see `_folder`
_SHARE = 0.5
"""Share of what is free there that may be taken: Ray's object store lies there too."""
_DONE = 1


class NodeMemory:
    """An array of bytes that other processes of this user and machine see too, in parts that are filled once.

    Args:
        key: what the contents are; who names the same gets the same memory.
        size: bytes.
        parts: number of parts.
        place: a folder in memory.

    Raises:
        OSError: there is no such place here, or no room.
    """

    def __init__(self, key: str, size: int, parts: int, *, place: Path = PLACE) -> None:
        folder = _folder(place)
        self._path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}-{size}-{parts}"
        self._end = size + parts
        """The byte whose lock is held by whoever reserves the pages or deletes the name."""
        sweep(folder)
        self._file = _open_locked(self._path)
        try:
            with _byte_locked(self._file, self._end):
                _reserve(self._file, size + parts)
            memory = mmap.mmap(self._file, size + parts)
        except BaseException:
            self.release()
            raise
        everything: npt.NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8)  # keeps the mapping
        self.array, self._state = everything[:size], everything[size:]

    def fill(self, fill_part: Callable[[int], object], first: int = 0) -> None:
        """Have every part filled, by this process or another; return when all are.

        Args:
            fill_part: writes one part into `array`; what it raises leaves the part to others.
            first: the part to begin with; others begin elsewhere.
        """
        number = len(self._state)
        parts = [(first + index) % number for index in range(number)]
        # Those that somebody else is at are waited for at the end, and filled where he has died or failed.
        for part in [part for part in parts if not self._fill_one(part, fill_part, waits=False)]:
            self._fill_one(part, fill_part, waits=True)

    def release(self) -> None:
        """Let nobody else find this memory; its pages are given back when no living process has an array of it.

        Where another has released it before, its name may be that of a new one by now, which is left alone.
        """
        if self._file >= 0:
            # One at a time compares and deletes, so that none deletes what came after another's deletion.
            with _byte_locked(self._file, self._end):
                _unlink(self._path, self._file)
            os.close(self._file)
            self._file = -1

    def _fill_one(self, part: int, fill_part: Callable[[int], object], *, waits: bool) -> bool:
        """Return whether a part is filled now; False where somebody else is at it."""
        # The lock is taken even of what is done: with it comes what its holder wrote.
        with _byte_locked(self._file, len(self.array) + part, waits=waits) as is_locked:
            if is_locked and self._state[part] != _DONE:
                fill_part(part)
                self._state[part] = _DONE
        return is_locked


def sweep(folder: Path) -> None:
    """Delete what runs have left that were killed before they released it: what no living process holds."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError), _opened(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _unlink(path, file)


def _folder(place: Path) -> Path:
    """Return this user's folder, made where it is not there; one that another user has put there is refused."""
    folder = place / f"resnet-pipelines-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def _open_locked(path: Path) -> int:
    """Open a file, made where it is not there, and hold a shared lock on it, which ends with the process."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        if _is_at(path, file):
            return file
        os.close(file)  # swept, or released, between the two calls


def _is_at(path: Path, file: int) -> bool:
    """Return whether an open file is the one of that name: deleted, it may be followed by another's."""
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _unlink(path: Path, file: int) -> None:
    """Delete a name where it is that of an open file; the caller's lock keeps others from doing so in between."""
    if _is_at(path, file):
        path.unlink(missing_ok=True)


def _reserve(file: int, size: int) -> None:
    """Give a file its pages, unless somebody has.

    Raises:
        OSError: there is no room.
    """
    if os.fstat(file).st_size == size:
        return
    there = os.fstatvfs(file)
    free = there.f_bavail * there.f_frsize
    if size > _SHARE * free:
        raise OSError(f"{size >> 20} MB are more than half of the {free >> 20} MB that are free in shared memory")
    os.posix_fallocate(file, 0, size)


@contextlib.contextmanager
def _byte_locked(file: int, at: int, *, waits: bool = True) -> Iterator[bool]:
    """Hold the lock of one byte, and tell whether it was to be had; the kernel takes it from a process that ends."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB), 1, at)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, at)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR)
    try:
        yield file
    finally:
        os.close(file)
