"""Rows of one split that another has too, byte for byte or by looks: held-out figures count them twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipelines.dataset.duplicates import FLAT_CONTRAST
from pipelines.dataset.near import MAX_ACCIDENTS, MAX_DISTANCE, count_accidents
from pipelines.dataset.near_join import near_join
from pipelines.dataset.reader import Dataset

_COLUMNS = ("source_sha256", "phash", "contrast")

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Leaks:
    """Which live rows of a split have a twin in another, by row position (N,)."""

    exact: Mask
    """The same source bytes."""
    near: Mask
    """A perceptual hash at most 4 bits away; pictures of one colour have none."""
    is_sure: bool = True
    """False where the hash cannot tell the dataset's pictures apart (`near.count_accidents`): then none is near."""

    @property
    def either(self) -> Mask:
        """Rows that are the same or look alike."""
        return self.exact | self.near


def find_leaks(dataset: Dataset, split: str, *, against: str = "train", max_distance: int = MAX_DISTANCE) -> Leaks:
    """Return which rows of a split stand in another split too; only small columns are read."""
    if against == split or against not in dataset.splits:
        nothing = np.zeros(dataset.num_rows(split), bool)
        return Leaks(nothing, nothing)
    held_out, train = (dataset.table(name, _COLUMNS) for name in (split, against))
    exact = pc.is_in(held_out.column("source_sha256"), value_set=train.column("source_sha256").combine_chunks())
    (ours, own_hashes), (_, their_hashes) = (
        (seen, table.column("phash").to_numpy()[seen])
        for table in (held_out, train)
        for seen in [np.flatnonzero(table.column("contrast").to_numpy() >= FLAT_CONTRAST)]
    )
    unique, inverse = np.unique(own_hashes, return_inverse=True)
    is_near = np.zeros(len(unique), bool)
    is_sure = count_accidents(their_hashes, max_distance=max_distance) <= MAX_ACCIDENTS
    if is_sure:
        found, _ = near_join(unique, np.unique(their_hashes), max_distance=max_distance)
        is_near[found] = True
    near = np.zeros(held_out.num_rows, bool)
    near[ours] = is_near[inverse]
    return Leaks(exact.to_numpy(zero_copy_only=False).astype(bool), near, is_sure)
