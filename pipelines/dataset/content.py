"""What a dataset's catalog says of its content, built from receipts and joined with an earlier version's.

Pure functions over JSON values: nothing here reads or writes storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.dataset.catalog import Catalog
from pipelines.dataset.fingerprint import merge
from pipelines.dataset.receipt import ShardFile
from pipelines.errors import InputError

SAME_ON_APPEND = ("task", "preprocess", "split", "carried")
"""Fields of a catalog that an appended run must share with the dataset it is appended to."""
EXAMPLES_KEPT = 50
"""Examples (of leaks, of conflicting labels) that a joined catalog keeps of each of its two."""

_ADD_UP = ("ignored", "flags", "duplicates")
_RATES = ("accidents",)
"""Figures among them that do not add up; the most is kept."""
_PER_SOURCE = ("origins",)


def split_figures(files: Iterable[ShardFile]) -> dict[str, dict[str, Any]]:
    """Return per split: live rows, bytes of files, fingerprint, rows per class name, unlabelled rows."""
    splits: dict[str, dict[str, Any]] = {}
    for file in sorted(files, key=lambda file: (file.split, file.unit)):
        part = {
            "rows": file.rows,
            "bytes": file.bytes,
            "fingerprint": file.fingerprint,
            "labels": file.labels,
            "unlabelled": file.unlabelled,
        }
        splits[file.split] = _join_split(splits[file.split], part) if file.split in splits else part
    return splits


def dataset_fingerprint(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the fingerprint of a whole dataset from those of its splits."""
    return merge(str(split["fingerprint"]) for split in splits.values())


def make_classes(standing: Sequence[str], splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the class list: the standing one as it is, newcomers sorted at its end; a class number never changes."""
    found = {name for split in splits.values() for name in split["labels"]}
    return [*standing, *sorted(found - set(standing))]


def make_catalog(
    *,
    stage: str,
    key: str,
    run_id: str,
    files: Sequence[ShardFile],
    shard_list: Mapping[str, Any],
    sources: Mapping[str, str],
    locations: Mapping[str, str],
    task: str,
    preprocess: Mapping[str, Any],
    split: Mapping[str, Any],
    counts: Mapping[str, int],
    config: Mapping[str, Any],
    carried: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> Catalog:
    """Return the catalog of one run's content, as if it were a dataset's first version.

    Args:
        stage: the stage that made it.
        key: the stage's key.
        run_id: the run whose files these are.
        files: all its shards, patched ones in their last form.
        shard_list: what `write_shard_list` returned.
        sources: source name -> stage key of the run that ingested it.
        locations: source name -> where it was read from.
        task: single, multi or regression.
        preprocess: the image path's `Preprocess` as JSON.
        split: how splits were decided, with the seed and the cut-offs for later appends.
        counts: members, written, quarantined, dropped.
        config: the resolved config, for the reader's eyes.
        carried: names of the columns carried from the source.
        classes: classes that must be in the list even where no row has them.
    """
    splits = split_figures(files)
    return {
        "stage": stage,
        "key": key,
        "task": task,
        "classes": make_classes(sorted(classes), splits),
        "rows": sum(part["rows"] for part in splits.values()),
        "fingerprint": dataset_fingerprint(splits),
        "splits": splits,
        "counts": dict(counts),
        "sources": dict(sources),
        "locations": dict(locations),
        "preprocess": dict(preprocess),
        "split": dict(split),
        "carried": list(carried),
        "shard_lists": [{"run_id": run_id, **shard_list}],
        "patches": [],
        "config": dict(config),
    }


def append_catalog(
    standing: Mapping[str, Any], addition: Mapping[str, Any], *, grows: Mapping[str, str] | None = None
) -> Catalog:
    """Return the catalog of a dataset after another source, or more of one it has, was ingested into it.

    Rows, classes and splits that stand do not change. Near-duplicates between the two are the caller's to look for.

    Args:
        standing: the dataset's newest catalog.
        addition: the catalog of the run's own content, as `make_catalog` returns it.
        grows: source name -> the key under which it stands, for sources of which only news were read.

    Raises:
        InputError: a source is already in the dataset, or the two were made with different settings.
    """
    expected = {name: (grows or {}).get(name) for name in addition["sources"]}
    known = {name for name, key in expected.items() if standing["sources"].get(name) != key}
    if known:
        raise InputError(
            f"source {min(known)!r} is already in the dataset (read from {standing['locations'].get(min(known))})",
            mend="give the new one another source_name, or ingest into a new --out",
        )
    for name in SAME_ON_APPEND:
        if standing.get(name) != addition.get(name):
            raise InputError(
                f"the dataset has {name} {standing.get(name)!r} and this run {addition.get(name)!r};"
                " a dataset has one for all its sources",
                mend="ingest with the dataset's settings, or into a new --out",
            )
    splits = {name: dict(part) for name, part in standing["splits"].items()}
    for name, part in addition["splits"].items():
        splits[name] = _join_split(splits[name], part) if name in splits else dict(part)
    counts = dict(standing["counts"])
    for name, number in addition["counts"].items():
        counts[name] = counts.get(name, 0) + number
    return {
        **addition,
        "classes": make_classes(standing["classes"], addition["splits"]),
        "rows": sum(part["rows"] for part in splits.values()),
        "fingerprint": dataset_fingerprint(splits),
        "splits": splits,
        "counts": counts,
        "sources": {**standing["sources"], **addition["sources"]},
        "locations": {**standing["locations"], **addition["locations"]},
        **{name: _added(standing[name], addition[name]) for name in _ADD_UP if name in standing and name in addition},
        **{name: {**standing[name], **addition.get(name, {})} for name in _PER_SOURCE if name in standing},
        **{name: [*standing.get(name, []), *addition[name]] for name in ("audits",) if name in addition},
        **({"taken_out": standing["taken_out"]} if "taken_out" in standing else {}),
        "shard_lists": [*standing["shard_lists"], *addition["shard_lists"]],
        "patches": [*standing["patches"], *addition["patches"]],
    }


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return counts added up, the larger of two rates, and examples in one list, some of each."""
    joined = dict(one)
    for name, value in other.items():
        if isinstance(value, dict) and name != "policy":
            joined[name] = _added(one.get(name, {}), value)
        elif isinstance(value, list):
            joined[name] = [*one.get(name, [])[:EXAMPLES_KEPT], *value[:EXAMPLES_KEPT]]
        elif name in _RATES:
            joined[name] = max(one.get(name, 0.0), value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            joined[name] = one.get(name, 0) + value
        else:
            joined[name] = value
    return joined


def _join_split(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    labels = dict(one["labels"])
    for name, number in other["labels"].items():
        labels[name] = labels.get(name, 0) + number
    return {
        "rows": one["rows"] + other["rows"],
        "bytes": one["bytes"] + other["bytes"],
        "fingerprint": merge([one["fingerprint"], other["fingerprint"]]),
        "labels": dict(sorted(labels.items())),
        "unlabelled": one["unlabelled"] + other["unlabelled"],
    }
