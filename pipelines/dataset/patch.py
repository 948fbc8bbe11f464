"""Patches: changes to rows that stand, published as a version of their own and merged while reading.

Relabelling 120 of ten million images writes 120 rows. Old values are checked when publishing, against what stands
then; a row that already holds the new value needs no change, and a patch without changes publishes nothing.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.catalog import Catalog, next_run_id, publish_version
from pipelines.dataset.content import dataset_fingerprint, make_classes
from pipelines.dataset.fingerprint import MODULUS, from_hex, to_hex
from pipelines.dataset.overrides import RowChanges
from pipelines.dataset.quarantine import refused_among
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.receipt import ShardFile
from pipelines.dataset.schema import PATCH_SCHEMA
from pipelines.dataset.tables import encode_table
from pipelines.dataset.taken import TAKEN, taken_out, write_ids
from pipelines.dataset.writer import label_names, row_fingerprint
from pipelines.errors import AlreadyExists, DataError, InputError
from pipelines.storage import Storage

PatchRow = dict[str, Any]
"""One row of `PATCH_SCHEMA`; `old` and `new` are JSON text."""


_Row = tuple[str, int, dict[str, Any]]
"""Path of a shard, row index in it, and the row's values as they stand."""


class Unchecked(enum.Enum):
    """Stands where a change does not say what the old value must be."""

    UNCHECKED = enum.auto()


@dataclass(frozen=True)
class Change:
    """One wanted change to one image.

    Attributes:
        image_id: the image.
        field: `label`, `flags`, or `live` (False takes the row out of the dataset, True brings it back).
        new: the value it shall have.
        reason: why, in a word or a sentence; it is kept.
        old: the value it must have now, else the patch is refused; `UNCHECKED` for any.
    """

    image_id: str
    field: str
    new: Any
    reason: str
    old: Any = Unchecked.UNCHECKED


class _NothingToChangeError(Exception):
    """Every row already holds its new value."""


def publish_patch(reference: str, changes: Sequence[Change]) -> int | None:
    """Apply changes to the newest version of a dataset; return the new version, or None where nothing had to change.

    When another version is published meanwhile, the rows are looked up and the old values checked again in that one.

    Raises:
        InputError: an image is not in the dataset, a field cannot be patched, or a value has the wrong type.
        DataError: a row does not hold the old value that a change asks for.
    """
    dataset = open_dataset(reference)
    if newest_of(dataset) != dataset.version:
        raise InputError(f"{dataset.ref} is not the newest version; a patch changes the newest", mend=dataset.uri)
    storage = dataset.storage
    key = _patch_key(changes, dataset.version)
    run_id = next_run_id(storage, key)

    def patched(standing: Catalog, version: int) -> Catalog:
        now = Dataset(dataset.uri, version, standing)
        refused = refused_among(now, [change.image_id for change in changes if _takes_out(change)])
        rows = resolve_changes(now, changes, refused=refused)
        # a row that goes says so itself; of a refused image there is nothing but its id to keep
        out = refused - {row["image_id"] for row in rows}
        out -= taken_out(now) if out else set()
        if not rows and not out:
            raise _NothingToChangeError
        catalog = add_patch(now, run_id, rows) if rows else dict(now.catalog)
        if out:
            catalog[TAKEN] = [*catalog.get(TAKEN, []), write_ids(now, run_id, out)]
        return {**catalog, "stage": "patch", "key": key}

    try:
        catalog = patched(dataset.catalog, dataset.version)
        return publish_version(storage, run_id, catalog, base=dataset.version, rebase=patched)
    except _NothingToChangeError:
        return None


def resolve_changes(
    dataset: Dataset, changes: Sequence[Change], *, refused: Collection[str] = frozenset()
) -> list[PatchRow]:
    """Return the patch rows that changes come to in a version, leaving out rows that already hold the new value.

    Args:
        dataset: the version.
        changes: what is wanted.
        refused: images that need not have a row, since they were refused.

    Raises:
        InputError: an image is not in the dataset, a field cannot be patched, or a value has the wrong type.
        DataError: a row does not hold the old value that a change asks for.
    """
    wanted: dict[str, list[Change]] = {}
    for change in changes:
        _check(change, dataset.task)
        wanted.setdefault(change.image_id, []).append(change)
    standing: dict[str, list[_Row]] = {image_id: [] for image_id in wanted}
    for file in dataset.shards():
        for row, values in _current_rows(dataset, file, sorted(wanted)):
            standing[values["image_id"]].append((file.path, row, values))
    rows: list[PatchRow] = []
    missing = []
    for image_id, own in wanted.items():
        meant = _meant_rows(standing[image_id], own)
        if meant is None:
            missing += [] if image_id in refused else [image_id]
        elif len(meant) > 1:
            raise InputError(f"image {image_id} stands twice in {dataset.ref}; the patch is not clear")
        else:
            rows += [
                patch
                for shard, row, values in meant
                for change in own
                for patch in _patch_row(dataset, change, values, shard, row)
            ]
    if missing:
        raise InputError(
            f"image {missing[0]} is not a live row of {dataset.ref}"
            + (f", nor are {len(missing) - 1} more of the patch" if len(missing) > 1 else ""),
            mend=f"list the ids with `resnet data show {dataset.ref}`",
        )
    return rows


def _takes_out(change: Change) -> bool:
    return change.field == "live" and not change.new


def _meant_rows(standing: Sequence[_Row], changes: Sequence[Change]) -> list[_Row] | None:
    """Return the rows of an image that changes are for: its live ones; None where there are none to change.

    Dead rows (superseded, excluded) are meant only by a change that brings one back, and one that takes the image out
    finds its work done (no rows, nothing to change).
    """
    live = [row for row in standing if row[2]["live"]]
    if live:
        return live
    if any(change.field == "live" and change.new for change in changes):
        return list(standing) or None
    return [] if standing and all(change.field == "live" for change in changes) else None


def add_patch(dataset: Dataset, run_id: str, rows: Sequence[PatchRow]) -> Catalog:
    """Write patch rows and return the dataset's catalog with them: patch list, counts, classes and fingerprints.

    The dataset may be unpublished (`Dataset(uri, 0, catalog)`), for a first ingest too large to be written anew.
    """
    entry = write_patch(dataset.storage, run_id, rows)
    splits, flags = _adjusted(dataset, rows)
    counted = {"flags": flags} if "flags" in dataset.catalog else {}
    return {
        **dataset.catalog,
        **counted,
        "classes": make_classes(dataset.classes, splits),
        "rows": sum(part["rows"] for part in splits.values()),
        "fingerprint": dataset_fingerprint(splits),
        "splits": splits,
        "patches": [*dataset.catalog["patches"], entry],
    }


def write_patch(storage: Storage, run_id: str, rows: Sequence[PatchRow]) -> dict[str, Any]:
    """Write patch rows as one file, named by its content; return what a catalog says of it."""
    data = encode_table(pa.Table.from_pylist(list(rows), schema=PATCH_SCHEMA))
    digest = hashlib.sha256(data).hexdigest()
    path = f"patches/{run_id}-{digest[:16]}.parquet"
    with contextlib.suppress(AlreadyExists):  # the name is the content; a rerun after a kill finds its own file
        storage.create(path, data)
    return {"path": path, "sha256": digest, "bytes": len(data), "rows": len(rows)}


def newest_of(dataset: Dataset) -> int:
    """Return the newest version of the dataset that a dataset object is a version of."""
    return open_dataset(dataset.uri).version


def _check(change: Change, task: str) -> None:
    kinds = {
        "live": lambda value: isinstance(value, bool),
        "flags": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "label": lambda value: value is None or _is_label(value, task),
    }
    if change.field not in kinds:
        raise InputError(f"field {change.field!r} cannot be patched", mend=f"patch one of {', '.join(sorted(kinds))}")
    if not kinds[change.field](change.new):
        raise InputError(f"image {change.image_id}: {change.field} cannot be {change.new!r} in a {task}-label dataset")
    if not change.reason:
        raise InputError(f"image {change.image_id}: a change needs a reason")


def _is_label(value: object, task: str) -> bool:
    if task == "regression":
        return isinstance(value, float)
    if task == "multi":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    return isinstance(value, str)


def _current_rows(dataset: Dataset, file: ShardFile, image_ids: Sequence[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    """Yield (row index, values as they stand) of the images that a shard holds, dead ones too."""
    ids = dataset.written_rows(file, ["image_id"]).column("image_id")
    hits = pc.indices_nonzero(pc.is_in(ids, value_set=pa.array(image_ids, pa.string()))).to_pylist()
    if not hits:
        return
    columns = ["image_id", "source_sha256", "stored_sha256", "label", "flags", *dataset.catalog["carried"]]
    changes = dataset.overrides.get(file.path, {})
    table = dataset.written_rows(file, columns).take(pa.array(hits))
    for row, values in zip(hits, table.to_pylist(), strict=True):
        yield row, {**values, "live": True, **changes.get(row, {})}


def _patch_row(dataset: Dataset, change: Change, values: Mapping[str, Any], shard: str, row: int) -> list[PatchRow]:
    old = values[change.field]
    if old == change.new:
        return []
    if change.old is not Unchecked.UNCHECKED and old != change.old:
        raise DataError(
            f"image {change.image_id} has {change.field} {old!r} in {dataset.ref}; the patch expects {change.old!r}",
            mend="look at the image again, and write the patch from what stands",
        )
    return [
        {
            "image_id": change.image_id,
            "shard": shard,
            "row": row,
            "field": change.field,
            "old": json.dumps(old, ensure_ascii=False),
            "new": json.dumps(change.new, ensure_ascii=False),
            "reason": change.reason,
        }
    ]


def _adjusted(dataset: Dataset, rows: Sequence[PatchRow]) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Return the catalog's figures per split, and per flag, after a patch, from the whole old row of each image."""
    changes: dict[str, dict[int, RowChanges]] = {}
    for patch in rows:
        changes.setdefault(patch["shard"], {}).setdefault(patch["row"], {})[patch["field"]] = json.loads(patch["new"])
    ids = sorted({patch["image_id"] for patch in rows})
    splits = {name: {**part, "labels": dict(part["labels"])} for name, part in dataset.catalog["splits"].items()}
    flags = Counter[str](dataset.catalog.get("flags", {}))
    for file in dataset.shards():
        for row, old in _current_rows(dataset, file, ids) if file.path in changes else ():
            if row in changes[file.path]:
                for values, sign in ((old, -1), ({**old, **changes[file.path][row]}, 1)):
                    _count(splits[file.split], values, file.split, dataset.catalog["carried"], sign)
                    for name in (values["flags"] or ()) if values["live"] else ():
                        flags[name] += sign
    return splits, dict(sorted((+flags).items()))


def _count(figures: dict[str, Any], row: Mapping[str, Any], split: str, carried: Sequence[str], sign: int) -> None:
    """Add a row to a split's figures (sign 1) or take it out (sign -1); a dead row counts for nothing."""
    if not row["live"]:
        return
    figures["rows"] += sign
    figures["unlabelled"] += sign * (row["label"] is None)
    labels = figures["labels"]
    for name in label_names(row["label"]):
        labels[name] = labels.get(name, 0) + sign
    figures["labels"] = {name: number for name, number in sorted(labels.items()) if number}
    hashed = row_fingerprint(row, split, carried)
    figures["fingerprint"] = to_hex((from_hex(figures["fingerprint"]) + sign * hashed) % MODULUS)


def _patch_key(changes: Sequence[Change], version: int) -> str:
    """Return the key of a patch; the version is in it, since the same change may be wanted again later."""
    lines = [[c.image_id, c.field, c.new, c.reason, None if c.old is Unchecked.UNCHECKED else [c.old]] for c in changes]
    return hashlib.sha256(json.dumps(["patch", version, lines], sort_keys=True).encode()).hexdigest()[:32]
