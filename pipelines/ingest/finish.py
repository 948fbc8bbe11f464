"""After the last unit: budget, duplicates across units, the law of counts, and the catalog to publish."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.dataset.catalog import Catalog
from pipelines.dataset.content import make_catalog
from pipelines.dataset.label_text import label_text
from pipelines.dataset.patch import Change, add_patch, resolve_changes
from pipelines.dataset.reader import Dataset
from pipelines.dataset.receipt import QuarantineFile, ShardFile, UnitReport
from pipelines.dataset.rewrite import drop_rows, rewrite_touched
from pipelines.dataset.shards import write_shard_list
from pipelines.dataset.stored_images import images_of_groups
from pipelines.dataset.tables import open_parquet
from pipelines.dataset.writer import write_quarantine
from pipelines.errors import DataError
from pipelines.ingest.audit import merge_audits
from pipelines.ingest.budget import Budget
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.dedupe import LABEL_CONFLICT, Copy, Duplicates, find_duplicates
from pipelines.ingest.privacy import carried_columns
from pipelines.ingest.split import SplitPlan
from pipelines.ingest.stored import make_preprocess
from pipelines.ingest.thumbnail import MAX_THUMBNAILS, make_thumbnail
from pipelines.ingest.unit import schema_of
from pipelines.sources.base import Listing, Source
from pipelines.stage_output import Plan
from pipelines.storage import Storage

MAX_REWRITE_BYTES = 2**30
"""Shards from which rows are dropped are written anew up to this size; beyond it a patch is published with them."""


def build_catalog(
    config: IngestConfig,
    plan: Plan,
    store: Storage,
    run_id: str,
    source: Source,
    receipts: Mapping[int, Mapping[str, Any]],
    split_plan: SplitPlan,
    *,
    appends: bool = False,
) -> Catalog:
    """Drop leaks, check that nothing was lost, and return the catalog; all files it names are written.

    With `appends` it is the content of an append alone, which may hold no image at all.

    Raises:
        DataError: too many images are unusable, or rows and members do not add up.
    """
    listing = source.listing()
    reports = [UnitReport.from_json(receipt) for _, receipt in sorted(receipts.items())]
    budget = Budget(config, listing.entries, store, appends=appends)
    for _, receipt in sorted(receipts.items()):
        budget.add(receipt)
    budget.check()
    files = [file for report in reports for file in report.files]
    quarantine = [file for report in reports for file in report.quarantine]
    duplicates = find_duplicates(store, files, config.duplicates)
    conflicting = _quarantine_conflicts(config, store, run_id, files, duplicates.quarantined, unit=len(receipts))
    refused = len(duplicates.quarantined)
    budget.refuse(refused, {f"quarantined.{LABEL_CONFLICT}": refused}, conflicting)
    budget.check()
    quarantine += conflicting
    removed = [*duplicates.leaks, *duplicates.quarantined]
    largest_side_px = _largest_side(store, receipts, files, removed)
    touched = {copy.shard for copy in removed}
    is_rewritten = sum(file.bytes for file in files if file.path in touched) <= MAX_REWRITE_BYTES
    flags = _flags(receipts)
    if removed and is_rewritten:
        flags = without_flags(store, flags, [(copy.shard, copy.row) for copy in removed])
        changes = drop_rows([(copy.shard, copy.row) for copy in removed])
        # one attempt name for all drivers of this run: they would write the same bytes
        files = rewrite_touched(
            store, run_id, files, "leaks-dropped", changes, schema=schema_of(source, config.privacy)
        )
    counts = _count(listing, reports, duplicates)
    rows = sum(file.rows for file in files) - (0 if is_rewritten else len(removed))
    check_counts(counts, rows)
    catalog = make_catalog(
        stage=plan.stage,
        key=plan.key,
        run_id=run_id,
        files=files,
        shard_list=write_shard_list(store, run_id, files, quarantine),
        sources={source.name: plan.key},
        locations={source.name: source.uri},
        task="multi" if source.task == "multi" else "single",
        preprocess=make_preprocess(config.image, largest_side_px).to_json(),
        split=split_plan.to_json(),
        counts=counts,
        config=config.model_dump(mode="json"),
        carried=carried_columns(source.carried, config.privacy),
    )
    catalog["privacy"] = config.privacy.model_dump(mode="json")
    catalog["audits"] = merge_audits(store, run_id, (receipt for _, receipt in sorted(receipts.items())))
    catalog["duplicates"] = duplicates.to_json()
    catalog["ignored"] = dict(listing.ignored)
    catalog["flags"] = flags
    if removed and not is_rewritten:
        catalog = _with_patch(store, run_id, catalog, duplicates)
    return catalog


def check_counts(counts: Mapping[str, int], live_rows: int) -> None:
    """Hold the law: members in = rows written + quarantined + dropped by policy.

    Raises:
        DataError: they do not add up, which is never the data's fault.
    """
    out = counts["written"] + counts["quarantined"] + counts["dropped"]
    if counts["members"] != out or counts["written"] != live_rows:
        raise DataError(
            f"{counts['members']:,} members were listed, and {counts['written']:,} written + {counts['quarantined']:,}"
            f" quarantined + {counts['dropped']:,} dropped are {out:,}, with {live_rows:,} live rows",
            mend="the source changed while it was read, or this is a bug; ingest again into a new --out",
        )


def _count(listing: Listing, reports: Sequence[UnitReport], duplicates: Duplicates) -> dict[str, int]:
    dropped, conflicting = len(duplicates.leaks), len(duplicates.quarantined)
    counts = {
        "members": len(listing.entries),
        "written": sum(report.counts["written"] for report in reports) - dropped - conflicting,
        "quarantined": sum(report.counts["quarantined"] for report in reports) + conflicting,
        "dropped": dropped,
        "ignored": sum(listing.ignored.values()),
    }
    reasons = _reasons(reports) + Counter({LABEL_CONFLICT: conflicting})
    return counts | {f"quarantined.{reason}": number for reason, number in sorted(reasons.items())}


def _reasons(reports: Sequence[UnitReport]) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for report in reports:
        for name, number in report.counts.items():
            if name.startswith("quarantined."):
                reasons[name.removeprefix("quarantined.")] += number
    return reasons


def rows_by_shard(places: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Return shard -> its rows in order, given (shard, row) of each."""
    found: dict[str, list[int]] = defaultdict(list)
    for shard, row in sorted(places):
        found[shard].append(row)
    return dict(found)


def without_flags(store: Storage, flags: Mapping[str, int], places: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return how many images have each flag without some rows, given (shard, row) of each."""
    left = Counter(flags)
    for shard, rows in rows_by_shard(places).items():
        for of_row in open_parquet(store, shard).read(columns=["flags"]).column("flags").take(rows).to_pylist():
            left.subtract(of_row or ())
    return dict(sorted((+left).items()))


def _flags(receipts: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    flags: Counter[str] = Counter()
    for receipt in receipts.values():
        flags.update(receipt["flags"])
    return dict(sorted(flags.items()))


def _largest_side(
    store: Storage, receipts: Mapping[int, Mapping[str, Any]], files: Sequence[ShardFile], removed: Sequence[Copy]
) -> int:
    """Return the longest side of the images that stay; only the shards of units that lose some are read for it."""
    gone = rows_by_shard((copy.shard, copy.row) for copy in removed)
    units = {file.unit for file in files if file.path in gone}
    sides = [int(receipt["largest_side_px"]) for unit, receipt in receipts.items() if unit not in units]
    for file in files:
        if file.unit in units:
            table = open_parquet(store, file.path).read(columns=["width", "height"])
            longest = np.maximum(table.column("width").to_numpy(), table.column("height").to_numpy())
            longest = np.delete(longest, gone.get(file.path, []))
            sides.append(int(longest.max(initial=0)))
    return max(sides, default=0)


def _with_patch(store: Storage, run_id: str, catalog: Catalog, duplicates: Duplicates) -> Catalog:
    """Leave large shards as they are and mark what goes by a patch."""
    unpublished = Dataset(store.uri, 0, catalog)
    changes = [Change(each.copy.image_id, "live", False, each.reason) for each in duplicates.dropped]
    changes += [Change(copy.image_id, "live", False, LABEL_CONFLICT) for copy in duplicates.quarantined]
    return add_patch(unpublished, run_id, resolve_changes(unpublished, changes))


def _quarantine_conflicts(
    config: IngestConfig, store: Storage, run_id: str, files: Sequence[ShardFile], copies: Sequence[Copy], *, unit: int
) -> list[QuarantineFile]:
    """Write the copies whose labels contradict each other as quarantine rows."""
    rows: list[dict[str, Any]] = []
    gone = rows_by_shard((copy.shard, copy.row) for copy in copies)
    columns = ["source", "key", "occurrence", "image_id", "label", "source_sha256", "source_bytes"]
    for file in (file for file in files if file.path in gone):
        parquet, of_file = open_parquet(store, file.path), gone[file.path]
        room = max(0, MAX_THUMBNAILS - len(rows))
        pictures = _thumbnails(parquet, file, of_file[:room], config)
        table = parquet.read(columns=columns).take(of_file)
        for row, values in zip(of_file, table.to_pylist(), strict=True):
            rows.append(
                {
                    **{name: values[name] for name in ("source", "key", "occurrence", "image_id")},
                    "label": label_text(values["label"]),
                    "split": file.split,
                    "reason": LABEL_CONFLICT,
                    "message": "the same bytes stand under another label too",
                    "bytes_sha256": values["source_sha256"],
                    "size_bytes": values["source_bytes"],
                    "thumbnail": pictures.get(row),
                }
            )
    # one name for all drivers of this run: they would write the same bytes
    return [write_quarantine(store, f"quarantine/{run_id}-conflicts.parquet", unit, rows)] if rows else []


def _thumbnails(
    parquet: pq.ParquetFile, file: ShardFile, rows: Sequence[int], config: IngestConfig
) -> dict[int, bytes | None]:
    """Return pictures of some rows of a shard."""
    images = images_of_groups(file.row_groups, lambda group: parquet.read_row_group(group, columns=["image"]), rows)
    return {row: make_thumbnail(data, LABEL_CONFLICT, config.image, config.privacy) for row, data in images.items()}
