"""Checkpoints in a run's storage: a few files and, last, a marker that holds their hashes.

    checkpoints/step-00000120/{weights,optimizer,...}.safetensors, state.json, COMMIT [, AMENDED]

Without COMMIT, or where a hash differs, a checkpoint does not count: loading says so and goes to the one before. Names
order by step, never by time, so a clock that jumps does no harm. A checkpoint that stands is never written again, as
others may be reading it and the disk may be full: what is decided about it later stands beside it, in AMENDED. Nothing
here knows what the files mean, and nothing assumes that the one who reads shares a disk with the one who wrote.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import DataError, NotFound
from pipelines.stage_output import canonical_json
from pipelines.storage import Storage

_LOGGER = logging.getLogger(__name__)

FORMAT = "resnet-pipelines/checkpoint"
FORMAT_VERSION = 1
KEEP_LAST = 2
"""Checkpoints kept besides the best: the newest, and the one before in case the newest is damaged."""

_FOLDER = "checkpoints"
_COMMIT = "COMMIT"
_AMENDED = "AMENDED"
_SEAL = "sha256"
"""Field of a marker that holds the hash of its other fields. Every later format has it too: a version that is too new
can then be told from a flipped bit."""
_FILE_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
_NAME = re.compile(rf"^{_FOLDER}/step-(\d+)/(.+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the step it was taken after, and its files."""

    step: int
    files: dict[str, bytes]
    amended: dict[str, Any] = field(default_factory=dict)
    """What was decided about it after it was taken (`amend_checkpoint`)."""


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
    run.delete(_path(step, _COMMIT), _path(step, _AMENDED))
    for name, data in files.items():
        run.put(_path(step, name), data)
    listed = {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in files.items()}
    run.put(_path(step, _COMMIT), _seal(step, {"files": listed}))


def amend_checkpoint(run: Storage, step: int, values: Mapping[str, Any]) -> None:
    """Put JSON values beside a checkpoint that stands, to be read with it; earlier ones are replaced.

    Raises:
        StorageError: they could not be written; the checkpoint is untouched.
    """
    run.put(_path(step, _AMENDED), _seal(step, {"values": dict(values)}))


def load_checkpoint(run: Storage, step: int) -> Checkpoint:
    """Return the checkpoint of a step, every byte checked.

    Raises:
        DamagedCheckpoint: it is not whole; says which file and why.
    """
    try:
        listed = _read_commit(run, step)
    except NotFound:
        raise DamagedCheckpoint(f"checkpoint {_address(run, step)} was never finished: {_COMMIT} is missing") from None
    files = {}
    for name, (size, digest) in listed.items():
        try:
            data = run.read(_path(step, name))
        except NotFound:
            raise DamagedCheckpoint(f"checkpoint {_address(run, step)} is damaged: {name} is missing") from None
        if len(data) != size:
            raise DamagedCheckpoint(
                f"checkpoint {_address(run, step)} is damaged: {name} has {len(data)} bytes, not {size}"
            )
        if _digest(data) != digest:
            raise DamagedCheckpoint(f"checkpoint {_address(run, step)} is damaged: the SHA-256 of {name} differs")
        files[name] = data
    return Checkpoint(step, files, _read_amended(run, step))


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


def prune_checkpoints(run: Storage, newest: int, *, keep: Iterable[int] = ()) -> None:
    """Delete all checkpoints but the newest `KEEP_LAST` and those of the steps in `keep`.

    `newest` is the step of the one written last. What lies above it is of a way that is not gone on with, such as
    damaged ones that a resumed run has passed over: by its number alone it would count as newest for ever. The marker
    goes first, so that a checkpoint deleted by half never counts. Unfinished ones go too: a killed writer left them.
    """
    files = [(int(name[1]), name[2]) for file in run.list(_FOLDER) if (name := _NAME.match(file.path))]
    standing = sorted(step for step, file_name in files if file_name == _COMMIT and step <= newest)
    _delete(run, {*standing[-KEEP_LAST:], *(step for step in keep if step <= newest), newest}, files)


def discard_checkpoints(run: Storage, *, above: int) -> None:
    """Delete all checkpoints of steps after `above`: they are of a way that is not gone on with."""
    files = [(int(name[1]), name[2]) for file in run.list(_FOLDER) if (name := _NAME.match(file.path))]
    _delete(run, {step for step, _ in files if step <= above}, files)


def _delete(run: Storage, kept: set[int], files: Iterable[tuple[int, str]]) -> None:
    """Delete the files (step, name) of all steps that are not kept, all markers first."""
    for step, file_name in sorted(files, key=lambda each: (each[1] != _COMMIT, each)):
        if step not in kept:
            run.delete(_path(step, file_name))


def _seal(step: int, content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a marker: what it is, its content, and the hash of both."""
    marker = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": step, **content}
    return json.dumps({**marker, _SEAL: _digest(canonical_json(marker))}, indent=1).encode()


def _open_seal(data: bytes, step: int, content: str) -> tuple[int, Any]:
    """Return a marker's format version and what it holds under `content`; None where the version is too new.

    Raises:
        ValueError: a bit of it is not as it was written.
    """
    marker = json.loads(data)
    if not isinstance(marker, dict):
        raise ValueError("it holds no object")
    is_sealed = _SEAL in marker  # those of earlier releases are not
    seal = marker.pop(_SEAL, None)
    if is_sealed and seal != _digest(canonical_json(marker)):
        raise ValueError("its SHA-256 differs")
    version = marker.get("format_version")
    if is_sealed and isinstance(version, int) and version > FORMAT_VERSION:
        return version, None
    expected = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": step, content: marker.get(content)}
    if marker != expected or type(version) is not int:
        raise ValueError("its fields are not those of a checkpoint of this step")
    return version, marker[content]


def _read_commit(run: Storage, step: int) -> dict[str, tuple[int, str]]:
    """Return the files that a checkpoint's marker lists: name to size and SHA-256.

    Raises:
        NotFound: there is no marker.
        DamagedCheckpoint: it is not as it was written.
        DataError: it is of a later format.
    """
    data = run.read(_path(step, _COMMIT))
    try:
        version, listed = _open_seal(data, step, "files")
        if version > FORMAT_VERSION:
            raise DataError(
                f"checkpoint {_address(run, step)} has format version {version};"
                f" this program reads up to {FORMAT_VERSION}",
                mend="upgrade resnet-pipelines",
            )
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in listed.items()}
        if not all(_FILE_NAME.fullmatch(name) for name in files):
            raise ValueError("it lists what is no file of a checkpoint")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"checkpoint {_address(run, step)} is damaged: {_COMMIT} is unreadable") from error
    return files


def _read_amended(run: Storage, step: int) -> dict[str, Any]:
    """Return what stands beside a checkpoint; damage is said and costs that alone: the checkpoint is as it was taken.

    Raises:
        DataError: it is of a later format.
    """
    try:
        version, values = _open_seal(run.read(_path(step, _AMENDED)), step, "values")
        amended = dict(values) if version <= FORMAT_VERSION else {}
    except NotFound:
        return {}
    except (ValueError, TypeError, RecursionError):
        _LOGGER.warning("%s/%s is damaged; the checkpoint is taken as it was", _address(run, step), _AMENDED)
        return {}
    if version > FORMAT_VERSION:
        raise DataError(
            f"checkpoint {_address(run, step)} was amended in format version {version};"
            f" this program reads up to {FORMAT_VERSION}",
            mend="upgrade resnet-pipelines",
        )
    return amended


def _path(step: int, name: str) -> str:
    return f"{_FOLDER}/step-{step:08d}/{name}"


def _address(run: Storage, step: int) -> str:
    return run.address(f"{_FOLDER}/step-{step:08d}")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
