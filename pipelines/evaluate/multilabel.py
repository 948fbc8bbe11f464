"""An evaluation where images have any number of labels: answers, figures, and the surest wrong yes or no."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.reader import Dataset
from pipelines.evaluate.predict import FloatArray, Forward, check_every_row_once, join_classes, scored_batches
from pipelines.evaluate.summary import Summary, class_entry
from pipelines.metrics.accuracy import macro_f1
from pipelines.metrics.calibration import expected_calibration_error, reliability_bins
from pipelines.metrics.intervals import wilson
from pipelines.metrics.multilabel import (
    average_precisions,
    binary_log_loss,
    exact_rows,
    label_scores,
    mean_average_precision,
    mean_of_known,
    micro_f1,
)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LabelAnswers:
    """Answers in the order of row positions, N of them. Class numbers index `classes`.

    Attributes:
        classes: the dataset's classes, then those that only the model knows.
        image_ids: 32 hex digits each.
        keys: members' paths in their source.
        targets: (N, C), which classes a row has.
        labelled: (N,), which rows are labelled at all; a row that has none of the classes is.
        probabilities: (N, C) of each class, 0 to 1; all are kept, since each class is ranked over all rows.
        threshold: probability from which a class is said to be there.
    """

    classes: tuple[str, ...]
    image_ids: list[str]
    keys: list[str]
    targets: Mask
    labelled: Mask
    probabilities: FloatArray
    threshold: float

    def names(self, chosen: Mask) -> list[str]:
        """Return the classes of a row of (C,)."""
        return [self.classes[number] for number in np.flatnonzero(chosen).tolist()]

    @property
    def said(self) -> Mask:
        """Which classes (N, C) the network says are there."""
        return np.asarray(self.probabilities >= self.threshold)


def predict_labels(
    dataset: Dataset, split: str, forward: Forward, description: Mapping[str, Any], *, batch_size: int
) -> LabelAnswers:
    """Return the answers for every live row of a split; arguments and errors are those of `predict_split`."""
    classes, _ = join_classes(dataset.classes, description["classes"])
    matrix, labelled = dataset.class_matrix(split)
    image_ids: list[str] = []
    keys: list[str] = []
    scores: list[FloatArray] = []
    for batch in scored_batches(dataset, split, forward, description, batch_size=batch_size):
        image_ids += batch.image_ids
        keys += batch.keys
        scores.append(batch.scores)
    check_every_row_once(image_ids, dataset.num_rows(split), dataset.ref, split)
    targets = np.pad(matrix.astype(bool), ((0, 0), (0, len(classes) - len(dataset.classes))))  # no row has the others
    threshold = float(description["threshold"])
    return LabelAnswers(classes, image_ids, keys, targets, labelled, np.concatenate(scores), threshold)


def summarize_labels(answers: LabelAnswers, *, num_bins: int, leaked: Mask | None = None) -> Summary:
    """Return the figures over the rows that are labelled; arguments as `summarize`.

    `map` is the mean average precision, `exact` the share of rows with every class told; calibration is that of all
    answers, each class of each row one. There is no confusion: a row has no one class to be taken for another.
    """
    labelled = answers.labelled
    probabilities, targets = answers.probabilities[labelled], answers.targets[labelled]
    scores = label_scores(probabilities, targets, answers.threshold)
    precisions = average_precisions(probabilities, targets)
    right = exact_rows(probabilities, targets, answers.threshold)
    bins = reliability_bins(probabilities.ravel(), targets.ravel(), num_bins)
    low, high = wilson(int(right.sum()), len(right))
    metrics: dict[str, float | int] = {
        "map": mean_of_known(precisions),
        "macro_f1": macro_f1(scores),
        "micro_f1": micro_f1(scores),
        "exact": float(right.mean()) if len(right) else 0.0,
        "exact_low": low,
        "exact_high": high,
        "ece": expected_calibration_error(bins),
        "log_loss": binary_log_loss(probabilities, targets),
        "rows": len(answers.image_ids),
        "labelled_rows": int(labelled.sum()),
        "correct_rows": int(right.sum()),
    }
    if leaked is not None:
        clean = ~leaked[labelled]
        metrics["leaked_rows"] = int((~clean).sum())
        metrics["map_without_leaks"] = mean_average_precision(probabilities[clean], targets[clean])
    per_class = [
        {**class_entry(name, score), "average_precision": None if np.isnan(precision) else float(precision)}
        for name, score, precision in zip(answers.classes, scores, precisions, strict=True)
    ]
    return Summary(metrics, per_class, [], [asdict(each) for each in bins])


def worst_labels(answers: LabelAnswers, limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` labelled rows with a wrong yes or no, that of which the network was surest first.

    Each is JSON as `worst_mistakes` gives it: `label` and `predicted` list the classes, `class` is the one that is
    wrong, `probability` how sure the network was of its answer about it.
    """
    wrong = (answers.said != answers.targets) & answers.labelled[:, None]
    sure = np.where(answers.said, answers.probabilities, 1 - answers.probabilities)
    surest = np.where(wrong, sure, -1.0).argmax(axis=1)
    rows = np.flatnonzero(wrong.any(axis=1)).tolist()
    order = sorted(rows, key=lambda row: (-float(sure[row, surest[row]]), answers.image_ids[row]))
    return [
        {
            "image_id": answers.image_ids[row],
            "key": answers.keys[row],
            "label": ", ".join(answers.names(answers.targets[row])) or "none",
            "predicted": ", ".join(answers.names(answers.said[row])) or "none",
            "class": answers.classes[int(surest[row])],
            "probability": float(sure[row, surest[row]]),
            "label_probability": float(1 - sure[row, surest[row]]),
            "row": row,
        }
        for row in order[:limit]
    ]
