"""What a network costs: parameters and multiply-adds, counted without allocating a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec
from resnet_models.whitening import PatchWhitening


@dataclass(frozen=True)
class Complexity:
    """Cost of one image forward."""

    parameters: int
    """Trainable values: convolutions, norm scales and shifts, the classifier."""
    macs: int
    """Multiply-adds of 2-D convolutions and the classifier, as the papers count them: no norms, additions, poolings."""


def count(spec: ModelSpec, *, image_size_px: int) -> Complexity:
    """Return parameters and multiply-adds of a settled spec for one square image of `image_size_px`.

    Raises:
        SpecError: The spec is not settled (`ModelSpec.for_images`).
    """
    with torch.device("meta"):  # shapes only: ResNet-1202 takes no memory here
        network = ResNet(spec).eval()
        image = torch.empty(1, spec.in_channels, image_size_px, image_size_px)
    macs = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, PatchWhitening):
            macs += output.numel() * module.directions[0].numel()
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        network(image)
    return Complexity(parameters=sum(weight.numel() for weight in network.parameters()), macs=macs)
