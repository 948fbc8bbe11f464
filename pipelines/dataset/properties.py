"""The small columns of a dataset's live rows side by side, over all splits: what sheets and checks compute from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.predictive import Prediction, as_numbers, find_predictive
from pipelines.dataset.reader import Dataset

NUMBERS = ("brightness", "contrast", "sharpness", "source_width", "source_height", "aspect", "source_bytes")
"""Properties of a picture that are numbers; `aspect` is the long side by the short one. Rows written by an earlier
release have no `source_bytes`."""

FORMAT = "format"

_COLUMNS = (
    "label", "source_format", "source_width", "source_height", "brightness", "contrast", "sharpness",
    "source_bytes", "cropped_fraction", "flags",
)  # fmt: skip


@dataclass(frozen=True)
class Properties:
    """One value per live row, splits in alphabetical order, rows in the order of row positions.

    Attributes:
        splits: names of the splits that have rows.
        starts: row at which each begins, and the number of rows at the end (S + 1,).
        columns: the columns, carried ones too.
        numbers: name of `NUMBERS` -> values (N,), where all rows have one.
        carried: names of the carried columns.
    """

    splits: list[str]
    starts: list[int]
    columns: pa.Table
    numbers: dict[str, npt.NDArray[np.float64]]
    carried: list[str]

    def place(self, row: int) -> tuple[str, int]:
        """Return the split of a row and its row position there."""
        split = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.splits[split], row - self.starts[split]

    @property
    def names(self) -> list[str]:
        """All that could give a label away."""
        return [*self.numbers, FORMAT, *self.carried]

    def predictive(self, names: list[str] | None = None) -> dict[str, Prediction]:
        """Return how well properties tell a class; carried columns count as numbers where all their values are.

        Args:
            names: some of `names`; None for all of them.
        """
        wanted = self.names if names is None else names
        return find_predictive({name: self._values(name) for name in wanted}, self.columns.column("label"))

    def _values(self, name: str) -> Any:
        if name in self.numbers:
            return self.numbers[name]
        if name == FORMAT:
            return self.columns.column("source_format")
        column = self.columns.column(name)
        numbers = as_numbers(column)
        return column if numbers is None else numbers


def read_properties(dataset: Dataset) -> Properties:
    """Read the small columns of all live rows; a million rows take about 100 MB."""
    carried = list(dataset.catalog["carried"])
    splits = [split for split in dataset.splits if dataset.num_rows(split)]
    tables = [dataset.table(split, [*_COLUMNS, *carried]) for split in splits]
    columns = pa.concat_tables(tables) if tables else pa.table({name: [] for name in (*_COLUMNS, *carried)})
    numbers = {
        name: columns.column(name).to_numpy().astype(np.float64)
        for name in NUMBERS
        if name != "aspect" and not columns.column(name).null_count
    }
    sides = numbers["source_width"], numbers["source_height"]
    numbers["aspect"] = np.maximum(*sides) / np.maximum(np.minimum(*sides), 1)
    starts = np.cumsum([0, *(table.num_rows for table in tables)]).tolist()
    return Properties(splits, starts, columns, numbers, carried)
