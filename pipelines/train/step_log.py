"""What every step consumed and what its loss was: the log that a replay of a run is held against.

`steps/epoch-000001.json` is written with the record of its epoch; the part of the running epoch travels in the
checkpoints, so that a resumed run leaves the log of an uninterrupted one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.errors import DataError, NotFound
from pipelines.storage import Storage
from pipelines.train.versioned import parse_versioned

FORMAT_VERSION = 1
_FOLDER = "steps"


@dataclass
class StepLog:
    """Consecutive steps of one epoch, all workers together."""

    first: int = 1
    """Number of the first step in it, counted from 1 at the start of the run."""
    losses: list[float] = field(default_factory=list)
    """Mean loss over the rows of each global batch."""
    traces: list[str] = field(default_factory=list)
    """Id trace of each batch, the sum of its `keyed.row_traces`, 16 hex digits."""
    rate_scales: list[float] = field(default_factory=list)
    """What rollbacks had left of the learning rate at each step."""
    images_per_s: list[float] = field(default_factory=list)
    """Training rows a second, over all workers, around each step; 0: not known."""
    ended_s: list[float] = field(default_factory=list)
    """Unix time at which each step was counted, within a second or so of its end; 0: not known."""

    def add(self, loss: float, trace: int, rate_scale: float = 1.0, images_per_s: float = 0.0) -> None:
        """Add the next step, which has just ended."""
        self.losses.append(loss)
        self.traces.append(f"{trace:016x}")
        self.rate_scales.append(rate_scale)
        self.images_per_s.append(round(images_per_s, 1))
        self.ended_s.append(round(time.time(), 3))

    @property
    def end(self) -> int:
        """Number of the step after its last."""
        return self.first + len(self.losses)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; losses keep all their bits."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StepLog:
        """Return the log behind JSON values."""
        log = cls(int(values["first"]), list(values["losses"]), list(values["traces"]), list(values["rate_scales"]))
        # An earlier release knew neither; a run that it began may have been gone on with in the middle of an epoch.
        for name in ("images_per_s", "ended_s"):
            known = list(values.get(name, ()))
            setattr(log, name, [0.0] * (len(log.losses) - len(known)) + known)
        return log


def write_step_log(run: Storage, epoch: int, log: StepLog) -> None:
    """Write the log of a finished epoch, replacing that of an earlier attempt at it."""
    run.put(_path(epoch), json.dumps(log.to_json(), separators=(",", ":")).encode())


def read_step_log(run: Storage, epoch: int) -> StepLog | None:
    """Return the log of a finished epoch, or None while there is none.

    Raises:
        DataError: it is damaged, or of a newer release.
    """
    try:
        data = run.read(_path(epoch))
    except NotFound:
        return None
    try:
        log = StepLog.from_json(parse_versioned(data, FORMAT_VERSION))
        if not len(log.losses) == len(log.traces) == len(log.rate_scales):
            raise ValueError("its columns are not of one length")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"a log of steps cannot be used: {error}", where=run.address(_path(epoch))) from error
    return log


def read_steps(
    run: Storage, epoch: int, until: int, *, rate_scale: float | None = None
) -> dict[int, tuple[float, str]]:
    """Return {step: (loss, trace)} of the steps of an epoch and of those after it, as far as step `until`.

    With `rate_scale` only of the steps that were taken at that scale: beyond a rollback the run took another.
    """
    steps: dict[int, tuple[float, str]] = {}
    scales: dict[int, float] = {}
    while not steps or max(steps) < until:
        log = read_step_log(run, epoch)
        if log is None:
            break
        steps |= dict(zip(range(log.first, log.end), zip(log.losses, log.traces, strict=True), strict=True))
        scales |= dict(zip(range(log.first, log.end), log.rate_scales, strict=True))
        epoch += 1
    return {step: figures for step, figures in steps.items() if rate_scale in (None, scales[step])}


def _path(epoch: int) -> str:
    return f"{_FOLDER}/epoch-{epoch:06d}.json"
