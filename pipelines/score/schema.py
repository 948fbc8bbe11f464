"""The table of predictions: one row per member, scored or not."""

from __future__ import annotations

import pyarrow as pa

ID_COLUMN = "image_id"

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field(ID_COLUMN, pa.string(), nullable=False),  # 32 hex digits, the id that a dataset gives the same member
        pa.field("key", pa.string(), nullable=False),  # path inside the source, as written there
        pa.field("occurrence", pa.int32(), nullable=False),  # rank among equal keys
        pa.field("source", pa.string(), nullable=False),
        pa.field("names", pa.list_(pa.string())),  # most probable first; null where there is no prediction
        pa.field("probabilities", pa.list_(pa.float32())),  # of `names`; 0..1
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("model_sha256", pa.string(), nullable=False),  # of the weights file
        pa.field("reason", pa.string()),  # code; null where there is a prediction
        pa.field("message", pa.string()),
    ]
)

LABELS_COLUMN = pa.field("labels", pa.list_(pa.string()))
"""Classes whose probability is the package's threshold or more, most probable first; null where there is no prediction.
Only of networks that give any number of labels an image."""
