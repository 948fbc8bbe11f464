"""Pictures of a dataset that look alike: clusters, which of them straddle splits or labels, and what to take out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.dataset.near import MAX_DISTANCE, find_neighbours
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
    def labels(self) -> set[Any]:
        """Its images' labels; lists of them as tuples."""
        return {comparable(row["label"]) for row in self.rows}


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
    splits = sorted(dataset.splits, key=_held_out)
    tables = [dataset.table(split, _COLUMNS) for split in splits]
    phash = np.concatenate([np.array([], np.uint64), *(table.column("phash").to_numpy() for table in tables)])
    contrast = np.concatenate([np.array([], np.float32), *(table.column("contrast").to_numpy() for table in tables)])
    seen = np.flatnonzero(contrast >= FLAT_CONTRAST)
    found = find_neighbours(phash[seen], max_distance=max_distance).clusters()
    in_cluster = found.cluster >= 0
    places, numbers = seen[in_cluster], found.cluster[in_cluster]
    members: list[list[dict[str, Any]]] = [[] for _ in found.leader]
    start = 0
    for split, table in zip(splits, tables, strict=True):  # only rows in clusters become objects
        here = (places >= start) & (places < start + len(table))
        rows = places[here] - start
        for row, number, values in zip(
            rows.tolist(), numbers[here].tolist(), table.take(pa.array(rows)).to_pylist(), strict=True
        ):
            members[number].append({**values, "split": split, "row": row})
        start += len(table)
    return Alike(
        clusters=tuple(_cluster(group) for group in members),
        images=len(phash),
        flat=len(phash) - len(seen),
        capped=found.capped,
    )


def comparable(label: Any) -> Any:
    """Return a label as a value that can stand in a set: a list of names as a tuple."""
    return tuple(label) if isinstance(label, list) else label


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
