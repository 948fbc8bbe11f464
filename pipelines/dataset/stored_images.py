"""Image files of a few rows of a dataset, read without the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.dataset.reader import Dataset


def stored_images(dataset: Dataset, split: str, rows: Sequence[int]) -> Mapping[int, bytes]:
    """Return the stored image files of some row positions; only their row groups are read."""
    starts = np.concatenate([[0], np.cumsum([group.num_rows for group in dataset.row_groups(split)])])
    by_group: dict[int, list[int]] = {}
    for row in rows:
        by_group.setdefault(int(np.searchsorted(starts, row, side="right")) - 1, []).append(row)
    found: dict[int, bytes] = {}
    for group, members in sorted(by_group.items()):
        images = dataset.read_group(split, group, ["image"]).column("image")
        for row in members:
            found[row] = images[row - int(starts[group])].as_py()["bytes"]
    return found
