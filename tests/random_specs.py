"""Random network descriptions that can be built, small enough to run in milliseconds; for property tests."""

from __future__ import annotations

import random

from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec


def random_spec(rng: random.Random) -> ModelSpec:
    """Return a settled, buildable spec; every field takes part."""
    while True:
        stages = rng.randint(1, 4)
        block = rng.choice(["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
        is_bottleneck = block.endswith("bottleneck")
        by_depth = rng.random() < 0.2
        try:
            spec = ModelSpec(
                block=block,  # type: ignore[arg-type]
                depth=rng.choice([8, 10, 11, 14, 20]) if by_depth else 0,
                depths=() if by_depth else tuple(rng.randint(1, 2) for _ in range(stages)),
                channels=() if by_depth else tuple(rng.choice([8, 12, 16, 24]) for _ in range(stages)),
                width=rng.choice([0.25, 0.5, 1.0, 1.5]),
                strides=() if by_depth or rng.random() < 0.5 else tuple(rng.randint(1, 2) for _ in range(stages)),
                stem=rng.choice(["imagenet", "cifar", "deep"]),  # type: ignore[arg-type]
                stem_channels=rng.choice([0, 0, 4, 6]),
                shortcut=rng.choice(["zero_pad", "projection", "all_projection", "average_pool"]),  # type: ignore[arg-type]
                stride_placement=rng.choice(["v1", "v1.5"]) if is_bottleneck else "v1.5",  # type: ignore[arg-type]
                cardinality=rng.choice([1, 2, 4]) if is_bottleneck else 1,
                base_width=rng.choice([16, 32, 64]) if is_bottleneck else 64,
                num_classes=rng.randint(1, 12),
                in_channels=3,
                zero_init_last=not block.startswith("preact_") and rng.random() < 0.3,
            )
        except SpecError:
            continue  # a combination that is rightly refused
        if spec.min_image_px <= 32:
            return spec
