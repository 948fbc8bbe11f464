"""From one spec to a larger one: deeper, wider or both, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from resnet_models.errors import SpecError
from resnet_models.growth.carry import Grown
from resnet_models.growth.deepen import deepen
from resnet_models.growth.widen import widen
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec


def grow(
    network: ResNet,
    spec: ModelSpec,
    *,
    seed: int = 0,
    noise: float = 0.0,
    optimizer_state: Mapping[str, Tensor] | None = None,
) -> Grown:
    """Return a network of `spec` that computes what `network` computes: `widen`, then `deepen` at each stage's end.

    So a search can start a larger trial from a smaller trained one.

    Args:
        network: Trained or not.
        spec: At least as deep in every stage and as wide, and alike in all else; `num_classes` may be 0 and the stem
            "auto", to take the network's.
        seed: As in `widen` and `deepen`.
        noise: As in `widen`.
        optimizer_state: Tensors by `<parameter>/<slot>`; see `growth.optimizer`.

    Raises:
        SpecError: The spec is smaller somewhere or of another kind, or this network cannot be grown so.
    """
    own = network.spec
    spec = replace(
        spec, num_classes=spec.num_classes or own.num_classes, stem=own.stem if spec.stem == "auto" else spec.stem
    )
    missing = [wanted - now for wanted, now in zip(spec.stage_depths, own.stage_depths, strict=False)]
    if spec.num_stages != own.num_stages or min(missing) < 0:
        raise SpecError(
            "depths",
            spec.stage_depths,
            f"the network has {list(own.stage_depths)} blocks",
            "give at least as many in each of its stages",
        )
    wide = replace(spec, depth=0, depths=own.stage_depths)
    grown = widen(network, wide, seed=seed, noise=noise, optimizer_state=optimizer_state)
    for stage, count in enumerate(missing):
        if count:
            state = grown.optimizer_state
            grown = deepen(grown.network, stage, count=count, seed=seed + 1 + stage, optimizer_state=state)
    grown.network.spec = spec
    return grown
