"""What a run says about itself while it goes on: one record per finished epoch, and where it is at the moment.

`records/epoch-000001.json` are the truth that figures, MLflow and the catalog are made from; workers write them to the
run's storage and the driver reads them there, so nothing else need pass between the two.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypedDict

from pipelines.errors import DataError, NotFound
from pipelines.storage import Storage
from pipelines.train.versioned import parse_versioned

FORMAT_VERSION = 1
PROGRESS = "progress.json"
_FOLDER = "records"
_VAL_FIGURES = ("val_top1", "val_map", "val_macro_f1", "val_micro_f1", "val_loss")


class TrainFigures(TypedDict):
    """How often training rows were right, under the name that the data's labels give it."""

    train_top1: float | None
    train_exact: float | None
    pieces: int | None


class ValFigures(TypedDict):
    """What weights are worth on val; a figure that the data's labels leave without sense is None."""

    val_loss: float
    val_top1: float | None
    val_map: float | None
    val_macro_f1: float | None
    val_micro_f1: float | None


@dataclass(frozen=True)
class EpochRecord:
    """The figures of one finished epoch."""

    epoch: int
    """Counted from 1."""
    step: int
    """Steps done since the start of the run."""
    train_loss: float
    """Mean loss over the rows of the epoch, as trained (augmented, smoothed, mixed)."""
    train_top1: float | None
    """Share of augmented training rows classified rightly while training; under mixup, of the row's own label. None
    where images have several labels."""
    val_loss: float
    """Mean cross-entropy on val, of the weights that would be kept."""
    val_top1: float | None
    """Share of val rows classified rightly; None where images have several labels."""
    lr: float
    """Learning rate of the epoch's last step."""
    images_per_s: float
    """Training rows a second, over all workers, evaluation and checkpoints left out."""
    elapsed_s: float
    """Seconds of work since the start of the run, evaluation included, interruptions left out."""
    data_wait_fraction: float
    """Share of the training time that steps waited for data; `waiting.py` says what would make it less."""
    id_trace: str
    """Sum of hash(position, image) over the epoch modulo 2^64, in 16 hex digits; equal: same rows, same places."""
    train_exact: float | None = None
    """Several labels an image: share of augmented training rows with every class told rightly. None else."""
    val_map: float | None = None
    """Several labels: mean average precision over the classes that val has. None else."""
    val_macro_f1: float | None = None
    """Several labels: mean F1 at probability 1/2 over the classes that val has. None else."""
    val_micro_f1: float | None = None
    """Several labels: F1 at probability 1/2 of all answers together. None else."""

    pieces: int | None = None
    """In how many pieces worker 0 computed its share of a batch at the end of the epoch, where memory made it more than
    `accumulate`. None else."""

    @property
    def val_score(self) -> float:
        """The figure on val that decides: `val_top1`, or `val_map` where images have several labels."""
        score = self.val_top1 if self.val_top1 is not None else self.val_map
        assert score is not None
        return score

    def val_figures(self) -> dict[str, float]:
        """Return the figures on val that there are, by name."""
        known = self._known()
        return {name: known[name] for name in _VAL_FIGURES if name in known}

    def _known(self) -> dict[str, Any]:
        """Return the fields that say something, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return {"format_version": FORMAT_VERSION, **self._known()}

    def metrics(self) -> dict[str, float]:
        """Return the figures as a run log takes them."""
        return {name: float(value) for name, value in self._known().items() if name not in ("epoch", "id_trace")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EpochRecord:
        """Return the record behind JSON values.

        Raises:
            ValueError: a field is not known, is missing, or holds what is no figure.
        """
        known = {"train_top1": None, "val_top1": None} | {k: v for k, v in values.items() if k != "format_version"}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        _check_fields(known, required=required, allowed={field.name for field in fields(cls)})
        may_lack = {"train_top1", "val_top1"} | (known.keys() - required)
        for name, value in known.items():
            if name == "id_trace":
                is_right = isinstance(value, str)
            elif name in ("epoch", "step"):
                is_right = type(value) is int
            else:
                is_right = _is_number(value) or (value is None and name in may_lack)
            if not is_right:
                raise ValueError(f"its {name} is {value!r}")
        return cls(**known)


def _check_fields(values: Mapping[str, Any], *, required: set[str], allowed: set[str]) -> None:
    if odd := sorted(values.keys() - allowed):
        raise ValueError(f"it has the unknown field {odd[0]}")
    if missing := sorted(required - values.keys()):
        raise ValueError(f"it has no {missing[0]}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def record_path(epoch: int) -> str:
    """Return where the record of an epoch stands."""
    return f"{_FOLDER}/epoch-{epoch:06d}.json"


def write_record(run: Storage, record: EpochRecord) -> None:
    """Write the record of an epoch, replacing the one of an earlier attempt at it."""
    run.put(record_path(record.epoch), json.dumps(record.to_json(), indent=1).encode())


def read_record(run: Storage, epoch: int) -> EpochRecord | None:
    """Return the record of an epoch, or None while it is not finished.

    Raises:
        DataError: it is cut, empty, of a later release or of another epoch.
    """
    try:
        data = run.read(record_path(epoch))
    except NotFound:
        return None
    try:
        record = EpochRecord.from_json(parse_versioned(data, FORMAT_VERSION))
        if record.epoch != epoch:
            raise ValueError(f"it is that of epoch {record.epoch}")
    except ValueError as error:
        raise DataError(
            f"the record of epoch {epoch} cannot be used: {error}",
            where=run.address(record_path(epoch)),
            mend="put the file back from a copy of the run's folder, or read it with the release that wrote it; else"
            " train anew with another --out, as figures that are lost cannot be made up",
        ) from error
    return record


def read_records(run: Storage, upto: int) -> list[EpochRecord]:
    """Return the records of epochs 1 to `upto`, as far as there are any without a gap."""
    records = []
    for epoch in range(1, upto + 1):
        record = read_record(run, epoch)
        if record is None:
            break
        records.append(record)
    return records


def work_span(run: Storage) -> tuple[float, float]:
    """Return the Unix times at which the work of a run that is over began and ended, by when its records were written.

    Both are now where there is no record.
    """
    times = [file.modified for file in run.list(_FOLDER)] or [time.time()]
    with contextlib.suppress(DataError):
        if first := read_record(run, 1):
            return min(times) - first.elapsed_s, max(times)
    return min(times), max(times)


def count_records(run: Storage) -> int:
    """Return how many epochs have a record, whatever it holds."""
    return sum(1 for _ in run.list(_FOLDER))


def delete_records(run: Storage, *, above: int) -> None:
    """Delete the records of epochs after `above`, the last first: the run has gone back behind them."""
    files = [file.path for file in run.list(_FOLDER)]
    for path in sorted(files, reverse=True):
        if path > record_path(above):
            run.delete(path)


@dataclass(frozen=True)
class ProgressNote:
    """Where a run is at the moment."""

    epoch: int
    """The one that runs, counted from 1."""
    epochs: int
    """Of the whole run."""
    step: int
    """Steps done since the start of the run."""
    images: int
    """Trained on since the start of the run."""
    total: int
    """Images of the whole run."""
    images_per_s: float
    loss: float
    """Mean over the epoch so far."""
    wait_fraction: float | None
    """Share of the epoch's time so far that steps waited for data; None before its first step."""
    wait_mend: str
    """What would make them wait less."""


def write_progress(run: Storage, note: ProgressNote) -> None:
    """Say where the run is."""
    run.put(PROGRESS, json.dumps(asdict(note)).encode())


def read_progress(run: Storage) -> ProgressNote | None:
    """Return what `write_progress` said last; None before that, or where nobody can make anything of it."""
    names = {field.name for field in fields(ProgressNote)}
    try:
        values = json.loads(run.read(PROGRESS))
        _check_fields(values, required=names, allowed=names)
        texts, may_lack = {"wait_mend"}, {"wait_fraction"}
        for name in names - texts:
            if not (_is_number(values[name]) or (values[name] is None and name in may_lack)):
                return None
        return ProgressNote(**values)
    except (NotFound, ValueError, AttributeError):  # the next note is a moment away, and no figure hangs on this one
        return None
