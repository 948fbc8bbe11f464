"""The worst mistakes: rows that the network got wrong and was surest of, often wrong labels."""

from __future__ import annotations

from typing import Any

import numpy as np

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
