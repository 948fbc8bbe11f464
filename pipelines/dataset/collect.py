"""Deleting: what no catalog names of runs that are dead or published; and writing patched shards anew.

Safety rests on versions being created if absent, never on clocks: `gc` first publishes a version that declares runs
dead, which such a run finds when it tries to publish, and only then deletes. A run's age merely decides whether it
is worth declaring dead; if it was alive after all it is refused, and its rerun starts as the next generation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.catalog import (
    DATASET_FORMAT,
    Catalog,
    PublishConflict,
    format_ref,
    list_versions,
    listings_of,
    next_run_id,
    publish_version,
    purged_path,
    read_version,
)
from pipelines.dataset.quarantine import without_pictures
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.rewrite import rewrite_touched
from pipelines.dataset.shards import read_shard_list, write_shard_list
from pipelines.dataset.taken import TAKEN, taken_out, write_taken
from pipelines.errors import AlreadyExists, DataError, InputError
from pipelines.storage import Storage, StoredFile

DEAD_AFTER_S = 24 * 3600.0
"""Age of a run's newest file after which an unpublished run is taken for dead."""

PUT_LASTS_S = 600.0
"""Age after which a temporary file is taken for what a killed put left; if it was at work after all, the put fails."""

_OWNERS = [
    re.compile(r"^(?:data|_work|sheet)/([0-9a-f]+-\d+)/"),
    re.compile(r"^(?:patches|quarantine|audit)/([0-9a-f]+-\d+)-"),
]


@dataclass(frozen=True)
class Collected:
    """What `gc` did: the version it published (None where no run was newly dead), those runs, and what it deleted."""

    version: int | None
    dead: list[str]
    deleted: list[str]
    freed_bytes: int


class _NothingDeadError(Exception):
    """Every run that was to be declared dead has published meanwhile."""


def gc(storage: Storage, *, dead_after_s: float = DEAD_AFTER_S, now: float | None = None) -> Collected:
    """Declare old unpublished runs dead, then delete what no catalog names of dead and published runs.

    What killed puts left of their temporary files goes too.

    Args:
        storage: root of a dataset.
        dead_after_s: age of its newest file after which an unpublished run is declared dead.
        now: seconds since the epoch; None for the clock.

    Raises:
        InputError: nothing is published there, so that there is nothing to tell litter by.
    """
    clock = time.time() if now is None else now
    standing = _newest(storage)
    last_written: dict[str, float] = {}
    for file in storage.list():
        if owner := owner_of(file.path):
            last_written[owner] = max(last_written.get(owner, 0.0), file.modified)
    old = {run_id for run_id, modified in last_written.items() if clock - modified > dead_after_s}

    def declared(catalog: Catalog, _version: int) -> Catalog:
        dead = old - set(catalog["runs"]) - set(catalog["dead"])
        if not dead:
            raise _NothingDeadError
        return {**catalog, "stage": "gc", "dead": sorted({*catalog["dead"], *dead})}

    version, dead = None, []
    try:
        catalog = declared(standing, standing["version"])
        key = _key("gc", standing["version"], sorted(old))
        base = standing["version"]
        version = publish_version(storage, next_run_id(storage, key), catalog, base=base, rebase=declared)
        dead = sorted(set(_newest(storage, version)["dead"]) - set(standing["dead"]))
    except _NothingDeadError:
        pass
    finished = _newest(storage, version)
    deleted = _delete_unnamed(storage, {*finished["runs"], *finished["dead"]})
    deleted += storage.sweep_temporary(PUT_LASTS_S)[0]
    return Collected(version, dead, [file.path for file in deleted], sum(file.size for file in deleted))


def clean_run(storage: Storage, run_id: str) -> list[str]:
    """Delete the files of a published run that no catalog names: lost attempts and receipts. Return their paths.

    Raises:
        InputError: the run is not published; a run deletes nothing before that.
    """
    if run_id not in _newest(storage)["runs"]:
        raise InputError(f"run {run_id} is not published in {storage.uri}; nothing of it is deleted")
    return [file.path for file in _delete_unnamed(storage, {run_id})]


def compact(reference: str) -> int | None:
    """Write every patched shard anew and publish the result; return the version, or None where nothing had to change.

    Rows, their order and all fingerprints stay as they are; of images that were taken out the ids are kept, so that
    an append does not bring them back, and no thumbnail among the refused members. When another version is published
    meanwhile it starts again from that one.
    """
    while True:
        dataset = open_dataset(reference)
        key = _key("compact", dataset.version, dataset.fingerprint)
        run_id = next_run_id(dataset.storage, key)
        attempt = secrets.token_hex(4)
        standing = dataset.catalog["shard_lists"]
        entries = without_pictures(dataset.storage, run_id, standing, taken_out(dataset))
        if not dataset.catalog["patches"] and entries == standing:
            return None
        # Units of different runs share numbers, so the place of the run is in the name too.
        lists = [_compacted_list(dataset, run_id, f"{attempt}-{n}", entry) for n, entry in enumerate(entries)]
        catalog = {**dataset.catalog, "stage": "compact", "key": key, "shard_lists": lists, "patches": []}
        catalog["splits"] = _with_bytes(dataset, catalog)
        if taken := write_taken(dataset, run_id):
            catalog[TAKEN] = taken
        catalog.pop("sheet", None)  # it may show images that are no longer there
        try:
            return publish_version(dataset.storage, run_id, catalog, base=dataset.version)
        except PublishConflict:
            continue


def purge(storage: Storage, version: int) -> list[str]:
    """Make a version refuse to open, then delete the files that only purged versions name. Return their paths.

    What killed puts left goes too (see `sweep`), since it may hold what was taken out.

    Raises:
        InputError: it is the newest version (publish one without the data first), or there is no such version.
    """
    versions = list_versions(storage)
    if version not in versions:
        raise InputError(f"{storage.uri} has no version v{version}")
    if version == versions[-1]:
        raise InputError(
            f"{format_ref(storage.uri, version)} is the newest version and cannot be purged",
            mend="publish a version without the data first: patch it out, then compact",
        )
    with contextlib.suppress(AlreadyExists):  # marked before, perhaps by a command that was killed then
        storage.create(purged_path(version), json.dumps({"version": version}).encode())
    newest = _newest(storage)
    deleted = _delete_unnamed(storage, {*newest["runs"], *newest["dead"]})
    return [*(file.path for file in deleted), *sweep(storage)[0]]


def sweep(storage: Storage) -> tuple[list[str], list[str]]:
    """Delete the temporary files of killed puts; return their paths, and those of the last `PUT_LASTS_S`, left there.

    Whose process still runs cannot be known, as it may be one of another machine.
    """
    swept, left = storage.sweep_temporary(PUT_LASTS_S)
    return [file.path for file in swept], [file.path for file in left]


def owner_of(path: str) -> str:
    """Return the run id that a file belongs to; empty for catalogs and whatever is not ours."""
    for pattern in _OWNERS:
        if match := pattern.match(path):
            return match.group(1)
    return ""


def named_files(storage: Storage, catalog: Mapping[str, Any]) -> set[str]:
    """Return every file that a dataset's catalog names, by itself or through its shard lists."""
    named = {entry["path"] for entry in [*catalog["shard_lists"], *catalog["patches"]]}
    named |= set(catalog.get("sheet", {}).values())
    named |= {entry["path"] for entry in [*catalog.get("audits", []), *catalog.get(TAKEN, [])]}
    named |= {entry["path"] for entry in listings_of(catalog)}
    for entry in catalog["shard_lists"]:
        shards, quarantine = read_shard_list(storage, entry)
        named |= {file.path for file in shards} | {file.path for file in quarantine}
    return named


def _newest(storage: Storage, version: int | None = None) -> Catalog:
    catalog = read_version(storage, version, stage_format=DATASET_FORMAT)
    if catalog is None:
        raise InputError(
            f"no dataset version is published in {storage.uri}; without one nothing can be told from litter",
            mend="finish an ingest first, or delete the folder by hand",
        )
    return catalog


def _delete_unnamed(storage: Storage, run_ids: Iterable[str]) -> list[StoredFile]:
    """Delete what belongs to the runs and no opened version names; all names are read before the first deletion."""
    owners = set(run_ids)
    candidates = [file for file in storage.list() if owner_of(file.path) in owners]
    named: set[str] = set()
    for version in list_versions(storage):
        if not storage.exists(purged_path(version)):
            named |= named_files(storage, _newest(storage, version))
    unnamed = [file for file in candidates if file.path not in named]
    storage.delete(*(file.path for file in unnamed))
    return unnamed


def _compacted_list(dataset: Dataset, run_id: str, attempt: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shard list's entry with its patched shards written anew; an untouched list stays as it is."""
    shards, quarantine = read_shard_list(dataset.storage, entry)
    if not any(file.path in dataset.overrides for file in shards):
        return dict(entry)
    files = rewrite_touched(dataset.storage, run_id, shards, attempt, dataset.overrides, schema=dataset.schema)
    return {"run_id": entry["run_id"], **write_shard_list(dataset.storage, run_id, files, quarantine)}


def _with_bytes(dataset: Dataset, catalog: Catalog) -> dict[str, dict[str, Any]]:
    """Return the splits' figures with the new sizes, having checked that the rows are the same ones."""
    compacted = Dataset(dataset.uri, dataset.version, catalog)
    splits = {}
    for name, part in dataset.catalog["splits"].items():
        shards = compacted.shards(name)
        rows = sum(file.rows for file in shards)
        if rows != part["rows"]:
            raise DataError(f"compacting {dataset.ref} left {rows} rows in split {name!r} instead of {part['rows']}")
        splits[name] = {**part, "bytes": sum(file.bytes for file in shards)}
    return splits


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
