"""Folders of this machine: created and synced so that a power cut leaves no gap, and walked without going in rounds."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_LEADS_NOWHERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)


def make_folder(folder: Path) -> None:
    """Create a folder one level at a time, each synced into its parent, so that a power cut leaves no gap."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)  # also where another made it just now, who may not have come to that yet


def sync_folder(folder: Path) -> None:
    """Make sure that names made, changed or taken out in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_folder(folder: Path, older_than_s: float) -> tuple[dict[str, os.stat_result], dict[str, os.stat_result]]:
    """Delete the files right in a folder that were last written longer ago; return those, and those that are left."""
    deleted: dict[str, os.stat_result] = {}
    left: dict[str, os.stat_result] = {}
    now = time.time()
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # put in place, or swept by another, since it was listed
                status = entry.stat(follow_symlinks=False)
                if now - status.st_mtime <= older_than_s:
                    left[entry.name] = status
                    continue
                os.unlink(entry.path)
                deleted[entry.name] = status
    if deleted:
        sync_folder(folder)
    return deleted, left


def walk_files(
    folder: Path, relative: str, *, left_out: str, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the relative path and status of what lies below a folder and is no folder, in no order.

    A link to a folder that it lies in is not followed round and round. Of a link that leads to nothing, or round to
    itself, the status is its own.
    """
    if not folder.is_dir():
        return
    here = folder.stat()
    above = (*above, (here.st_dev, here.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            if path == left_out:
                continue
            with contextlib.suppress(FileNotFoundError):  # gone since the folder was read
                status = _status(entry)
                if not stat.S_ISDIR(status.st_mode):
                    yield path, status
                elif (status.st_dev, status.st_ino) not in above:
                    yield from walk_files(Path(entry.path), path, left_out=left_out, above=above)


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in _LEADS_NOWHERE and entry.is_symlink():
            return entry.stat(follow_symlinks=False)
        raise
