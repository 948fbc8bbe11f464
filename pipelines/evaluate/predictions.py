"""An evaluation's answers as Parquet: one row an image, in row order, with page checksums."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluate.multilabel import LabelAnswers
from pipelines.evaluate.predict import Answers


def make_predictions(answers: Answers) -> bytes:
    """Return the answers for images with one label each."""
    names = [[answers.classes[number] for number in row] for row in answers.top.tolist()]
    labels = [answers.classes[number] if number >= 0 else None for number in answers.targets.tolist()]
    labelled = answers.labelled
    return _parquet(
        {
            "image_id": pa.array(answers.image_ids, pa.string()),
            "key": pa.array(answers.keys, pa.string()),
            "label": pa.array(labels, pa.string()),
            "predicted": pa.array([row[0] for row in names], pa.string()),
            "probability": pa.array(answers.probability, pa.float32()),
            "label_probability": pa.array(answers.label_probability, pa.float32(), mask=~labelled),
            "label_rank": pa.array(answers.ranks, pa.int32(), mask=~labelled),
            "names": pa.array(names, pa.list_(pa.string())),
            "probabilities": pa.array(answers.top_probability.tolist(), pa.list_(pa.float32())),
        }
    )


def make_label_predictions(answers: LabelAnswers) -> bytes:
    """Return the answers for images with any number of labels: all classes of a row, the most probable first."""
    order = np.argsort(-answers.probabilities, axis=1, kind="stable")
    labels = [
        answers.names(chosen) if known else None
        for chosen, known in zip(answers.targets, answers.labelled, strict=True)
    ]
    return _parquet(
        {
            "image_id": pa.array(answers.image_ids, pa.string()),
            "key": pa.array(answers.keys, pa.string()),
            "label": pa.array(labels, pa.list_(pa.string())),
            "predicted": pa.array([answers.names(chosen) for chosen in answers.said], pa.list_(pa.string())),
            "names": pa.array([[answers.classes[n] for n in row] for row in order.tolist()], pa.list_(pa.string())),
            "probabilities": pa.array(
                np.take_along_axis(answers.probabilities, order, axis=1).tolist(), pa.list_(pa.float32())
            ),
        }
    )


def _parquet(columns: dict[str, pa.Array]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
