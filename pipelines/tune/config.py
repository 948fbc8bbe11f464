"""The schema of `resnet tune`: what is varied, how often, and how weak trials are stopped."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.config.strict import StrictModel, is_runtime, runtime_field
from pipelines.ray_runtime import RayConfig
from pipelines.tracking import TrackingConfig
from pipelines.train.config import TrainConfig

# A YAML list must become a tuple although the model is strict: the validator below hands over Python values.
_Listed = Field(strict=False)
Value = bool | int | float | str | Annotated[tuple[int, ...], _Listed]
"""A value that a config field can take: a number, a word, true or false, or whole numbers (`model.depths`)."""
Bounds = Annotated[tuple[float, float], _Listed]

_GIVEN = ("num_classes", "in_channels", "from")
"""Fields that the data, or one set of weights for the whole sweep, decides."""
_ONE_TRAINING = ("find_batch_size", "local")
"""Fields of a training by itself: a trial's batch size comes from the space, and Ray starts it."""
_SAMPLERS = ("choice", "uniform", "loguniform", "integer")


class Dimension(StrictModel):
    """How one config field is sampled; exactly one of the keys is given."""

    choice: Annotated[tuple[Value, ...], _Listed] = ()
    """One of these values, each as likely."""
    uniform: Bounds | None = None
    """A number between the two bounds."""
    loguniform: Bounds | None = None
    """A positive number between the two bounds, its logarithm spread evenly; for rates and decays."""
    integer: Annotated[tuple[int, int], _Listed] | None = None
    """A whole number between the two bounds, both possible."""

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        given = [name for name in _SAMPLERS if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise ValueError(f"{found} is given; mend: give exactly one of {', '.join(_SAMPLERS)}")
        bounds = self.uniform or self.loguniform or self.integer
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} is {list(bounds)}; mend: give the lower bound first, then a higher one")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform is {list(self.loguniform)}; mend: give bounds above 0, or use uniform")
        if len(set(map(repr, self.choice))) < len(self.choice):
            raise ValueError(f"choice is {list(self.choice)}; mend: name each value once")
        return self


class TuneConfig(StrictModel):
    """One sweep."""

    train: TrainConfig = TrainConfig()
    """The training that each trial starts from; `epochs` is the most that a trial gets, `num_workers` and `out` are
    set per trial."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """Fields of `train` by dotted path, and how each is sampled: `optimizer.lr: {loguniform: [0.01, 0.5]}`; empty:
    the three smallest usual depths for the images' size, half and whole width, learning rates from 0.01 to 0.5."""
    num_trials: int = Field(8, ge=1, le=9999)
    """Trainings; no two get the same values."""
    search: Literal["quasi_random", "random"] = "quasi_random"
    """quasi_random: points that spread evenly over the space (arXiv:1706.03200); random: independent draws."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: stop trials that fall behind (arXiv:1810.05934); none: every trial gets all epochs."""
    grace_epochs: int = Field(1, ge=1)
    """asha: epochs that every trial gets; trials are compared after this many, then after `reduction_factor` times
    as many, and so on."""
    reduction_factor: int = Field(3, ge=2)
    """asha: at each comparison the best 1 / reduction_factor go on."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the sampled values; the trainings use `train.seed`."""

    out: str = runtime_field("")
    """Folder or address of the sweep; empty: runs/tune/<key>."""
    workers_per_trial: int = runtime_field(1, ge=1)
    """Training processes of each trial. 1 is quickest to start: trials then share processes that stay warm."""
    cpus_per_worker: int = runtime_field(0, ge=0)
    """CPUs and torch threads of a training process; 0: the cluster's CPUs shared out over the trials at once."""
    max_concurrent_trials: int = runtime_field(0, ge=0)
    """Trials at once; 0: as many as fit."""
    max_failures: int = runtime_field(2, ge=0)
    """Times that a trial whose process died is started again, from its last checkpoint, before it counts as failed."""
    epoch_timeout_s: float = runtime_field(0.0, ge=0)
    """Seconds without a finished epoch after which a one-worker trial counts as hung; 0: no limit."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the sweep is recorded: one parent run, a child for each trial."""
    ray: RayConfig = RayConfig()
    """The Ray cluster that runs the trials."""

    @field_validator("space", mode="before")
    @classmethod
    def _flatten_space(cls, space: object) -> object:
        # `space.optimizer.lr.loguniform=[...]` on the command line arrives as nested keys; both spellings are one.
        return flatten_space(space) if isinstance(space, Mapping) else space

    @model_validator(mode="after")
    def _check(self) -> TuneConfig:
        if self.scheduler == "asha" and self.grace_epochs > self.train.epochs:
            raise ValueError(
                f"grace_epochs is {self.grace_epochs} and train.epochs is {self.train.epochs}; mend: "
                "lower grace_epochs, or use scheduler=none"
            )
        if self.train.max_hours or self.train.divergence.rollbacks:
            name = "max_hours" if self.train.max_hours else "divergence.rollbacks"
            raise ValueError(
                f"train.{name} is given; trials are compared epoch by epoch, so none of them may stop or go back by"
                f" itself; mend: leave train.{name} out"
            )
        for name in _ONE_TRAINING:
            if getattr(self.train, name):
                raise ValueError(
                    f"train.{name} is true, which only a training by itself can do; mend: leave train.{name} out"
                    + (", and vary global_batch_size in the space" if name == "find_batch_size" else "")
                )
        known = tunable_paths(self.train)
        for path in self.space:
            if path not in known:
                near = difflib.get_close_matches(path, known, n=1)
                raise ValueError(
                    f"space names {path}, which is nothing that a training can vary; mend: "
                    + (f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}")
                )
        return self


def tunable_paths(base: TrainConfig) -> list[str]:
    """Return the dotted paths of the fields that decide what a training comes to.

    Epochs are the scheduler's, and no trial goes back by itself (`divergence`): they are compared epoch by epoch.
    """
    paths = []
    values = base.model_dump(mode="json")
    for name, field in TrainConfig.model_fields.items():
        if is_runtime(field) or name in ("tracking", "ray", "epochs", "divergence", *_ONE_TRAINING):
            continue
        if isinstance(values[name], dict):
            paths += [f"{name}.{key}" for key in values[name] if key not in _GIVEN]
        else:
            paths.append(name)
    return paths


def flatten_space(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the space with dotted paths as its only keys; of two spellings of one path the later stands."""
    flat: dict[str, Any] = {}
    for key, value in space.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and all(isinstance(below, Mapping) for below in value.values()):
            flat.update(flatten_space(value, f"{path}."))
        else:
            flat[path] = value
    return flat
