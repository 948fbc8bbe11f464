"""A network by its name, in one call."""

from __future__ import annotations

from resnet_models.resnet import ResNet, build
from resnet_models.zoo import named_spec


def create(name: str, *, seed: int = 0, **changes: object) -> ResNet:
    """Return a named network with initial weights, e.g. `create("resnet50", num_classes=10, width=0.5)`.

    Args:
        name: One of `resnet_models.zoo.spec_names()`.
        seed: Of the initial weights.
        changes: Fields of `ModelSpec` to change.

    Raises:
        SpecError: The name is unknown (the nearest is named), or a change cannot be honoured.
    """
    return build(named_spec(name, **changes), seed=seed)
