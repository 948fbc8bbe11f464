"""Pictures of a dataset that look alike: clusters, which of them straddle splits or labels, and what to take out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.near import MAX_ACCIDENTS, MAX_DISTANCE, count_accidents, find_neighbours
from pipelines.dataset.reader import Dataset

HELD_OUT = ("test", "val", "train")
"""From the most held-out split to the least."""

FLAT_CONTRAST = 0.02
"""Below it a picture is one colour, and its hash says nothing."""

_COLUMNS = ("image_id", "key", "label", "phash", "contrast")


@dataclass(frozen=True)
class Cluster:
    """Images that look alike, the most held-out first."""

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
    accidents: float = 0.0
    """Look-alikes that one image has by accident (`near.count_accidents`)."""
    leaks: tuple[dict[str, Any], ...] = ()
    """Images that look like one in a more held-out split, with that one's key (`like`), split and distance; without
    them no two splits look alike anywhere."""
    repeats: tuple[dict[str, Any], ...] = ()
    """Likewise, images that look like another one at all; without them nothing looks alike."""

    @property
    def doubt(self) -> str:
        """A sentence where most look-alikes are no copies; empty where they can be trusted."""
        if self.accidents <= MAX_ACCIDENTS:
            return ""
        return (
            f"By the perceptual hash each of these images looks like {self.accidents:,.1f} others by accident: most"
            " look-alikes are no copies."
        )

    def counts(self) -> dict[str, int]:
        """Return the figures people look at first."""
        return {
            "images": self.images,
            "clusters": len(self.clusters),
            "images_in_clusters": sum(len(cluster.rows) for cluster in self.clusters),
            "clusters_across_splits": sum(len(cluster.splits) > 1 for cluster in self.clusters),
            "clusters_with_different_labels": sum(len(cluster.labels) > 1 for cluster in self.clusters),
            "leaks": len(self.leaks),
            "one_colour": self.flat,
            "capped": self.capped,
        }

    def surplus(self, *, across_splits: bool) -> list[dict[str, Any]]:
        """Return the rows to take out: all that look like one that stays, or only those that leak.

        The picture in the most held-out split stays (test, then val, then train), as for exact duplicates.
        """
        return list(self.leaks if across_splits else self.repeats)


def find_alike(dataset: Dataset, *, max_distance: int = MAX_DISTANCE) -> Alike:
    """Return the clusters of images whose perceptual hashes differ in at most `max_distance` of 64 bits."""
    splits = sorted(dataset.splits, key=_held_out)
    tables = [dataset.table(split, _COLUMNS) for split in splits]
    phash = np.concatenate([np.array([], np.uint64), *(table.column("phash").to_numpy() for table in tables)])
    contrast = np.concatenate([np.array([], np.float32), *(table.column("contrast").to_numpy() for table in tables)])
    seen = np.flatnonzero(contrast >= FLAT_CONTRAST)
    neighbours = find_neighbours(phash[seen], max_distance=max_distance)
    found = neighbours.clusters()
    rank = np.repeat(np.arange(len(tables)), [len(table) for table in tables])[seen]
    shadow, repeated = neighbours.shadowed(rank), neighbours.repeats()
    in_cluster = np.flatnonzero(found.cluster >= 0)
    # only rows that look like others become objects
    places = [
        seen[in_cluster],
        *(part for like in (shadow, repeated) for part in (seen[like >= 0], seen[like[like >= 0]])),
    ]
    rows = _rows(splits, tables, np.unique(np.concatenate(places)))
    members: list[list[dict[str, Any]]] = [[] for _ in found.leader]
    for place, number in zip(seen[in_cluster].tolist(), found.cluster[in_cluster].tolist(), strict=True):
        members[number].append(rows[place])
    return Alike(
        clusters=tuple(_cluster(group) for group in members),
        leaks=_each_beside(rows, seen, shadow),
        repeats=_each_beside(rows, seen, repeated),
        images=len(phash),
        flat=len(phash) - len(seen),
        capped=found.capped,
        accidents=count_accidents(phash[seen], max_distance=max_distance),
    )


def _each_beside(
    rows: dict[int, dict[str, Any]], seen: npt.NDArray[np.int64], like: npt.NDArray[np.int64]
) -> tuple[dict[str, Any], ...]:
    """Return what is said of the rows that look like another, and of that one."""
    found = []
    for place in np.flatnonzero(like >= 0).tolist():
        other = rows[int(seen[like[place]])]
        beside = {"like": other["key"], "like_split": other["split"]}
        found.append({**_shown(rows[int(seen[place])], other), **beside})
    return tuple(found)


def comparable(label: Any) -> Any:
    """Return a label as a value that can stand in a set: a list of names as a tuple."""
    return tuple(label) if isinstance(label, list) else label


def _cluster(rows: list[dict[str, Any]]) -> Cluster:
    """Put the image that stays first; rows come with the most held-out split first."""
    return Cluster(tuple(_shown(row, rows[0]) for row in rows))


def _shown(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of a row, and how far it is from another."""
    values = {name: row[name] for name in ("image_id", "key", "label", "split", "row")}
    return {**values, "distance": (row["phash"] ^ other["phash"]).bit_count()}


def _rows(splits: list[str], tables: list[pa.Table], places: npt.NDArray[np.int64]) -> dict[int, dict[str, Any]]:
    """Return the rows at some places, counted over all splits, each with its split and row position there."""
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for split, table in zip(splits, tables, strict=True):
        here = places[(places >= start) & (places < start + len(table))]
        values = table.take(pa.array(here - start)).to_pylist()
        for place, row in zip(here.tolist(), values, strict=True):
            found[place] = {**row, "split": split, "row": place - start}
        start += len(table)
    return found


def _held_out(split: str) -> tuple[int, str]:
    return (HELD_OUT.index(split) if split in HELD_OUT else len(HELD_OUT), split)
