"""Pictures of a dataset that look alike: clusters, which of them straddle splits or labels, and what to take out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.dataset.near import MAX_DISTANCE, near_clusters
from pipelines.dataset.reader import Dataset

HELD_OUT = ("test", "val", "train")
"""From the most held-out split to the least."""

FLAT_CONTRAST = 0.02
"""Below it a picture is one colour, and its hash says nothing."""

_COLUMNS = ("image_id", "key", "label", "phash", "contrast")


@dataclass(frozen=True)
class Cluster:
    """Images that look alike; the first is the one that stays when the others are taken out."""

    rows: tuple[dict[str, Any], ...]
    """Each with image_id, key, label, split, row (its position in the split) and distance (bits from the first)."""

    @property
    def splits(self) -> set[str]:
        """The splits that its images are in."""
        return {row["split"] for row in self.rows}

    @property
    def labels(self) -> set[str | None]:
        """Its images' labels."""
        return {row["label"] for row in self.rows}


@dataclass(frozen=True)
class Alike:
    """What was found in a dataset."""

    clusters: tuple[Cluster, ...]
    images: int
    """Images looked at."""
    flat: int
    """Images left out because they are one colour."""
    capped: int
    """Images not compared with everything that resembles them, because too much does."""

    def counts(self) -> dict[str, int]:
        """Return the figures people look at first."""
        return {
            "images": self.images,
            "clusters": len(self.clusters),
            "images_in_clusters": sum(len(cluster.rows) for cluster in self.clusters),
            "clusters_across_splits": sum(len(cluster.splits) > 1 for cluster in self.clusters),
            "clusters_with_different_labels": sum(len(cluster.labels) > 1 for cluster in self.clusters),
            "one_colour": self.flat,
            "capped": self.capped,
        }

    def surplus(self, *, across_splits: bool) -> list[dict[str, Any]]:
        """Return the rows to take out: of each cluster all but the first, or only those in less held-out splits.

        The picture in the most held-out split stays (test, then val, then train), as for exact duplicates.
        """
        return [
            {**row, "like": cluster.rows[0]["key"], "like_split": cluster.rows[0]["split"]}
            for cluster in self.clusters
            for row in cluster.rows[1:]
            if not across_splits or row["split"] != cluster.rows[0]["split"]
        ]


def find_alike(dataset: Dataset, *, max_distance: int = MAX_DISTANCE) -> Alike:
    """Return the clusters of images whose perceptual hashes differ in at most `max_distance` of 64 bits."""
    rows: list[dict[str, Any]] = []
    for split in sorted(dataset.splits, key=_held_out):
        table = dataset.table(split, _COLUMNS).to_pylist()
        rows += [{**row, "split": split, "row": place} for place, row in enumerate(table)]
    seen = [row for row in rows if row["contrast"] >= FLAT_CONTRAST]
    hashes = np.array([row["phash"] for row in seen], dtype=np.uint64)
    found = near_clusters(hashes, max_distance=max_distance)
    members: list[list[dict[str, Any]]] = [[] for _ in found.leader]
    for row, number in zip(seen, found.cluster.tolist(), strict=True):
        if number >= 0:
            members[number].append(row)
    return Alike(
        clusters=tuple(_cluster(group) for group in members),
        images=len(rows),
        flat=len(rows) - len(seen),
        capped=found.capped,
    )


def _cluster(rows: list[dict[str, Any]]) -> Cluster:
    """Put the image that stays first; rows come with the most held-out split first."""
    first = rows[0]
    return Cluster(
        tuple(
            {
                **{name: row[name] for name in ("image_id", "key", "label", "split", "row")},
                "distance": (row["phash"] ^ first["phash"]).bit_count(),
            }
            for row in rows
        )
    )


def _held_out(split: str) -> tuple[int, str]:
    return (HELD_OUT.index(split) if split in HELD_OUT else len(HELD_OUT), split)
