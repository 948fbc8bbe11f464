"""Members on their way to their rows, and the rows as a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.score.schema import LABELS_COLUMN, PREDICTION_SCHEMA


@dataclass
class Row:
    """One member: at the end it has either probabilities or a reason."""

    image_id: str
    key: str
    occurrence: int
    pixels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    reason: str | None = None
    message: str | None = None

    def refuse(self, reason: str, message: str) -> None:
        """Settle the row without a prediction."""
        self.pixels = None
        self.reason = reason
        self.message = message.splitlines()[0][:500] if message.strip() else reason


@dataclass
class Batches:
    """Rows that wait for a forward pass, by picture size; sizes differ only where the evaluation keeps them."""

    size: int
    _waiting: dict[tuple[int, ...], list[Row]] = field(default_factory=dict)

    def add(self, row: Row) -> list[Row]:
        """Keep a row that has pixels; return the batch that it completes, or an empty list."""
        assert row.pixels is not None
        batch = self._waiting.setdefault(row.pixels.shape, [])
        batch.append(row)
        return self._waiting.pop(row.pixels.shape) if len(batch) == self.size else []

    def rest(self) -> Iterator[list[Row]]:
        """Yield the incomplete batches, in order of arrival."""
        yield from self._waiting.values()
        self._waiting = {}


def make_table(
    rows: list[Row],
    source: str,
    model: tuple[str, str, str],
    classes: tuple[str, ...],
    top_k: int,
    threshold: float | None = None,
) -> pa.Table:
    """Return the rows as a table in their order; equal probabilities keep the order of the classes.

    Args:
        rows: settled rows.
        source: name of the source.
        model: name, version and SHA-256 of the weights, the same in every row.
        classes: names in the order of the network's outputs.
        top_k: how many of them a row names.
        threshold: probability from which an image has a label; with it there is a column of all labels.
    """
    names: list[list[str] | None] = []
    probabilities: list[list[float] | None] = []
    for row in rows:
        if row.probabilities is None:
            assert row.reason is not None
            names.append(None)
            probabilities.append(None)
            continue
        best = np.argsort(-row.probabilities, kind="stable")[: min(top_k, len(classes))]
        names.append([classes[i] for i in best])
        probabilities.append([float(row.probabilities[i]) for i in best])
    name, version, sha256 = model
    table = pa.table(
        {
            "image_id": [row.image_id for row in rows],
            "key": [row.key for row in rows],
            "occurrence": [row.occurrence for row in rows],
            "source": [source] * len(rows),
            "names": names,
            "probabilities": probabilities,
            "model_name": [name] * len(rows),
            "model_version": [version] * len(rows),
            "model_sha256": [sha256] * len(rows),
            "reason": [row.reason for row in rows],
            "message": [row.message for row in rows],
        },
        schema=PREDICTION_SCHEMA,
    )
    if threshold is None:
        return table
    from pipelines.package.predictor import labels_above  # it brings torch, which only several labels need here

    labels = [
        None if row.probabilities is None else labels_above(row.probabilities, classes, threshold) for row in rows
    ]
    return table.append_column(LABELS_COLUMN, pa.array(labels, LABELS_COLUMN.type))


def fingerprint(table: pa.Table) -> int:
    """Return the order-free sum modulo 2^256 of the row hashes: equal predictions, equal sums."""
    total = 0
    for row in table.to_pylist():
        if row["probabilities"] is not None:
            row["probabilities"] = np.asarray(row["probabilities"], dtype="<f4").tobytes().hex()
        total += int.from_bytes(hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest(), "big")
    return total % (1 << 256)
