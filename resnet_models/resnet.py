"""The residual network: stem, stages, head; built from a `ModelSpec`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.blocks.basic import BasicBlock
from resnet_models.blocks.bottleneck import BottleneckBlock
from resnet_models.blocks.preactivation import PreactBasicBlock, PreactBottleneckBlock
from resnet_models.errors import SpecError
from resnet_models.init import initialise
from resnet_models.pooling import GlobalAveragePool
from resnet_models.spec import ModelSpec
from resnet_models.stem import STEMS


class ResNet(nn.Module):
    """Stem, stages of residual blocks, average pooling, one linear layer.

    He et al. 2015, arXiv:1512.03385, table 1 and sec. 4.2; pre-activation networks end in one more norm and ReLU
    (arXiv:1603.05027, appendix). Weights are torch's defaults; `build` sets them properly.
    Shape: (N, in_channels, H, W) -> logits (N, num_classes).

    Raises:
        SpecError: The stem is still "auto" or the number of classes unknown: settle both with `ModelSpec.for_images`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        if spec.stem == "auto":
            raise SpecError("stem", "auto", "the image size is not known here", "settle it with spec.for_images")
        if spec.num_classes < 1:
            raise SpecError("num_classes", 0, "a network needs outputs", "settle it with spec.for_images")
        self.spec = spec
        self.stem = STEMS[spec.stem](spec.in_channels, spec.stem_width, activated=not spec.is_preactivation)
        channels = spec.stem_width
        stages = []
        for depth, stage_channels, stride in zip(
            spec.stage_depths, spec.stage_channels, spec.stage_strides, strict=True
        ):
            stages.append(make_stage(spec, channels, stage_channels, depth=depth, stride=stride))
            channels = stage_channels * spec.expansion
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels) if spec.is_preactivation else None
        self.pool = GlobalAveragePool()
        self.head = nn.Linear(channels, spec.num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the vector per image that the classifier sees: (N, in_channels, H, W) -> (N, channels)."""
        x = self.stages(self.stem(x))
        if self.norm is not None:
            x = F.relu(self.norm(x), inplace=True)
        pooled: Tensor = self.pool(x)
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def make_stage(spec: ModelSpec, in_channels: int, channels: int, *, depth: int, stride: int) -> nn.Sequential:
    """Return the blocks of one stage; the first one changes size and channels."""
    out_channels = channels * spec.expansion
    blocks: list[nn.Module] = []
    for index in range(depth):
        entering = in_channels if index == 0 else out_channels
        blocks.append(make_block(spec, entering, channels, stride=stride if index == 0 else 1))
    return nn.Sequential(*blocks)


def make_block(spec: ModelSpec, in_channels: int, channels: int, *, stride: int) -> nn.Module:
    """Return one residual block of a stage of `channels`."""
    if not spec.is_bottleneck:
        basic = PreactBasicBlock if spec.is_preactivation else BasicBlock
        return basic(in_channels, channels, stride=stride, shortcut=spec.shortcut)
    bottleneck = PreactBottleneckBlock if spec.is_preactivation else BottleneckBlock
    return bottleneck(
        in_channels,
        spec.inner_channels(channels),
        channels * spec.expansion,
        stride=stride,
        stride_first=spec.stride_placement == "v1",
        groups=spec.cardinality,
        shortcut=spec.shortcut,
    )


def build(spec: ModelSpec, *, seed: int = 0) -> ResNet:
    """Return the network of a settled spec with initial weights: a function of (spec, seed), whatever ran before.

    Raises:
        SpecError: As `ResNet`.
    """
    with torch.random.fork_rng(devices=[]):  # torch's layers draw their defaults from the global generator
        network = ResNet(spec)
    initialise(network, seed=seed, zero_init_last=spec.zero_init_last)
    return network
