"""Receptive fields: published ones, a formula of its own, and the pixels that a gradient reaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_models.layers import trace_layers
from resnet_models.pooling import MaxPool
from resnet_models.receptive import receptive_levels
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec

# Araujo et al. 2019, doi:10.23915/distill.00021, table 1, for the strides as printed in 2015; the others by hand:
# 11 + 8 (3x3 at stride 4 in ResNet-18's first stage: 4 x 2 x 4 = 32) and so on.
PUBLISHED = {"resnet50_v1": 483, "resnet101_v1": 1027, "resnet152_v1": 1507}
BY_HAND = {"resnet18": 435, "resnet34": 899, "resnet50": 427, "resnet20": 81, "wrn28_10": 109}


@pytest.mark.parametrize(("name", "expected"), [*PUBLISHED.items(), *BY_HAND.items()])
def test_last_stages_of_the_papers(name: str, expected: int) -> None:
    assert receptive_levels(named_spec(name))[-1].receptive_field_px == expected


def test_levels_name_part_channels_stride_and_place() -> None:
    levels = receptive_levels(named_spec("resnet50"))
    assert [(x.part, x.channels, x.stride, x.receptive_field_px, x.first_px) for x in levels] == [
        ("stem", 64, 4, 11, -5),
        ("stage1", 256, 4, 35, -17),
        ("stage2", 512, 8, 91, -45),
        ("stage3", 1024, 16, 267, -133),
        ("stage4", 2048, 32, 427, -213),
    ]


def make_positive(network: nn.Module) -> None:
    """Make every path count: positive weights that keep the mean, norms as identity, maxima as means."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0 / module.weight[0].numel())
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MaxPool):
                mean = nn.AvgPool2d(child.size, stride=child.stride, padding=child.padding, ceil_mode=not child.padding)
                setattr(parent, name, mean)


def pixels_reached(spec: ModelSpec, level: int, size: int) -> tuple[int, int]:
    """Return first and last row of the image on which the middle row of a level's map depends, and that row's place."""
    network = ResNet(spec).double().eval()
    make_positive(network)
    images = torch.ones(1, spec.in_channels, size, size, dtype=torch.float64, requires_grad=True)
    maps = [network.stem(images)]
    for stage in network.stages:
        maps.append(stage(maps[-1]))
    middle = maps[level].shape[2] // 2
    maps[level][:, :, middle].sum().backward()
    assert images.grad is not None
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    stride = receptive_levels(spec)[level].stride
    return int(rows[0]) - middle * stride, int(rows[-1]) - middle * stride


POOLED = {"stem": "cifar", "depths": (1, 2, 1), "channels": (4, 4, 4), "strides": (2, 3, 2), "num_classes": 2}
SPECS = {
    "resnet18": (named_spec("resnet18", width=0.0625), 513),
    "resnet50": (named_spec("resnet50", width=0.0625), 513),
    "resnet50_v1": (named_spec("resnet50_v1", width=0.0625), 545),
    "cifar": (named_spec("resnet20", width=0.25), 129),
    "preactivation": (ModelSpec("preact_basic", stem="cifar", depths=(2, 1), channels=(4, 8), num_classes=2), 65),
    "deep stem, average shortcut": (named_spec("resnet50d", width=0.0625, depths=(1, 2, 1)), 257),
    "blur": (
        ModelSpec(
            stem="imagenet",
            stem_pool="blur",
            downsample="blur",
            shortcut="blur_pool",
            depths=(1, 2, 1),
            channels=(4, 4, 4),
            num_classes=2,
        ),
        257,
    ),
    "average": (
        ModelSpec(
            stem="deep",
            stem_pool="average",
            downsample="average",
            depths=(1, 1, 1),
            channels=(4, 4, 4),
            strides=(2, 3, 2),
            num_classes=2,
        ),
        385,
    ),
    "max": (ModelSpec(downsample="max", **POOLED), 193),  # type: ignore[arg-type]
    "max before norm": (ModelSpec(downsample="max_before_norm", **POOLED), 193),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", SPECS)
def test_gradients_reach_exactly_the_pixels_that_are_told(name: str) -> None:
    spec, size = SPECS[name]
    for number, level in enumerate(receptive_levels(spec)):
        first, last = pixels_reached(spec, number, size)
        assert (first, last - first + 1) == (level.first_px, level.receptive_field_px), level


def test_windows_of_pools_are_those_of_the_modules() -> None:
    spec = ModelSpec(
        stem="imagenet", stem_pool="blur", depths=(1, 1), channels=(4, 8), num_classes=2, shortcut="zero_pad"
    )
    kinds = {layer.name: layer.kind for layer in trace_layers(spec, image_size_px=64)}
    assert kinds["stem.pool.0"] == "3x3 max pool"
    assert kinds["stem.pool.1"] == "3x3 blur, /2"
    assert kinds["stages.1.0.shortcut"] == "zero pad, 8, /2"
