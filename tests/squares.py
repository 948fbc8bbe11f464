"""A task that a tiny network learns in seconds, whose evidence has a known place: the colour of one bright square."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec

SIDE_PX, SQUARE_PX = 32, 8
SPEC = ModelSpec(stem="cifar", channels=(8, 16), depths=(1, 1), num_classes=3)


def square_batch(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return noise images (N, 3, 32, 32) with one square each, its colour (= class, N), where it lies (N, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIDE_PX, SIDE_PX, generator=generator) * 0.3
    targets = torch.randint(0, 3, (count,), generator=generator)
    corners = torch.randint(2, SIDE_PX - SQUARE_PX - 2, (count, 2), generator=generator)
    inside = torch.zeros(count, SIDE_PX, SIDE_PX, dtype=torch.bool)
    for index, (top, left) in enumerate(corners.tolist()):
        inside[index, top : top + SQUARE_PX, left : left + SQUARE_PX] = True
        images[index, targets[index]][inside[index]] += 2.0
    return images, targets, inside


def trained_on_squares(
    spec: ModelSpec = SPEC, *, seed: int = 0, steps: int = 40, network: ResNet | None = None
) -> ResNet:
    """Return a network that tells the colours, in eval mode; `network` goes on from its own weights (in place)."""
    network = build(spec, seed=seed) if network is None else network
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        images, targets, _ = square_batch(32, 1000 * (seed + 1) + step)
        loss = F.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval()
