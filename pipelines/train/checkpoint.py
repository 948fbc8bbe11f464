"""Checkpoints in a run's storage: a few files and, last, a marker that holds their hashes.

    checkpoints/step-00000120/{weights,optimizer,...}.safetensors, state.json, COMMIT

Without COMMIT, or where a hash differs, a checkpoint does not count: loading says so and goes to the one before. Names
order by step, never by time, so a clock that jumps does no harm. Nothing here knows what the files mean, and nothing
assumes that the one who reads shares a disk with the one who wrote.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.errors import DataError, NotFound
from pipelines.storage import Storage

_LOGGER = logging.getLogger(__name__)

FORMAT = "resnet-pipelines/checkpoint"
FORMAT_VERSION = 1
KEEP_LAST = 2
"""Checkpoints kept besides the best: the newest, and the one before in case the newest is damaged."""

_FOLDER = "checkpoints"
_COMMIT = "COMMIT"
_NAME = re.compile(rf"^{_FOLDER}/step-(\d+)/(.+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the step it was taken after, and its files."""

    step: int
    files: dict[str, bytes]


class DamagedCheckpoint(DataError):
    """A checkpoint that is cut short, altered or not committed."""


def save_checkpoint(run: Storage, step: int, files: Mapping[str, bytes]) -> None:
    """Write a checkpoint; it counts once this returns.

    Args:
        run: storage of the run.
        step: steps done; a checkpoint of the same step is replaced.
        files: name to bytes.

    Raises:
        StorageError: it could not be written; earlier checkpoints are untouched.
    """
    commit = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in files.items()},
    }
    run.delete(_path(step, _COMMIT))
    for name, data in files.items():
        run.put(_path(step, name), data)
    run.put(_path(step, _COMMIT), json.dumps(commit, indent=1).encode())


def load_checkpoint(run: Storage, step: int) -> Checkpoint:
    """Return the checkpoint of a step, every byte checked.

    Raises:
        DamagedCheckpoint: it is not whole; says which file and why.
    """
    try:
        commit = json.loads(run.read(_path(step, _COMMIT)))
        version, listed = int(commit["format_version"]), dict(commit["files"])
    except NotFound:
        raise DamagedCheckpoint(f"checkpoint {_address(run, step)} was never finished: {_COMMIT} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"checkpoint {_address(run, step)} is damaged: {_COMMIT} is unreadable") from error
    if version > FORMAT_VERSION:
        raise DataError(
            f"checkpoint {_address(run, step)} has format version {version}; this program reads up to {FORMAT_VERSION}",
            mend="upgrade resnet-pipelines",
        )
    files = {}
    for name, facts in listed.items():
        try:
            data = run.read(_path(step, name))
        except NotFound:
            raise DamagedCheckpoint(f"checkpoint {_address(run, step)} is damaged: {name} is missing") from None
        if len(data) != facts["bytes"]:
            raise DamagedCheckpoint(
                f"checkpoint {_address(run, step)} is damaged: {name} has {len(data)} bytes, not {facts['bytes']}"
            )
        if _digest(data) != facts["sha256"]:
            raise DamagedCheckpoint(f"checkpoint {_address(run, step)} is damaged: the SHA-256 of {name} differs")
        files[name] = data
    return Checkpoint(step, files)


def load_latest(run: Storage, *, below: int | None = None) -> Checkpoint | None:
    """Return the newest whole checkpoint, or None; each one passed over is said aloud.

    Args:
        run: storage of the run.
        below: look only at steps smaller than this one.
    """
    for step in reversed(committed_steps(run)):
        if below is not None and step >= below:
            continue
        try:
            return load_checkpoint(run, step)
        except DamagedCheckpoint as damage:
            _LOGGER.warning("%s; going back to the one before it", damage.what)
    return None


def committed_steps(run: Storage) -> list[int]:
    """Return the steps of all committed checkpoints, ascending; their bytes are not checked."""
    names = (_NAME.match(file.path) for file in run.list(_FOLDER))
    return sorted(int(name[1]) for name in names if name and name[2] == _COMMIT)


def commit_path(step: int) -> str:
    """Return where the marker of a checkpoint stands."""
    return _path(step, _COMMIT)


def prune_checkpoints(run: Storage, *, keep: Iterable[int] = ()) -> None:
    """Delete all checkpoints but the newest `KEEP_LAST` and those of the steps in `keep`.

    The marker goes first, so that a checkpoint deleted by half never counts. Unfinished ones older than the newest go
    too: they are what a killed writer left.
    """
    steps = committed_steps(run)
    kept = {*steps[-KEEP_LAST:], *keep}
    newest = steps[-1] if steps else -1
    doomed: dict[int, list[str]] = {}
    for file in run.list(_FOLDER):
        name = _NAME.match(file.path)
        if name and int(name[1]) not in kept and int(name[1]) < newest:
            doomed.setdefault(int(name[1]), []).append(name[2])
    for step, files in doomed.items():
        for file_name in sorted(files, key=lambda name: name != _COMMIT):
            run.delete(_path(step, file_name))


def discard_checkpoints(run: Storage, *, above: int) -> None:
    """Delete all checkpoints of steps after `above`: they are of a way that is not gone on with."""
    files = [(name[1], name[2]) for file in run.list(_FOLDER) if (name := _NAME.match(file.path))]
    for step, file_name in sorted(files, key=lambda each: each[1] != _COMMIT):
        if int(step) > above:
            run.delete(_path(int(step), file_name))


def _path(step: int, name: str) -> str:
    return f"{_FOLDER}/step-{step:08d}/{name}"


def _address(run: Storage, step: int) -> str:
    return run.address(f"{_FOLDER}/step-{step:08d}")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
