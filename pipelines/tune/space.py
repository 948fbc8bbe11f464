"""From a space to trials: what trial i trains is a pure function of (space, search, seed, i)."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipelines.errors import ConfigError
from pipelines.train.config import TrainConfig
from pipelines.tune.config import Dimension, TuneConfig
from resnet_models.depth import depth_choices
from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec

Params = dict[str, Any]

_DEFAULT_DEPTHS = 3
_DRAWS_PER_POINT = 32
"""Draws for each point of a finite space before the points not drawn yet are simply listed."""
_FRUITLESS = 5_000
"""Draws in a row without a new point after which a space of numbers between narrow bounds has no more."""


@dataclass(frozen=True)
class TrialPlan:
    """One trial: its name, what was sampled for it, and the training that follows, or why there can be none."""

    trial: str
    """Four digits, counted from 0001; also its folder."""
    params: Params
    config: TrainConfig | None
    refusal: str = ""


def default_space(model: ModelSpec, image_size_px: int, *, fixed_network: bool = False) -> dict[str, Dimension]:
    """Return what is varied when the config does not say: depth, width and learning rate, for images of this side.

    With `fixed_network`, since weights to start from fit one network alone, only the learning rate.
    """
    rate = {"optimizer.lr": Dimension(loguniform=(0.01, 0.5))}
    if fixed_network:
        return rate
    settled = model.for_images(image_size_px=image_size_px)
    depths = depth_choices(settled.block, settled.num_stages)[:_DEFAULT_DEPTHS]
    return {
        "model.depth": Dimension(choice=tuple(depths)),
        "model.width": Dimension(choice=(0.5, 1.0)),
        **rate,
    }


def sample_params(config: TuneConfig, space: Mapping[str, Dimension]) -> list[Params]:
    """Return the sampled values of every trial, all different.

    Raises:
        ConfigError: the space holds fewer different points than there are to be trials.
    """
    size = space_size(space)
    if size is not None and size < config.num_trials:
        raise ConfigError(
            f"num_trials is {config.num_trials}, and space holds {size} different points",
            mend=f"set num_trials={size}, or widen space",
        )
    found: dict[str, Params] = {}
    fruitless = 0
    for params in _points(config, space, size):
        before = len(found)
        found.setdefault(json.dumps(params, sort_keys=True), params)
        if len(found) == config.num_trials:
            break
        fruitless = 0 if len(found) > before else fruitless + 1
        if size is None and fruitless == _FRUITLESS:
            raise ConfigError(
                f"num_trials is {config.num_trials}, and space holds {len(found)} different points, as values have four"
                " digits",
                mend=f"set num_trials={len(found)}, or widen space",
            )
    return list(found.values())


def make_trials(config: TuneConfig, *, image_size_px: int, num_classes: int) -> list[TrialPlan]:
    """Return every trial with its training config; one that cannot be is kept, with the reason.

    Args:
        config: the sweep.
        image_size_px: shorter side of the network's input, which settles stem and stages.
        num_classes: classes of the dataset.

    Raises:
        ConfigError: the space holds too few points, or not one of the sampled trainings is possible.
    """
    fixed = bool(config.train.init.source)
    space = config.space or default_space(config.train.model, image_size_px, fixed_network=fixed)
    trials = []
    for index, params in enumerate(sample_params(config, space)):
        trial = f"{index + 1:04d}"
        try:
            trained = apply_params(config.train, params)
            trained.model.for_images(image_size_px=image_size_px, num_classes=num_classes)
        except ValidationError as error:
            trials.append(TrialPlan(trial, params, None, _first_fault(error)))
        except SpecError as error:
            trials.append(TrialPlan(trial, params, None, f"model: {error}"))
        else:
            trials.append(TrialPlan(trial, params, trained))
    if all(trial.config is None for trial in trials):
        raise ConfigError(
            f"none of the {len(trials)} sampled trainings is possible: {trials[0].refusal}",
            where=f"space, first sampled {json.dumps(trials[0].params)}",
            mend="mend space, or the config under train",
        )
    return trials


def apply_params(base: TrainConfig, params: Mapping[str, Any]) -> TrainConfig:
    """Return the training config with sampled values in place.

    Raises:
        ValidationError: the values do not make a possible training.
    """
    values = base.model_dump(mode="json")
    for path, value in params.items():
        *parents, last = path.split(".")
        here = values
        for part in parents:
            here = here[part]
        here[last] = value
    return TrainConfig.model_validate_json(json.dumps(values))


def space_size(space: Mapping[str, Dimension]) -> int | None:
    """Return how many different points a space holds; None for a continuum."""
    sizes = [_size(dimension) for dimension in space.values()]
    return math.prod(size for size in sizes if size is not None) if None not in sizes else None


def _points(config: TuneConfig, space: Mapping[str, Dimension], size: int | None) -> Iterator[Params]:
    """Yield points of the space without end, or, if it is finite, until each has come at least once."""
    paths = sorted(space)
    draws: Iterator[int] = itertools.count() if size is None else iter(range(_DRAWS_PER_POINT * size))
    for draw in draws:
        yield {path: _value(space[path], _unit(config, path, draw, paths)) for path in paths}
    every = itertools.product(*(_all_values(space[path]) for path in paths))
    yield from (dict(zip(paths, values, strict=True)) for values in every)


def _unit(config: TuneConfig, path: str, draw: int, paths: list[str]) -> float:
    """Return a number in [0, 1) for one field of one draw."""
    if config.search == "random":
        return _hash_unit(f"{config.seed}/{path}/{draw}")
    # Additive recurrence on the generalised golden ratio: every run of draws covers the space evenly, however many
    # there will be in the end (unlike a grid or a Latin hypercube). The seed shifts it.
    step = _golden(len(paths)) ** -(paths.index(path) + 1)
    return (_hash_unit(f"{config.seed}/{path}") + (draw + 1) * step) % 1.0


def _golden(dimensions: int) -> float:
    """Return the positive root of x^(d + 1) = x + 1."""
    root = 1.5
    for _ in range(64):
        root = float((1 + root) ** (1 / (dimensions + 1)))
    return root


def _hash_unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _value(dimension: Dimension, unit: float) -> Any:
    """Return the value at `unit` in [0, 1) of a dimension, as JSON has it."""
    if dimension.choice:
        picked = dimension.choice[int(unit * len(dimension.choice))]
        return list(picked) if isinstance(picked, tuple) else picked
    if dimension.integer:
        low, high = dimension.integer
        return low + int(unit * (high - low + 1))
    if dimension.loguniform:
        low_log, high_log = (math.log(bound) for bound in dimension.loguniform)
        return _rounded(math.exp(low_log + unit * (high_log - low_log)), dimension.loguniform)
    assert dimension.uniform, "checked on construction"
    lowest, highest = dimension.uniform
    return _rounded(lowest + unit * (highest - lowest), dimension.uniform)


def _rounded(value: float, bounds: tuple[float, float]) -> float:
    """Four significant digits: no training can tell more apart, and people have to read and retype them."""
    return min(max(float(f"{value:.4g}"), bounds[0]), bounds[1])


def _size(dimension: Dimension) -> int | None:
    if dimension.choice:
        return len(dimension.choice)
    return dimension.integer[1] - dimension.integer[0] + 1 if dimension.integer else None


def _all_values(dimension: Dimension) -> list[Any]:
    if dimension.integer:
        return list(range(dimension.integer[0], dimension.integer[1] + 1))
    return [list(value) if isinstance(value, tuple) else value for value in dimension.choice]


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
