"""Publishing an append: newcomers that leak are refused, changed images replaced, and the next version is whole."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.catalog import Catalog, PublishConflict, format_ref
from pipelines.dataset.content import append_catalog, dataset_fingerprint, make_classes, split_figures
from pipelines.dataset.label_text import label_text
from pipelines.dataset.patch import Change, add_patch, resolve_changes
from pipelines.dataset.quarantine import release
from pipelines.dataset.reader import Dataset
from pipelines.dataset.receipt import QuarantineFile
from pipelines.dataset.rewrite import drop_rows, rewrite_touched
from pipelines.dataset.schema import QUARANTINE_SCHEMA
from pipelines.dataset.shards import read_shard_list, write_shard_list
from pipelines.dataset.stored_images import stored_images
from pipelines.dataset.tables import encode_table
from pipelines.dataset.writer import write_quarantine
from pipelines.ingest.audit import without_rows
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.dedupe import LEAK
from pipelines.ingest.finish import MAX_REWRITE_BYTES, check_counts, without_flags
from pipelines.ingest.newcomers import (
    SUPERSEDED,
    UNCHANGED,
    WITHHELD,
    Update,
    compared_columns,
    row_values,
    standing_rows,
)
from pipelines.ingest.report import write_sheet
from pipelines.ingest.standing import FOLLOWED
from pipelines.ingest.thumbnail import MAX_THUMBNAILS, make_thumbnail
from pipelines.ingest.twins import QUARANTINED, Place, Twin, find_contested, find_twins, judge
from pipelines.storage import Storage


def run_key(key: str, standing: Catalog, name: str, update: Update) -> str:
    """Return the key under which an append's files lie.

    For a source that the dataset knows it follows from what was read of it before, so that content that comes back is
    another run than the one that first read it; and from the members to read, since a run goes on with its receipts.
    """
    if name not in standing["sources"]:
        return key
    listing = standing.get("origins", {}).get(name, {}).get("listing", {}).get("path", "")
    parts = ["append", key, standing["sources"][name], listing, update.digest()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def is_news(catalog: Catalog, standing: Catalog, name: str) -> bool:
    """Return whether the catalog of an append says anything that the one before it did not, but for the listing.

    A version for every time that files are touched would bury those that matter. Without one the new listing is not
    kept; the run's receipts are, so that the same append reads nothing again until `gc` takes them.
    """
    if "listing" not in standing.get("origins", {}).get(name, {}):
        return True
    said = catalog["difference"]
    if any(said[kind] for kind in ("added", "changed", "gone", "withheld")):
        return True
    same = ("fingerprint", "counts", "locations", "classes")
    if any(catalog[field] != standing[field] for field in same):
        return True
    if any(catalog["config"].get(field) != standing["config"].get(field) for field in FOLLOWED):
        return True
    return bool(catalog["origins"][name]["settings"] != standing["origins"][name].get("settings"))


@dataclass(frozen=True)
class Joining:
    """Joins a run's own content to whatever version stands; everything that its catalog names is written."""

    config: IngestConfig
    store: Storage
    run_id: str
    name: str
    known_key: str | None
    """The key under which the source stood when it was compared; None for a new one."""
    update: Update
    own: Catalog
    warn: Callable[[Catalog], list[str]]

    def __call__(self, standing: Catalog, version: int) -> Catalog:
        """Return the catalog to publish after a version; also the `rebase` of publishing.

        Raises:
            PublishConflict: another run has read the same source meanwhile.
        """
        if standing["sources"].get(self.name) != self.known_key:
            raise PublishConflict(
                f"{format_ref(self.store.uri, version)} holds {self.name} as another run ({standing['run_id']}) read it"
                f" meanwhile; run {self.run_id} compared it with an earlier version and is not published",
                mend="run the same command again: it reads what is new after that",
            )
        base, fresh = Dataset(self.store.uri, version, standing), Dataset(self.store.uri, 0, self.own)
        surplus, written = self._compare(base, fresh)
        refused, conflicts = self._refused(base, fresh, surplus.keys(), written)
        addition = self._without(fresh, surplus, refused)
        addition["duplicates"] = _found(addition["duplicates"], refused, conflicts)
        superseded = sorted(written - surplus.keys() - {str(twin.row["image_id"]) for twin in refused})
        changes = [Change(image_id, "live", False, SUPERSEDED) for image_id in superseded]
        if changes:
            standing = add_patch(base, self.run_id, resolve_changes(base, changes))
            counts = standing["counts"]
            fewer = {name: counts[name] - len(changes) for name in ("members", "written")}  # each member counts once
            standing = {**standing, "counts": {**counts, **fewer}}
        standing = self._released(standing)
        grows = {self.name: self.known_key} if self.known_key else None
        catalog = append_catalog(standing, addition, grows=grows)
        catalog["difference"] = self._difference(version, standing, addition, superseded, surplus, refused)
        catalog["warnings"] = [*self.warn(catalog), *self.update.remarks]
        catalog["sheet"] = write_sheet(self.store, f"{self.run_id}/v{version + 1:06d}", catalog)
        if self.update.gone:
            catalog["sheet"]["gone"] = self._write_gone()
        return catalog

    def _released(self, standing: Catalog) -> Catalog:
        """Return what stands without the refusals of members that were read again: each member counts once."""
        if not self.known_key:
            return standing
        ids = [entry.image_id for entry in self.update.source.listing().entries]
        lists, reasons, accepted = release(self.store, self.run_id, standing["shard_lists"], self.name, ids)
        if not reasons:
            return standing
        counts = dict(standing["counts"])
        counts["members"] -= reasons.total()
        counts["quarantined"] -= reasons.total()
        if accepted:
            counts["accepted"] -= accepted
        for reason, number in reasons.items():
            counts[f"quarantined.{reason}"] -= number
        counts = {name: number for name, number in counts.items() if number or "." not in name}
        return {**standing, "shard_lists": lists, "counts": counts}

    def _compare(self, base: Dataset, fresh: Dataset) -> tuple[dict[str, str], set[str]]:
        """Return which rows of changed images add nothing, with the reason, and all changed images that have a row.

        They came out as they stand; or somebody took the image out of the dataset since the run began.
        """
        if not self.update.replaced:
            return {}, set()
        compared = compared_columns(base)
        wanted = pa.array(list(self.update.replaced), pa.string())
        surplus, written = dict[str, str](), set[str]()
        for split in fresh.splits:
            table = fresh.table(split, ["image_id", *compared])
            for row in table.filter(pc.is_in(table.column("image_id"), value_set=wanted)).to_pylist():
                written.add(row["image_id"])
                if row_values(row, compared) == self.update.replaced[row["image_id"]].values:
                    surplus[row["image_id"]] = UNCHANGED
        standing = standing_rows(base, written)
        surplus |= {image_id: WITHHELD for image_id, row in standing.items() if not row.is_live}
        return surplus, written

    def _refused(self, base: Dataset, fresh: Dataset, surplus: Set[str], written: set[str]) -> tuple[list[Twin], int]:
        """Return the newcomers that do not come in beside what stands, and how many of all contradict its labels.

        The row that a changed image replaces does not count; but it stays where the new one does not come in.
        """
        policy, replaced = self.config.duplicates, written - surplus
        read_again = {entry.image_id for entry in self.update.source.listing().entries}
        contested = find_contested(base, fresh, read_again=read_again) if policy.conflicts == "quarantine" else []
        while True:
            twins = contested + find_twins(base, fresh, max_distance=policy.max_distance, left_out=replaced)
            twins = [twin for twin in twins if twin.row["image_id"] not in surplus]
            refused = judge(twins, policy)
            staying = replaced - {str(twin.row["image_id"]) for twin in refused}
            if staying == replaced:
                return refused, len({twin.place for twin in twins if twin.is_conflict})
            replaced = staying

    def _without(self, fresh: Dataset, surplus: dict[str, str], refused: Sequence[Twin]) -> Catalog:
        """Return the run's content without the rows that add nothing and those that do not come in."""
        reasons = surplus | {str(twin.row["image_id"]): twin.reason for twin in refused}
        if not reasons:
            return dict(self.own)
        (entry,) = self.own["shard_lists"]
        files, quarantine = read_shard_list(self.store, entry)
        name = hashlib.sha256(json.dumps(sorted(reasons.items())).encode()).hexdigest()[:8]
        if leaks := [twin for twin in refused if twin.reason in QUARANTINED]:
            quarantine = [*quarantine, self._quarantine(fresh, leaks)]
        places = _places(fresh, reasons)
        dropped = Counter(path for path, _ in places)
        left = [file for file in files if dropped[file.path] < file.rows]  # one that loses all rows need not be read
        counts = _counts(self.own["counts"], reasons)
        if self.own["patches"] or sum(file.bytes for file in left if dropped[file.path]) > MAX_REWRITE_BYTES:
            changes = [Change(image_id, "live", False, reason) for image_id, reason in sorted(reasons.items())]
            addition = add_patch(fresh, self.run_id, resolve_changes(fresh, changes))
        else:
            schema = fresh.schema
            files = rewrite_touched(self.store, self.run_id, left, f"kept-{name}", drop_rows(places), schema=schema)
            splits = split_figures(files)
            check_counts(counts, sum(part["rows"] for part in splits.values()))
            addition = {
                **self.own,
                "splits": splits,
                "rows": counts["written"],
                "classes": make_classes([], splits),
                "fingerprint": dataset_fingerprint(splits),
                "flags": without_flags(self.store, self.own["flags"], places),
            }
        addition["audits"] = without_rows(self.store, self.run_id, self.own["audits"], reasons.keys())
        shard_list = write_shard_list(self.store, self.run_id, files, quarantine)
        return {**addition, "counts": counts, "shard_lists": [{"run_id": self.run_id, **shard_list}]}

    def _quarantine(self, fresh: Dataset, leaks: Sequence[Twin]) -> QuarantineFile:
        """Write refused newcomers as a file named by its content: beside another version they may be told otherwise."""
        thumbnails = self._thumbnails(fresh, leaks[:MAX_THUMBNAILS])
        sizes = {entry.image_id: entry.size for entry in self.update.source.listing().entries}
        rows = [
            {
                **{name: leak.row[name] for name in ("source", "key", "occurrence", "image_id")},
                "label": label_text(leak.row["label"]),
                "split": leak.place[0],
                "reason": leak.reason,
                "message": leak.message,
                "bytes_sha256": leak.row["source_sha256"],
                "size_bytes": sizes[leak.row["image_id"]],
                "thumbnail": thumbnails.get(leak.place),
            }
            for leak in leaks
        ]
        digest = hashlib.sha256(encode_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA))).hexdigest()
        path = f"quarantine/{self.run_id}-leaks-{digest[:16]}.parquet"
        return write_quarantine(self.store, path, len(self.update.source.units()), rows)

    def _thumbnails(self, fresh: Dataset, leaks: Sequence[Twin]) -> dict[Place, bytes | None]:
        """Return pictures of refused newcomers, from the rows that they would have had."""
        found = {}
        for split in dict.fromkeys(leak.place[0] for leak in leaks):
            images = stored_images(fresh, split, [leak.place[1] for leak in leaks if leak.place[0] == split])
            for row, data in images.items():
                found[split, row] = make_thumbnail(data, LEAK, self.config.image, self.config.privacy)
        return found

    def _difference(
        self,
        version: int,
        standing: Catalog,
        addition: Catalog,
        superseded: Sequence[str],
        surplus: dict[str, str],
        refused: Sequence[Twin],
    ) -> dict[str, Any]:
        """Return what the new version has over its parent, in numbers and some names."""
        return {
            "parent": version,
            "source": self.name,
            "added": addition["rows"] - len(superseded),
            "changed": len(superseded),
            "unchanged": sum(reason == UNCHANGED for reason in surplus.values()),
            "leaks": sum(twin.reason == LEAK for twin in refused),
            "quarantined": addition["counts"]["quarantined"],
            "gone": len(self.update.gone),
            "withheld": self.update.withheld + sum(reason == WITHHELD for reason in surplus.values()),
            "splits": {
                split: {"rows": part["rows"], "labels": part["labels"]} for split, part in addition["splits"].items()
            },
            "new_classes": [name for name in addition["classes"] if name not in standing["classes"]],
            "gone_keys": [row.key for row in self.update.gone[:10]],
        }

    def _write_gone(self) -> str:
        """Write the images whose members are gone as a table that `resnet data exclude --from` takes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image_id", "key", "split"))
        writer.writerows((row.image_id, row.key, row.split) for row in self.update.gone)
        data = text.getvalue().encode()
        path = f"sheet/{self.run_id}/gone-{hashlib.sha256(data).hexdigest()[:8]}.csv"
        self.store.put(path, data)
        return path


def _places(fresh: Dataset, image_ids: dict[str, str]) -> list[tuple[str, int]]:
    """Return (shard, row) of images in the run's own shards."""
    wanted = pa.array(list(image_ids), pa.string())
    found = []
    for file in fresh.shards():
        ids = fresh.written_rows(file, ["image_id"]).column("image_id")
        found += [(file.path, row) for row in pc.indices_nonzero(pc.is_in(ids, value_set=wanted)).to_pylist()]
    return found


def _counts(counts: dict[str, int], reasons: dict[str, str]) -> dict[str, int]:
    """Return the counts of a run without some of its rows, given image_id -> why it is out."""
    changed = dict(counts)
    changed["written"] -= len(reasons)
    for reason in reasons.values():
        if reason in (UNCHANGED, WITHHELD):
            changed["members"] -= 1  # it counts as the row that stands
        elif reason in QUARANTINED:
            changed["quarantined"] += 1
            changed[f"quarantined.{reason}"] = changed.get(f"quarantined.{reason}", 0) + 1
        else:
            changed["dropped"] += 1
    return changed


def _found(duplicates: dict[str, Any], refused: Sequence[Twin], conflicts: int) -> dict[str, Any]:
    """Return what a run found among its own rows, and what it found beside those that stand."""
    dropped = Counter(duplicates["dropped"]) + Counter(t.reason for t in refused if t.reason not in QUARANTINED)
    return {
        **duplicates,
        "label_conflicts": duplicates["label_conflicts"] + conflicts,
        "dropped": dict(sorted(dropped.items())),
    }
