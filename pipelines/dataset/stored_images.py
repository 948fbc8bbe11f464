"""Image files of a few rows, read without the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from pipelines.dataset.reader import Dataset


def stored_images(dataset: Dataset, split: str, rows: Sequence[int]) -> dict[int, bytes]:
    """Return the stored image files of some row positions; only their row groups are read."""
    sizes = [group.num_rows for group in dataset.row_groups(split)]
    return images_of_groups(sizes, lambda group: dataset.read_group(split, group, ["image"]), rows)


def images_of_groups(sizes: Sequence[int], read: Callable[[int], pa.Table], rows: Sequence[int]) -> dict[int, bytes]:
    """Return the image files of some rows.

    Args:
        sizes: rows of each row group.
        read: number of a row group -> its column `image`.
        rows: positions over all groups.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])
    by_group: dict[int, list[int]] = {}
    for row in rows:
        by_group.setdefault(int(np.searchsorted(starts, row, side="right")) - 1, []).append(row)
    found: dict[int, bytes] = {}
    for group, members in sorted(by_group.items()):
        images = read(group).column("image")
        for row in members:
            found[row] = images[row - int(starts[group])].as_py()["bytes"]
    return found
