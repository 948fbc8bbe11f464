"""Which class is taken for which."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def confusion_matrix(
    targets: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Return counts (C, C): row is the true class, column the predicted one; their sum is the number of rows.

    Raises:
        ValueError: the lengths differ, or a class number is outside 0 to `num_classes` - 1.
    """
    if targets.shape != predicted.shape or targets.ndim != 1:
        raise ValueError(f"targets of shape {targets.shape} do not fit predictions of shape {predicted.shape}")
    for name, values in (("target", targets), ("prediction", predicted)):
        if len(values) and not (int(values.min()) >= 0 and int(values.max()) < num_classes):
            raise ValueError(f"a {name} lies outside the {num_classes} classes")
    cells = targets.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes * num_classes).reshape(num_classes, num_classes)
