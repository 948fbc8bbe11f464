"""Which rows an epoch reads, and how often: all of them once, or as many of each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.dataset.keyed import Hashes, keyed_hash, to_uniform
from pipelines.train.streams import SAMPLING

Positions: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """The copies of rows that an epoch reads, in the order of rows.

    Attributes:
        rows: row position of each copy, ascending, (M,).
        repeats: which copy of its row it is, from 0, (M,).
        group_sizes: copies in each row group, for `EpochOrder`.
    """

    rows: Positions
    repeats: Positions
    group_sizes: list[int]


def balanced_sample(
    targets: npt.NDArray[np.int64], hashes: Hashes, group_sizes: list[int], *, seed: int, epoch: int
) -> Sample:
    """Return an epoch with the same number of copies of each class that has rows: the mean over these classes.

    A class of n rows gives each of them floor(number / n) times, and some once more: as many as are wanted in a circle
    that a hash of (seed, row) orders, from where the epoch before has ended, so that each has its turn.

    Args:
        targets: class numbers of all rows, (N,).
        hashes: `image_hashes` of the rows, (N,).
        group_sizes: rows of each row group.
        seed: seed of the run.
        epoch: the epoch, counted from 1.
    """
    counts = np.bincount(targets)
    number = max(1, len(targets) // int(np.count_nonzero(counts)))
    draws = to_uniform(keyed_hash(seed, 0, SAMPLING, 0, hashes))
    order = np.lexsort((draws, targets))  # by class, then by draw
    firsts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    rank = np.empty(len(targets), np.int64)
    rank[order] = np.arange(len(targets)) - firsts[targets[order]]
    of_class = counts[targets]
    more = number % of_class
    copies = number // of_class + ((rank - (epoch - 1) * more) % of_class < more)
    rows = np.repeat(np.arange(len(targets)), copies)
    starts = np.cumsum(copies) - copies
    ends = np.cumsum(group_sizes)
    sizes = np.diff(np.concatenate([[0], np.cumsum(copies)])[np.concatenate([[0], ends])])
    return Sample(rows, np.arange(len(rows)) - starts[rows], sizes.tolist())


def keys_of_copies(hashes: Hashes, repeats: Positions) -> Hashes:
    """Return the keys of random draws for copies of rows, (M,): the first copy has the row's own."""
    return np.where(repeats == 0, hashes, keyed_hash(SAMPLING, repeats, hashes))
