"""Catalogs: the published JSON that alone says which files of a dataset or of predictions live.

Versions are `_versions/v000001.json`, each created if absent; the newest is the highest listed. There is no lock and
no pointer: whoever creates version N has won it, and everybody else reads what stands there. This module needs
neither pyarrow nor anything heavier, so that a stage can decide to skip without loading them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.errors import AlreadyExists, DataError, InputError, NotFound, StorageError
from pipelines.storage import Storage

DATASET_FORMAT = "resnet-pipelines/dataset"
FORMAT_VERSION = 2

_VERSION = re.compile(r"^_versions/v(\d+)\.(json|purged)$")
_REFERENCE = re.compile(r"^(?P<uri>.+?)@v?(?P<version>\d+)$")

Catalog = dict[str, Any]
Rebase = Callable[[Catalog, int], Catalog]


class PublishConflict(StorageError):
    """Another run published the version that this run was made for, and the two cannot be joined."""


def parse_ref(reference: str) -> tuple[str, int | None]:
    """Split `DATASET@v3` into address and version; without a version it is None, the newest.

    Raises:
        InputError: what follows the last `@` is meant as a version and is none.
    """
    if match := _REFERENCE.match(reference):
        return match["uri"], int(match["version"])
    address, separator, tail = reference.rpartition("@")
    if separator and address and "/" not in tail:
        raise InputError(
            f"{reference!r} has no version after the @, but {tail!r}",
            mend=f"write {address}@v1; for a folder of that name, {reference}/",
        )
    return reference, None


def format_ref(uri: str, version: int) -> str:
    """Return the reference of one version, as `parse_ref` reads it."""
    return f"{uri}@v{version}"


def version_path(version: int) -> str:
    """Return where the catalog of a version stands."""
    return f"_versions/v{version:06d}.json"


def purged_path(version: int) -> str:
    """Return where the mark stands that a version was purged."""
    return f"_versions/v{version:06d}.purged"


def list_versions(storage: Storage) -> list[int]:
    """Return the numbers of all published versions, purged ones included, in order."""
    return sorted(version for version, kind in _listed(storage) if kind == "json")


def read_version(storage: Storage, version: int | None = None, *, stage_format: str | None = None) -> Catalog | None:
    """Return the catalog of a version, or of the newest; None where nothing is published.

    Args:
        storage: root of a dataset or of predictions.
        version: number of the version; None for the newest.
        stage_format: the `format` the catalog must have, for example `DATASET_FORMAT`; None for any.

    Raises:
        InputError: the version does not exist, was purged, or is of another or newer format.
    """
    listed = _listed(storage)
    versions = sorted(number for number, kind in listed if kind == "json")
    if version is None:
        if not versions:
            return None
        version = versions[-1]
    elif version not in versions:
        known = f"v{versions[0]} to v{versions[-1]}" if versions else "none"
        raise InputError(
            f"{storage.uri} has no version v{version}; published: {known}",
            mend=f"ask for {format_ref(storage.uri, versions[-1])}" if versions else "ingest something into it first",
        )
    if (version, "purged") in listed:
        raise InputError(
            f"{format_ref(storage.uri, version)} was purged and cannot be opened: its data was deleted on purpose",
            mend=f"ask for {format_ref(storage.uri, versions[-1])}" if version != versions[-1] else "",
        )
    catalog = _read(storage, version)
    if stage_format is not None and catalog.get("format") != stage_format:
        raise InputError(
            f"{storage.uri} holds {catalog.get('format')!r}, not {stage_format!r}",
            where=storage.address(version_path(version)),
        )
    return catalog


def listings_of(catalog: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a catalog says of the tables of its sources' listings: path, sha256, bytes and rows of each."""
    return [origin["listing"] for origin in catalog.get("origins", {}).values() if "listing" in origin]


def next_run_id(storage: Storage, key: str) -> str:
    """Return the run id for a stage key: the key and the number of its runs that `gc` has declared dead.

    Resumes and concurrent starts of the same work get the same id, and so share its receipts.
    """
    newest = read_version(storage)
    dead = newest.get("dead", []) if newest else []
    return f"{key}-{sum(run_id.rpartition('-')[0] == key for run_id in dead)}"


def published_version(storage: Storage, run_id: str) -> int | None:
    """Return the version that a run published, or None while it has published none."""
    for version in reversed(list_versions(storage)):
        catalog = _read(storage, version)
        if catalog["run_id"] == run_id:
            return version
        if run_id not in catalog.get("runs", []):
            return None
    return None


def publish_version(
    storage: Storage,
    run_id: str,
    catalog: Mapping[str, Any],
    *,
    base: int = 0,
    rebase: Rebase | None = None,
) -> int:
    """Publish a catalog as the version after `base`, and return the version under which the run is published.

    Everything the catalog names must be written before. Calling it again after a kill or a lost answer is safe: a
    version that carries this run's id means done. Who finds another run's catalog there joins it through `rebase`
    or is refused.

    Args:
        storage: root of the dataset or predictions.
        run_id: `next_run_id` of this run.
        catalog: what to publish; `format`, `format_version`, `version`, `parent`, `run_id`, `runs` and `dead` are
            filled in here (`format` only where the catalog has none).
        base: the version the catalog was made from; 0 for none.
        rebase: given the newest standing catalog and its version, returns the catalog to publish after it, or
            raises when the two cannot be joined.

    Raises:
        PublishConflict: another run published first and there is no way to join it.
        StorageError: `gc` has declared this run dead; its files may be gone.
    """
    standing = _read(storage, base) if base else None
    while True:
        _refuse_dead(storage, run_id, standing)
        try:
            version = base + 1
            storage.create(version_path(version), _encode(catalog, run_id, version, standing))
            return version
        except AlreadyExists:
            pass
        if (done := published_version(storage, run_id)) is not None:
            return done
        base = list_versions(storage)[-1]
        standing = _read(storage, base)
        _refuse_dead(storage, run_id, standing)
        if rebase is None:
            raise PublishConflict(
                f"{format_ref(storage.uri, base)} was published by another run ({standing['run_id']}) meanwhile;"
                f" run {run_id} was not made from it and is not published",
                mend="run the same command again, or choose another --out",
            )
        catalog = rebase(standing, base)


def _refuse_dead(storage: Storage, run_id: str, standing: Mapping[str, Any] | None) -> None:
    if standing is not None and run_id in standing.get("dead", []):
        raise StorageError(
            f"run {run_id} was declared dead by gc in {format_ref(storage.uri, standing['version'])};"
            " its files may be gone, so it is not published",
            mend="run the same command again: it starts as the next generation",
        )


def _encode(catalog: Mapping[str, Any], run_id: str, version: int, standing: Mapping[str, Any] | None) -> bytes:
    before = standing or {}
    lost = set(before.get("sources", {})) - set(catalog.get("sources", {}))
    assert not lost, f"the catalog to publish after v{before.get('version')} has lost the sources {sorted(lost)}"
    whole = {
        "format": DATASET_FORMAT,
        "format_version": FORMAT_VERSION,
        **catalog,
        "version": version,
        "parent": before.get("version", 0),
        "run_id": run_id,
        "runs": [*before.get("runs", []), run_id],
        # A run once dead stays dead: forgetting it would give its name out again while its files may be gone.
        "dead": sorted({*before.get("dead", []), *catalog.get("dead", [])}),
    }
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()


def _listed(storage: Storage) -> set[tuple[int, str]]:
    found = set()
    for file in storage.list("_versions"):
        if match := _VERSION.match(file.path):
            found.add((int(match.group(1)), match.group(2)))
    return found


def _read(storage: Storage, version: int) -> Catalog:
    path = version_path(version)
    try:
        catalog = json.loads(storage.read(path))
    except NotFound as error:
        raise InputError(f"{storage.uri} has no version v{version}") from error
    except ValueError as error:
        raise DataError(f"catalog {storage.address(path)} is not JSON: {error}") from error
    if not isinstance(catalog, dict) or "format_version" not in catalog:
        raise DataError(f"{storage.address(path)} is not a catalog of this program")
    if catalog["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"catalog {storage.address(path)} has format version {catalog['format_version']};"
            f" this program reads up to {FORMAT_VERSION}",
            mend="upgrade resnet-pipelines",
        )
    return catalog
