"""Random network descriptions for property tests: buildable ones that run in milliseconds, and any others."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any, get_args

from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec
from resnet_models.spec_fields import (
    ActivationName,
    AttentionName,
    BlockName,
    DownsampleName,
    HeadPoolName,
    NormName,
    OrderingName,
    ShortcutName,
    StemName,
    StemPoolName,
)

RATES = ("drop_path_rate", "drop_block_rate", "block_dropout", "head_dropout")


def random_spec(rng: random.Random, *, noise: bool = False) -> ModelSpec:
    """Return a settled, buildable spec for images of 32 px and 3 channels; every field takes part.

    Args:
        rng: Decides.
        noise: Whether the network may leave parts out at random while training.
    """
    while True:
        values = _likely_values(rng)
        if not noise:
            values.update(dict.fromkeys(RATES, 0.0), drop_block_size=7)
        try:
            spec = ModelSpec(**values)
        except SpecError:
            continue  # a combination that is rightly refused
        if spec.min_image_px <= 32:
            return spec


def _likely_values(rng: random.Random) -> dict[str, Any]:
    """Return fields that mostly fit one another."""
    stages = rng.randint(1, 4)
    block = rng.choice(get_args(BlockName))
    preact = block.startswith("preact_")
    is_bottleneck = block.endswith("bottleneck")
    by_depth = rng.random() < 0.2
    norm, attention = _often(rng, get_args(NormName)), _often(rng, get_args(AttentionName))
    rates = {name: rng.choice([0.0, 0.0, 0.1, 0.5]) for name in RATES}
    return {
        "block": block,
        "depth": rng.choice([8, 10, 11, 14, 20]) if by_depth else 0,
        "depths": () if by_depth else tuple(rng.randint(1, 2) for _ in range(stages)),
        "channels": () if by_depth else tuple(rng.choice([8, 12, 16, 24]) for _ in range(stages)),
        "width": rng.choice([0.25, 0.5, 1.0, 1.5]),
        "strides": () if by_depth or rng.random() < 0.5 else tuple(rng.randint(1, 2) for _ in range(stages)),
        "stem": rng.choice(get_args(StemName)[1:]),
        "stem_channels": rng.choice([0, 0, 4, 6]),
        "shortcut": rng.choice(get_args(ShortcutName)),
        "stride_placement": rng.choice(["v1", "v1.5"]) if is_bottleneck else "v1.5",
        "cardinality": rng.choice([1, 2, 4]) if is_bottleneck else 1,
        "base_width": rng.choice([16, 32, 64]) if is_bottleneck else 64,
        "num_classes": rng.randint(1, 12),
        "in_channels": 3,
        "zero_init_last": not preact and rng.random() < 0.2,
        "ordering": rng.choice(["auto", *get_args(OrderingName)[4:]] if preact else get_args(OrderingName)[:4]),
        "norm": norm,
        "norm_size": rng.choice([0, 1, 2]) if norm in ("ghost", "group") else 0,
        "activation": _often(rng, get_args(ActivationName)),
        "attention": attention,
        "attention_reduction": rng.choice([4, 16]) if attention == "se" else 16,
        "stem_pool": _often(rng, get_args(StemPoolName)),
        "downsample": _often(rng, get_args(DownsampleName)),
        "head_pool": _often(rng, get_args(HeadPoolName)),
        **rates,
        "drop_block_size": rng.choice([3, 7]) if rates["drop_block_rate"] else 7,
        "exits": tuple(stage for stage in range(1, stages) if rng.random() < 0.1),
    }


def _often(rng: random.Random, choices: tuple[str, ...]) -> str:
    """Return the first choice every other time."""
    return choices[0] if rng.random() < 0.5 else rng.choice(choices)


def any_values(rng: random.Random) -> dict[str, Any]:
    """Return fields for a spec: some left out, values that mostly fit, and now and then any value at all."""
    values = _likely_values(rng)
    for name in (field.name for field in fields(ModelSpec)):
        if rng.random() < 0.05:
            del values[name]
        elif rng.random() < 0.03:
            values[name] = rng.choice(_any_value(name))
    if rng.random() < 0.1:
        values["stem"] = "auto"
    return values


def _any_value(name: str) -> tuple[Any, ...]:
    if name in ("depths", "channels", "strides", "exits"):
        return (), (1,), (3, 3, 3), (2, 1), (0,), (1, 2, 3, 4, 5, 6, 7, 8), (64,) * 9, [2, 2], 3, None, ("a",)
    if name in (*RATES, "width"):
        return -0.1, 0, 0.999, 1, 2.0, 65.0, float("nan"), float("inf"), True, "0.5", None, 10**400
    if name == "zero_init_last":
        return True, 1, None, "yes"
    if name in ("block", "stem", "shortcut", "stride_placement", "ordering", "norm", "activation", "attention"):
        return "", "none", "auto", None, 1, ["basic"]
    if name in ("stem_pool", "downsample", "head_pool"):
        return "", "none", "auto", "gem", None, 1, ["max"]
    return -1, 0, 1, 2, 5, 7, 21, 32, 50, 1000, 10**9, 1.0, True, None, "8"
