"""The worst mistakes: rows that the network got wrong and was surest of, often wrong labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.dataset.reader import Dataset
from pipelines.evaluate.predict import Answers


def worst_mistakes(answers: Answers, limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` labelled rows whose answer is not their label, the surest first, equal ones by image id.

    Each is JSON: `image_id`, `key`, `label`, `predicted`, `probability` (of the answer), `label_probability`, and
    `row`, its row position in the split.
    """
    wrong = np.flatnonzero(answers.labelled & (answers.ranks != 1))
    order = sorted(wrong.tolist(), key=lambda row: (-float(answers.probability[row]), answers.image_ids[row]))
    return [
        {
            "image_id": answers.image_ids[row],
            "key": answers.keys[row],
            "label": answers.classes[int(answers.targets[row])],
            "predicted": answers.classes[int(answers.predicted[row])],
            "probability": float(answers.probability[row]),
            "label_probability": float(answers.label_probability[row]),
            "row": row,
        }
        for row in order[:limit]
    ]


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
