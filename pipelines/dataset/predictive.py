"""Which properties give a label away: a network may learn them instead of the pictures.

A number is ranked, and for each class the chance that one of its images has the higher value than one of another class
(the area under the ROC curve) is measured; a name (a format, a site) is counted against each class. Both are put on one
scale from 0 (says nothing of any class) to 1 (gives a class away), and beside it stands what shuffled labels reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MIN_IMAGES = 5
"""Classes with fewer images are left out: chance alone gives them away."""

SHUFFLES = 100
SHUFFLED_ROWS = 50_000
"""Of a larger dataset each class has so many images, divided by the number of classes, in a shuffle. That is all of a
rare class, of which chance makes most; for the others it is corrected by the standard deviation of their number."""

_MAX_CELLS = 20_000_000
"""Names times classes up to which a table of them is counted whole."""

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prediction:
    """How well one property tells one class from all others.

    Attributes:
        share: 0 (nothing) to 1 (gives the class away): |2 AUC - 1| for numbers, Cramer's V for names.
        label: the class that it tells best.
        chance: the highest share that any class reached when labels were shuffled 100 times.
    """

    share: float
    label: str
    chance: float

    @property
    def excess(self) -> float:
        """The share, or 0 where shuffled labels reach it too."""
        return self.share if self.share > self.chance else 0.0


@dataclass(frozen=True)
class Classes:
    """Which row has which class: flat lists, so that a row may have several.

    Attributes:
        names: the classes with enough images, in alphabetical order.
        rows: numbers of the rows that have one of them (R,).
        place: place in `rows` of each label (M,).
        index: class number of each label (M,).
    """

    names: list[str]
    rows: Indices
    place: Indices
    index: Indices

    @staticmethod
    def of(labels: pa.Array | pa.ChunkedArray, *, least: int = MIN_IMAGES) -> Classes:
        """Return the classes of a column of labels (names, lists of names, or null) that have `least` images."""
        column = labels.combine_chunks() if isinstance(labels, pa.ChunkedArray) else labels
        if pa.types.is_list(column.type):
            parents = pc.list_parent_indices(column).to_numpy().astype(np.int64)
            column = pc.list_flatten(column)
        else:
            parents = np.arange(len(column))
        encoded = column.cast(pa.string()).dictionary_encode()
        index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        names = encoded.dictionary.to_pylist()
        counts = np.bincount(index[index >= 0], minlength=len(names))
        order = sorted((number for number in range(len(names)) if counts[number] >= least), key=lambda n: names[n])
        renumbered = np.full(len(names) + 1, -1, np.int64)  # the last stands for null
        renumbered[order] = np.arange(len(order))
        index = renumbered[index]
        kept = index >= 0
        rows, place = np.unique(parents[kept], return_inverse=True)
        return Classes([names[n] for n in order], rows, place, index[kept])

    def sampled(self, limit: int) -> Classes:
        """Return the classes with at most `limit` images each, spread over all, among the same `rows`."""
        order = np.argsort(self.index, kind="stable")
        sizes = np.bincount(self.index, minlength=len(self.names))
        number = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the class
        kept = order[number % np.repeat(-(-sizes // limit), sizes) == 0] if len(order) else order
        return Classes(self.names, self.rows, self.place[kept], self.index[kept])

    def shuffled(self) -> Iterator[Classes]:
        """Yield the classes with the labels of rows shuffled among the rows, the same way every time."""
        draw = np.random.default_rng(0)
        places, place = np.unique(self.place, return_inverse=True)
        for _ in range(SHUFFLES):
            if len(places) == len(self.rows):
                drawn = draw.permutation(len(self.rows))
            else:
                drawn = draw.choice(len(self.rows), len(places), replace=False)
            yield Classes(self.names, self.rows, drawn[place], self.index)

    def spread(self) -> Floats:
        """Return the standard deviation of each class's share of a number by chance, up to a common factor (K,)."""
        inside = np.bincount(self.index, minlength=len(self.names)).astype(np.float64)
        return 1 / np.sqrt(np.maximum(inside * (len(self.rows) - inside), 1))


def find_predictive(properties: Mapping[str, Any], labels: pa.Array | pa.ChunkedArray) -> dict[str, Prediction]:
    """Return how well each property tells a class, 0 for all where fewer than two classes have enough images.

    Args:
        properties: name -> one value per row: an array of numbers, or a list or Arrow array of names.
        labels: one per row: a name, a list of names, or null.
    """
    classes = Classes.of(labels)
    if len(classes.names) < 2:
        return dict.fromkeys(properties, Prediction(0.0, "", 0.0))
    prepared = {name: _Property.of(values, classes.rows) for name, values in properties.items()}
    is_small = len(classes.rows) <= SHUFFLED_ROWS
    sample = classes if is_small else classes.sampled(max(MIN_IMAGES, SHUFFLED_ROWS // len(classes.names)))
    scale = classes.spread() / sample.spread()
    chance = dict.fromkeys(prepared, 0.0)
    for shuffled in sample.shuffled():
        for name, values in prepared.items():
            shares = values.shares(shuffled) * (1.0 if values.ranks is None else scale)
            chance[name] = max(chance[name], float(shares.max()))
    found = {name: values.shares(classes) for name, values in prepared.items()}
    return {
        name: Prediction(round(float(shares.max()), 4), classes.names[int(shares.argmax())], round(chance[name], 4))
        for name, shares in found.items()
    }


@dataclass(frozen=True)
class _Property:
    """One value per row: its rank among numbers, or its number among names."""

    ranks: Floats | None
    codes: Indices | None
    num_codes: int = 0
    sizes: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows with each name."""

    @staticmethod
    def of(values: Any, rows: Indices) -> _Property:
        """Prepare the values of some rows."""
        if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
            _, inverse, counts = np.unique(values[rows], return_inverse=True, return_counts=True)
            ends = np.cumsum(counts)
            return _Property((ends - (counts - 1) / 2)[inverse], None)
        column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, pa.string())
        column = column.take(pa.array(rows)).cast(pa.string()).fill_null("")
        encoded = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        sizes = np.bincount(codes, minlength=len(encoded.dictionary))
        return _Property(None, codes, len(encoded.dictionary), sizes)

    def shares(self, classes: Classes) -> Floats:
        """Return the share of each class (K,), 0 where a class has no row or all of them."""
        total, number = len(classes.rows), len(classes.names)
        inside = np.bincount(classes.index, minlength=number).astype(np.float64)
        is_known = (inside > 0) & (inside < total)
        if self.ranks is not None:
            sums = np.bincount(classes.index, weights=self.ranks[classes.place], minlength=number)
            auc = (sums - inside * (inside + 1) / 2) / np.maximum(inside * (total - inside), 1)
            return np.where(is_known, np.abs(2 * auc - 1), 0.0)
        assert self.codes is not None
        if self.num_codes < 2:
            return np.zeros(number)
        cells, counts = _count(self.codes[classes.place] * number + classes.index, self.num_codes * number)
        # the sum of (found - expected)^2 / rows with the name over all names, of which most may have none of a class
        squares = counts.astype(np.float64) ** 2 / self.sizes[cells // number]
        spread = np.bincount(cells % number, weights=squares, minlength=number) - inside**2 / total
        prior = inside / total
        share = np.sqrt(np.maximum(spread, 0) / np.maximum(total * prior * (1 - prior), 1e-12))
        return np.where(is_known, share, 0.0)


def _count(cells: Indices, number: int) -> tuple[Indices, Indices]:
    """Return the cells that occur, ascending, and how often each does."""
    if number > _MAX_CELLS:
        return np.unique(cells, return_counts=True)
    table = np.bincount(cells, minlength=number)
    found = np.flatnonzero(table)
    return found, table[found]


def as_numbers(column: pa.ChunkedArray) -> Floats | None:
    """Return a column of text as numbers where all of it is, with at least two different ones; else None."""
    try:
        values = column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return values if np.isfinite(values).all() and len(np.unique(values)) > 1 else None
