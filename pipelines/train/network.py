"""From the config's description to a network on its device, fitted to the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from pipelines.errors import ConfigError, InputError
from pipelines.train.batch_norm import make_global
from pipelines.train.collectives import World
from resnet_models.errors import SpecError
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec

_SAFE_CHANNELS = 8


def settle_spec(spec: ModelSpec, classes: Sequence[str], image_shape: tuple[int, int]) -> ModelSpec:
    """Return the spec with its stem and number of classes filled in from the data.

    Raises:
        InputError: the data has fewer than two classes.
        ConfigError: the spec does not fit the data, or cannot be built.
    """
    if len(classes) < 2:
        raise InputError(
            f"the dataset has {len(classes)} class ({', '.join(classes)}); telling classes apart takes at least two",
            mend="ingest images of another class as well",
        )
    if spec.in_channels != 3:
        raise ConfigError(
            f"model.in_channels is {spec.in_channels}; datasets hold RGB images, grey ones included",
            mend="leave model.in_channels at 3",
        )
    if spec.exits:
        raise ConfigError(
            f"model.exits is {list(spec.exits)}; a run gives early exits no loss, so they would stay as drawn",
            mend="leave model.exits out; resnet_models.adaptive.exit_logits trains them in a loop of your own",
        )
    try:
        return spec.for_images(image_size_px=min(image_shape), num_classes=len(classes))
    except SpecError as error:
        # the size is the dataset's, not a field of the model
        what = "the images' shorter side" if error.field == "image_size_px" else f"model.{error.field}"
        raise ConfigError(f"{what} is {error.value!r}: {error.reason}", mend=error.cure) from error


def draws_by_sample(spec: ModelSpec) -> bool:
    """Return whether the network drops something at random in training, and so wants the samples' keys."""
    return max(spec.drop_path_rate, spec.drop_block_rate, spec.block_dropout, spec.head_dropout) > 0.0


def is_channels_last_safe(network: nn.Module, device: torch.device) -> bool:
    """Return whether a network may be trained channels-last.

    On CPUs the float32 backward pass of a strided 1x1 convolution with fewer than 8 input channels writes beyond its
    memory then, and the process dies sooner or later (torch 2.14.1 with oneDNN; 2, 4, 5 and 6 channels died within 60
    steps, 8 and more never). Networks of width 0.25 and less have such shortcuts.
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
