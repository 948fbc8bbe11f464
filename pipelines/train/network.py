"""From a settled description to a network on its device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pipelines.train.batch_norm import make_global
from pipelines.train.collectives import World
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec

_SAFE_CHANNELS = 16


def is_channels_last_safe(network: nn.Module, device: torch.device) -> bool:
    """Return whether a network may be trained channels-last.

    On CPUs the float32 backward pass of a strided 1x1 convolution with fewer than 16 input channels writes beyond its
    memory then, and the process dies sooner or later (torch 2.14.1 with oneDNN; 2 to 6 channels within 60 steps of
    small images, 8 to 15 at 96 pixels with AVX-512; 16 and more never). Narrow networks have such shortcuts.
    """
    if device.type != "cpu":
        return True
    return not any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels < _SAFE_CHANNELS
        for layer in network.modules()
    )


def make_network(
    spec: ModelSpec,
    *,
    seed: int,
    world: World,
    device: torch.device,
    channels_last: bool = True,
    load: Callable[[ResNet], None] | None = None,
) -> ResNet:
    """Return the network with initial weights, its batch norms over the global batch.

    Args:
        spec: the network, settled.
        seed: seed of the random weights.
        world: the processes that train together.
        device: where it will be.
        channels_last: whether its weights lie channels-last, where that is safe.
        load: puts weights of another run into the network, in place.
    """
    network = build(spec, seed=seed)
    if load:
        load(network)
    make_global(network, world)
    network = network.to(device)
    if channels_last and is_channels_last_safe(network, device):
        network = network.to(memory_format=torch.channels_last)
    world.copy_from_first(network)
    return network
