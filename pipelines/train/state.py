"""All that a checkpoint holds: weights, their average, the optimiser, and where in which epoch the run is.

The order of samples and every random draw are functions of (seed, epoch, image), so no generator state is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from pipelines.errors import DataError
from pipelines.train.checkpoint import Checkpoint
from pipelines.train.ema import WeightAverage
from pipelines.train.optimizer import load_state_tensors, state_tensors
from pipelines.train.step_log import StepLog
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import WeightsError, load_strict, pack_weights, unpack_weights

WEIGHTS, AVERAGE, OPTIMIZER, STATE = "weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"


_FIXED_POINT = 2.0**24


def add_exactly(steps: torch.Tensor) -> list[float]:
    """Return the sums over rows of steps' figures (steps, figures), as multiples of 2^-24.

    Such sums are exact, so that an epoch's figures do not depend on where it was cut: syncs come by the clock.
    """
    fixed = (steps.double() * _FIXED_POINT).round().sum(0) / _FIXED_POINT
    return [float(value) for value in fixed]


@dataclass
class EpochSums:
    """What the running epoch has added up so far, over all workers."""

    loss: float = 0.0
    """Sum of row losses."""
    right: float = 0.0
    """Rows classified rightly."""
    rows: float = 0.0
    """Rows trained on."""
    train_s: float = 0.0
    """Seconds spent in training steps, the mean over workers."""
    wait_s: float = 0.0
    """Seconds of them waiting for data, the mean over workers."""
    trace: int = 0
    """Id trace of the rows consumed."""


@dataclass
class Best:
    """The epoch with the highest score on val; of equal ones that with the lowest loss, of those the first."""

    epoch: int = 0
    step: int = 0
    val_score: float = -1.0
    """The figure that decides (`EpochRecord.val_score`)."""
    val_loss: float = 0.0

    def is_beaten_by(self, val_score: float, val_loss: float) -> bool:
        """Return whether an epoch with these figures is better. A small val has many ties in top-1."""
        return (val_score, -val_loss) > (self.val_score, -self.val_loss)


@dataclass
class Cursor:
    """Where the run is."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Batches done of the epoch after them."""
    step: int = 0
    """Steps done since the start."""
    elapsed_s: float = 0.0
    """Seconds worked since the start, interruptions left out."""
    sums: EpochSums = field(default_factory=EpochSums)
    """Of the running epoch."""
    best: Best = field(default_factory=Best)
    """Of the finished epochs."""
    steps: StepLog = field(default_factory=StepLog)
    """Of the running epoch."""
    rollbacks: int = 0
    """How often the run went back to a checkpoint because it had diverged."""
    rate_scale: float = 1.0
    """What that has left of the learning rate."""
    returned_to: int = -1
    """Step that the run went back to last, until an epoch is finished from there; -1 else."""
    pieces: int = 1
    """In how many pieces a share is computed, where memory made it more than `accumulate`."""
    last_loss: float = 0.0
    """Mean training loss of the epoch before; 0 in the first."""

    def after_return(self) -> dict[str, Any]:
        """Return the values that going back to a checkpoint gives it: `amend_checkpoint` keeps them beside it."""
        return {name: getattr(self, name) for name in ("rollbacks", "rate_scale", "returned_to")}


@dataclass(frozen=True)
class Snapshot:
    """A copy of all that changes while a network trains, as it was after a step; training does not touch it."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    """File of the checkpoint -> its tensors, on the CPU."""
    state: dict[str, Any]
    """JSON values of the rest."""

    def to_files(self) -> dict[str, bytes]:
        """Return the files of the checkpoint."""
        files = {name: pack_weights(group) for name, group in self.tensors.items()}
        return {**files, STATE: json.dumps(self.state, indent=1).encode()}


@dataclass
class TrainState:
    """Everything that changes while a network trains."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    cursor: Cursor = field(default_factory=Cursor)

    def kept_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that are evaluated and kept: the average where there is one."""
        return self.average.tensors if self.average else dict(self.network.state_dict())

    def is_finite(self) -> bool:
        """Return whether all weights, and their average, are numbers."""
        tensors = [*self.network.state_dict().values(), *(self.average.tensors.values() if self.average else ())]
        return all(bool(torch.isfinite(value).all()) for value in tensors if value.is_floating_point())

    def to_files(self, identity: dict[str, Any]) -> dict[str, bytes]:
        """Return the files of a checkpoint; `identity` says which run, data and network they belong to."""
        return self.snapshot(identity).to_files()

    def snapshot(self, identity: dict[str, Any], *, into: Snapshot | None = None) -> Snapshot:
        """Return a copy of everything as it is now, so that it can be written while training goes on.

        Args:
            identity: which run, data and network it belongs to.
            into: an earlier snapshot that nobody needs any more; its memory is used again, where it fits.
        """
        cursor = self.cursor
        values = {part.name: getattr(cursor, part.name) for part in fields(cursor)}
        # 64 bits do not survive as a JSON number everywhere
        values["sums"] = {**asdict(cursor.sums), "trace": f"{cursor.sums.trace:016x}"}
        values["best"] = asdict(cursor.best)
        # By hand: `asdict` would look at each of an epoch's steps.
        values["steps"] = {part.name: copy(getattr(cursor.steps, part.name)) for part in fields(cursor.steps)}
        tensors = {WEIGHTS: self.network.state_dict(), OPTIMIZER: state_tensors(self.network, self.optimizer)}
        if self.average:
            tensors[AVERAGE] = self.average.tensors
        spare = into.tensors if into else {}
        copies = {name: _copy_tensors(group, spare.get(name, {})) for name, group in tensors.items()}
        scaler = dict(self.scaler.state_dict())
        return Snapshot(cursor.step, copies, {"identity": identity, "cursor": values, "scaler": scaler})

    def load_files(self, checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
        """Put back what `to_files` gave.

        Raises:
            DataError: the checkpoint belongs to other data or another network; names the first difference.
        """
        state = json.loads(checkpoint.files[STATE])
        for name, ours in identity.items():
            theirs = state["identity"].get(name)
            if name == "network" and isinstance(theirs, dict):
                theirs = {**ModelSpec().to_json(), **theirs}  # an earlier release knew fewer fields
            if theirs != ours:
                name, theirs, ours = _first_difference(name, theirs, ours)
                raise DataError(
                    f"the checkpoint of step {checkpoint.step} is of {name} {theirs!r}, and this run's is {ours!r}",
                    mend="choose another --out",
                )
        try:
            load_strict(self.network, unpack_weights(checkpoint.files[WEIGHTS]))
        except WeightsError as error:
            raise DataError(
                f"the checkpoint of step {checkpoint.step} is of another network: {error}", mend="choose another --out"
            ) from error
        if self.average:
            self.average.load(unpack_weights(checkpoint.files[AVERAGE]))
        load_state_tensors(self.network, self.optimizer, unpack_weights(checkpoint.files[OPTIMIZER]))
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.cursor = read_cursor(checkpoint)


def _first_difference(name: str, theirs: Any, ours: Any) -> tuple[str, Any, Any]:
    """Return the first field in which two descriptions differ, with both values; what is no description as it is."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return name, theirs, ours
    field = next(field for field in {**ours, **theirs} if theirs.get(field) != ours.get(field))
    return f"{name}.{field}", theirs.get(field), ours.get(field)


def read_cursor(checkpoint: Checkpoint) -> Cursor:
    """Return where the run was at a checkpoint, or is since it went back to it (`Cursor.after_return`)."""
    values = {**json.loads(checkpoint.files[STATE])["cursor"], **checkpoint.amended}
    sums, best = dict(values.pop("sums")), dict(values.pop("best"))
    if "val_top1" in best:  # as it was called before images could have several labels
        best["val_score"] = best.pop("val_top1")
    sums["trace"] = int(sums["trace"], 16)
    # Checkpoints from before steps were logged: the log begins where they stand.
    steps = values.pop("steps", {"first": values["step"] + 1, "losses": [], "traces": [], "rate_scales": []})
    return Cursor(**values, sums=EpochSums(**sums), best=Best(**best), steps=StepLog.from_json(steps))


def read_kept_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the weights that a checkpoint would hand to users, float32: the average where there is one."""
    tensors = unpack_weights(checkpoint.files.get(AVERAGE, checkpoint.files[WEIGHTS]))
    return {name: value.float() if value.dtype == torch.float64 else value for name, value in tensors.items()}


def _copy_tensors(source: Mapping[str, torch.Tensor], spare: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies on the CPU, in the memory of spare ones of the same shape: new memory costs twice the time."""
    copies = {}
    for name, value in source.items():
        target = spare.get(name)
        if target is None or target.shape != value.shape or target.dtype != value.dtype:
            target = torch.empty_like(value, device="cpu")
        copies[name] = target.copy_(value.detach())
    return copies
