"""Newcomers that would leak: the same picture, or one that looks like it, already stands in another split."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.duplicates import FLAT_CONTRAST, HELD_OUT
from pipelines.dataset.near import MAX_DISTANCE
from pipelines.dataset.near_join import near_join
from pipelines.dataset.reader import Dataset

_COLUMNS = ("source_sha256", "phash", "contrast")
_ROW = ("image_id", "source", "key", "occurrence", "label", "source_sha256")


@dataclass(frozen=True)
class Leak:
    """A newcomer and the image in another split that it equals or resembles.

    Attributes:
        row: the newcomer's identity: image_id, source, key, occurrence, label and source_sha256.
        split: where it would have gone.
        twin_split: where the other image stands, `twin_row` being its position there, `twin_key` its key.
        distance: bits of the perceptual hash between them; None for the same bytes.
    """

    row: dict[str, Any]
    split: str
    twin_split: str
    twin_row: int
    distance: int | None
    twin_key: str = ""

    @property
    def message(self) -> str:
        """Why it is refused, in words."""
        like = "has the bytes of" if self.distance is None else f"is {self.distance} of 64 bits of the hash away from"
        return f"it {like} {self.twin_key}, which stands in {self.twin_split}; it would have gone to {self.split}"


def find_leaks(standing: Dataset, newcomers: Dataset, *, max_distance: int = MAX_DISTANCE) -> list[Leak]:
    """Return the newcomers whose copy or look-alike stands in another split; only small columns are read.

    One that equals an image of its own split is none. Pictures of one colour are compared by their bytes only.

    Args:
        standing: the dataset, what the newcomers replace not counted.
        newcomers: their rows, as a dataset of their own.
        max_distance: bits of the perceptual hash up to which pictures look alike.
    """
    theirs = {split: standing.table(split, _COLUMNS) for split in sorted(standing.splits, key=_held_out)}
    ours = {split: newcomers.table(split, _COLUMNS) for split in sorted(newcomers.splits, key=_held_out)}
    found: dict[tuple[str, int], Leak] = {}
    for leak in [*_copies(theirs, ours), *_look_alikes(theirs, ours, max_distance)]:
        found.setdefault((leak.split, leak.row["row"]), leak)
    return _named(standing, newcomers, list(found.values()))


def _copies(theirs: dict[str, pa.Table], ours: dict[str, pa.Table]) -> list[Leak]:
    leaks = []
    for split, newcomers in ours.items():
        hashes = newcomers.column("source_sha256").combine_chunks()
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, sha256 in enumerate(hashes.to_pylist()):
            rows_of[sha256].append(row)
        for other, table in theirs.items():
            column = table.column("source_sha256")
            twins = (
                pc.indices_nonzero(pc.is_in(column, value_set=hashes)) if other != split else pa.array([], pa.uint64())
            )
            for twin, sha256 in zip(twins.to_pylist(), column.take(twins).to_pylist(), strict=True):
                leaks += [Leak({"row": row}, split, other, twin, None) for row in rows_of[sha256]]
    return leaks


def _look_alikes(theirs: dict[str, pa.Table], ours: dict[str, pa.Table], max_distance: int) -> list[Leak]:
    standing_hash, standing_place = _hashes(theirs)
    new_hash, new_place = _hashes(ours)
    unique, number = np.unique(new_hash, return_inverse=True)
    standing_unique, standing_number = np.unique(standing_hash, return_inverse=True)
    new, other = near_join(unique, standing_unique, max_distance=max_distance)
    if not len(new):
        return []
    names, new_names = list(theirs), list(ours)
    rows_of: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for row in np.flatnonzero(np.isin(standing_number, other)).tolist():
        split, place = standing_place[row].tolist()
        rows_of[int(standing_number[row])].append((names[split], place))
    distance = np.bitwise_count(unique[new] ^ standing_unique[other])
    near_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for bits, one, two in sorted(zip(distance.tolist(), new.tolist(), other.tolist(), strict=True)):
        near_of[one].append((bits, two))
    leaks = []
    for row in np.flatnonzero(np.isin(number, new)).tolist():
        split, place = new_names[new_place[row, 0]], int(new_place[row, 1])
        twins = ((bits, *twin) for bits, two in near_of[int(number[row])] for twin in rows_of[two] if twin[0] != split)
        if (first := next(twins, None)) is not None:
            bits, twin_split, twin_row = first
            leaks.append(Leak({"row": place}, split, twin_split, twin_row, bits))
    return leaks


def _hashes(tables: dict[str, pa.Table]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return the hashes of all rows that are not of one colour, and (number of the split, row) of each."""
    hashes, places = [np.empty(0, np.uint64)], [np.empty((0, 2), np.int64)]
    for number, table in enumerate(tables.values()):
        rows = np.flatnonzero(table.column("contrast").to_numpy() >= FLAT_CONTRAST)
        hashes.append(table.column("phash").to_numpy()[rows])
        places.append(np.stack([np.full(len(rows), number), rows], axis=1))
    return np.concatenate(hashes), np.concatenate(places)


def _named(standing: Dataset, newcomers: Dataset, leaks: list[Leak]) -> list[Leak]:
    """Return the leaks with their rows' identity and their twins' keys."""
    named = []
    for split in dict.fromkeys(leak.split for leak in leaks):
        mine = [leak for leak in leaks if leak.split == split]
        rows = newcomers.table(split, _ROW).take(pa.array([leak.row["row"] for leak in mine])).to_pylist()
        named += [replace(leak, row=row) for leak, row in zip(mine, rows, strict=True)]
    result = []
    for split in dict.fromkeys(leak.twin_split for leak in named):
        mine = [leak for leak in named if leak.twin_split == split]
        keys = standing.table(split, ["key"]).column(0).take(pa.array([leak.twin_row for leak in mine])).to_pylist()
        result += [replace(leak, twin_key=key) for leak, key in zip(mine, keys, strict=True)]
    return sorted(result, key=lambda leak: str(leak.row["image_id"]))


def _held_out(split: str) -> tuple[int, str]:
    return (HELD_OUT.index(split) if split in HELD_OUT else len(HELD_OUT), split)
