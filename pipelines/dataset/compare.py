"""Two versions side by side, and which versions an image has been in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.catalog import DATASET_FORMAT, list_versions, purged_path, read_version
from pipelines.dataset.quarantine import pictured
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.storage import Storage

_COLUMNS = ("image_id", "key", "label", "stored_sha256")


@dataclass(frozen=True)
class Difference:
    """What a version has that another has not; each entry is one image."""

    added: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    relabelled: list[dict[str, Any]]
    """With `old_label`."""
    changed: list[dict[str, Any]]
    """Other bytes or another split."""

    def counts(self) -> dict[str, int]:
        """Return how many images are in each list."""
        return {name: len(getattr(self, name)) for name in ("added", "removed", "relabelled", "changed")}


def difference(old: str, new: str) -> Difference:
    """Return how the live rows of one dataset or version differ from another's.

    Raises:
        InputError: one of them does not exist.
    """
    before, after = (_rows(open_dataset(reference)) for reference in (old, new))
    common = [(before[image_id], row) for image_id, row in after.items() if image_id in before]
    return Difference(
        added=[row for image_id, row in after.items() if image_id not in before],
        removed=[row for image_id, row in before.items() if image_id not in after],
        relabelled=[{**now, "old_label": was["label"]} for was, now in common if was["label"] != now["label"]],
        changed=[
            now for was, now in common if (was["stored_sha256"], was["split"]) != (now["stored_sha256"], now["split"])
        ],
    )


def versions_with(storage: Storage, image_ids: Sequence[str]) -> dict[int, int]:
    """Return for each version that can still be opened how many of the images its files hold, dead rows included.

    A row that a patch took out is still in the file, and so is the thumbnail of a refused member: only `compact` and
    `purge` remove the bytes.
    """
    wanted = set(image_ids)
    known: dict[str, set[str]] = {}  # versions share most of their files
    found: dict[int, int] = {}
    for version in list_versions(storage):
        if storage.exists(purged_path(version)):
            continue
        catalog = read_version(storage, version, stage_format=DATASET_FORMAT)
        assert catalog is not None
        dataset = Dataset(storage.uri, version, catalog)
        held: set[str] = set()
        for shard in dataset.shards():
            if shard.path not in known:
                ids = dataset.written_rows(shard, ["image_id"]).column(0).to_pylist()
                known[shard.path] = wanted.intersection(ids)
            held |= known[shard.path]
        for file in dataset.quarantine_files():
            if file.path not in known:
                known[file.path] = wanted.intersection(pictured(storage, file))
            held |= known[file.path]
        if held:
            found[version] = len(held)
    return found


def label_shift(found: Difference) -> list[tuple[str, str, int]]:
    """Return (old label, new label, images) of a difference's relabellings, most frequent first."""
    shifts = Counter((str(row["old_label"]), str(row["label"])) for row in found.relabelled)
    return [(old, new, number) for (old, new), number in shifts.most_common()]


def _rows(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {
        row["image_id"]: {**row, "split": split}
        for split in dataset.splits
        for row in dataset.table(split, _COLUMNS).to_pylist()
    }
