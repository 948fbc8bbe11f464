"""One unit scored in one process: read, decode, forward in batches, write one Parquet file, leave a receipt."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.dataset.attempt import begin_attempt, new_driver
from pipelines.dataset.receipt import write_receipt
from pipelines.image.header import RefusedImage
from pipelines.score.model import Model, PackageRef
from pipelines.score.proof import Tally, check_unit, read_ids
from pipelines.score.rows import Batches, Row, fingerprint, make_table
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.sources.base import Member, Source, Unit

logger = logging.getLogger(__name__)

_KILLS_BEFORE_CARE = 2
_ROW_GROUP = 65_536

Alone = Callable[[bytes], np.ndarray]
"""Bytes of one image file -> probabilities (classes,), made in a process of its own; may raise `FailedAlone`."""


class FailedAlone(Exception):
    """The process that scored one member alone died, gave no answer, or refused the member."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class ScoreJob:
    """All that a scoring process needs to know; plain values, so that it travels to any node."""

    source: Source
    out: str
    run_id: str
    package: PackageRef
    top_k: int
    batch_size: int
    driver: str = field(default_factory=new_driver)
    """Whose job it is; made anew by each driver."""


def score_unit(unit: Unit, job: ScoreJob, model: Model, alone: Alone | None = None) -> dict[str, Any]:
    """Score one unit and return its receipt: the file, its rows, what had no prediction and why.

    Files are invisible until the catalog names them and the first receipt stands, so a unit that is retried or run
    twice does no harm. A member that cannot be decoded gets a row with its reason.

    Args:
        unit: what to read; its number names its file and its receipt.
        job: the run that it belongs to.
        model: the network, already loaded.
        alone: scores a member in another process. It is used when two attempts at this unit died, which
            is how a member that kills its process is found; every other member keeps its prediction.

    Raises:
        DataError: what was written is not what was read.
    """
    store = Storage.open(job.out)
    with begin_attempt(store, job.run_id, unit.index, job.driver) as attempt:
        careful = alone if attempt.died >= _KILLS_BEFORE_CARE else None
        if careful is not None:
            logger.warning("unit %d died %d times: its members are scored one at a time", unit.index, attempt.died)
        rows, read = _predict_unit(unit, job, model, careful)
        return _write(store, unit.index, attempt.name, rows, read, job, model)


def _predict_unit(unit: Unit, job: ScoreJob, model: Model, careful: Alone | None) -> tuple[list[Row], Tally]:
    """Return a row for every member of a unit, and the count of what was read."""
    read = Tally()
    rows: list[Row] = []
    batches = Batches(job.batch_size)
    for member in job.source.open(unit):
        read.add(member.image_id)
        row = Row(member.image_id, member.key, member.occurrence)
        rows.append(row)
        if careful is not None:
            _predict_alone(member, row, careful)
        elif _prepare(member, row, model) and (batch := batches.add(row)):
            predict(batch, model)
    for batch in batches.rest():
        predict(batch, model)
    check_unit(read, (entry.image_id for entry in unit.entries), job.source.uri)
    return rows, read


def _prepare(member: Member, row: Row, model: Model) -> bool:
    """Decode a member; return whether it can be predicted."""
    if member.data is None:
        row.refuse(member.reason or "UNREADABLE", member.message)
        return False
    try:
        row.pixels = model.prepare(member.data)
    except RefusedImage as refused:  # this type only: a bug of ours must still stop the job
        row.refuse(refused.reason, refused.message)
        return False
    return True


def predict(batch: list[Row], model: Model) -> None:
    """Fill in the probabilities of a batch of equally large pictures.

    If the network raises, the batch is taken apart and the members that it raises for get a reason; if it raises
    for each of several, the fault is the network's or the machine's, and the exception goes on.
    """
    try:
        answers = model.forward(np.stack([row.pixels for row in batch if row.pixels is not None]))
    except (RuntimeError, ValueError, ArithmeticError) as error:
        if len(batch) == 1:
            batch[0].refuse("MODEL_ERROR", str(error))
            return
        for row in batch:
            predict([row], model)
        if all(row.reason == "MODEL_ERROR" for row in batch):
            raise
        return
    for row, answer in zip(batch, answers, strict=True):
        _settle(row, answer)


def _predict_alone(member: Member, row: Row, alone: Alone) -> None:
    if member.data is None:
        row.refuse(member.reason or "UNREADABLE", member.message)
        return
    try:
        _settle(row, alone(member.data))
    except FailedAlone as failed:
        row.refuse(failed.reason, failed.message)


def _settle(row: Row, answer: np.ndarray) -> None:
    if np.isfinite(answer).all():
        row.pixels, row.probabilities = None, answer
    else:
        row.refuse("MODEL_ERROR", "the network's answer is not a finite number")


def _write(
    store: Storage,
    index: int,
    attempt: str,
    rows: list[Row],
    read: Tally,
    job: ScoreJob,
    network: Model,
) -> dict[str, Any]:
    """Write the rows as one file, check it against what was read, and create the unit's receipt."""
    package = job.package
    model = (package.name, package.version, package.weights_sha256)
    table = make_table(rows, job.source.name, model, network.classes, job.top_k, network.threshold)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP, write_page_checksum=True)
    data = sink.getvalue()
    path = f"data/{job.run_id}/part-{index:06d}-{attempt}.parquet"
    store.put(path, data)
    check_unit(read, (image_id for ids in read_ids(store, path) for image_id in ids), store.address(path))
    report = {
        "unit": index,
        "file": {
            "path": path,
            "rows": len(rows),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "fingerprint": f"{fingerprint(table):064x}",
            "row_groups": [min(_ROW_GROUP, len(rows) - start) for start in range(0, len(rows), _ROW_GROUP)],
        },
        "members": read.members,
        "id_sum": f"{read.id_sum:032x}",
        "reasons": dict(sorted(Counter(row.reason for row in rows if row.reason).items())),
    }
    return write_receipt(store, job.run_id, index, report)
