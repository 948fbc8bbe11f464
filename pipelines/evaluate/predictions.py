"""An evaluation's answers as Parquet: one row an image, in row order, with page checksums."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluate.multilabel import LabelAnswers, Mask
from pipelines.evaluate.predict import Answers

_ROWS_A_PART = 8192
"""Rows of several labels that are made ready at once; a row group each."""


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
    """Return the answers for images with any number of labels: all classes of a row, the most probable first.

    Rows x classes are many (125,000 x 600 of OpenImages), so that no cell becomes a Python object: names are numbers of
    a dictionary until they are in the file, and rows are written a part at a time.
    """
    classes = pa.array(answers.classes, pa.string())
    said = answers.said
    buffer = io.BytesIO()
    # Without Arrow's own schema the columns are lists of strings to every reader, not lists of dictionaries.
    with pq.ParquetWriter(
        buffer, _label_schema(), compression="zstd", write_page_checksum=True, store_schema=False
    ) as writer:
        for first in range(0, max(1, len(answers.keys)), _ROWS_A_PART):
            part = slice(first, first + _ROWS_A_PART)
            probabilities = answers.probabilities[part]
            order = np.argsort(-probabilities, axis=1, kind="stable").astype(np.int32)
            ordered = np.take_along_axis(probabilities, order, axis=1).astype(np.float32)
            offsets = np.arange(len(order) + 1, dtype=np.int32) * order.shape[1]
            columns = [
                pa.array(answers.image_ids[part], pa.string()),
                pa.array(answers.keys[part], pa.string()),
                _names_of(answers.targets[part], classes, unknown=~answers.labelled[part]),
                _names_of(said[part], classes),
                pa.ListArray.from_arrays(offsets, pa.DictionaryArray.from_arrays(order.ravel(), classes)),
                pa.ListArray.from_arrays(offsets, pa.array(ordered.ravel(), pa.float32())),
            ]
            writer.write_table(pa.table(columns, schema=_label_schema()))
    return buffer.getvalue()


def _label_schema() -> pa.Schema:
    names = pa.list_(pa.dictionary(pa.int32(), pa.string()))
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("key", pa.string()),
            ("label", names),
            ("predicted", names),
            ("names", names),
            ("probabilities", pa.list_(pa.float32())),
        ]
    )


def _names_of(chosen: Mask, classes: pa.Array, unknown: Mask | None = None) -> pa.Array:
    """Return the classes of each row of (N, C), in their order; null where nothing is known of a row."""
    offsets = np.zeros(len(chosen) + 1, dtype=np.int32)
    np.cumsum(chosen.sum(axis=1), out=offsets[1:])
    names = pa.DictionaryArray.from_arrays(np.nonzero(chosen)[1].astype(np.int32), classes)
    return pa.ListArray.from_arrays(offsets, names, mask=None if unknown is None else pa.array(unknown))


def _parquet(columns: dict[str, pa.Array]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
