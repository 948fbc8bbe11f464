"""The residual network: stem, stages, head; built from a `ModelSpec`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resnet_models.blocks.basic import BasicBlock
from resnet_models.blocks.bottleneck import BottleneckBlock
from resnet_models.blocks.parts import LAYERS_PER_BLOCK, BlockNoise, BlockParts
from resnet_models.blocks.preactivation import PreactBasicBlock, PreactBottleneckBlock
from resnet_models.blocks.residual import ResidualBlock
from resnet_models.draws import SampleDraws
from resnet_models.drop import SampleDropout
from resnet_models.errors import SpecError
from resnet_models.heads import make_end_activation, make_end_norm, make_exits
from resnet_models.init import initialise
from resnet_models.pooling import HEAD_POOLS
from resnet_models.spec import ModelSpec, check_image_size
from resnet_models.stem import make_stem

_HEAD_LAYER = 0  # draw number of the head's dropout; block k takes the LAYERS_PER_BLOCK after 1 + k LAYERS_PER_BLOCK


class Stage(nn.Sequential):
    """Residual blocks in a row; the first one changes size and channels.

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def forward(self, x: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Run the blocks; `draws` are the samples' random numbers, else torch's generator gives them."""
        for block in self:
            x = block(x, draws)
        return x


class ResNet(nn.Module):
    """Stem, stages of residual blocks, a pooling, one linear layer.

    He et al. 2015, arXiv:1512.03385, table 1 and sec. 4.2; pre-activation networks end in one more norm and ReLU
    (arXiv:1603.05027, appendix). Weights are torch's defaults; `build` sets them properly. `exits` holds the early
    classifiers by stage number, where the spec has some; `forward` leaves them alone.
    Shape: (N, in_channels, H, W) -> logits (N, num_classes).

    Raises:
        SpecError: The stem is still "auto" or the number of classes unknown: settle both with `ModelSpec.for_images`.
            From `forward`: the images have other channels, or are smaller than the strides allow.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        if spec.stem == "auto":
            raise SpecError("stem", "auto", "the image size is not known here", "settle it with spec.for_images")
        if spec.num_classes < 1:
            raise SpecError("num_classes", 0, "a network needs outputs", "settle it with spec.for_images")
        self.spec = spec
        parts = BlockParts.of(spec)
        self.stem = make_stem(spec, parts)
        self.stages = nn.Sequential(*(make_stage(spec, stage) for stage in range(spec.num_stages)))
        self.norm = make_end_norm(spec.stage_channels[-1] * spec.expansion, parts)
        self.activation = make_end_activation(parts)
        self.pool = HEAD_POOLS[spec.head_pool]()
        self.dropout = SampleDropout(spec.head_dropout, _HEAD_LAYER) if spec.head_dropout else None
        self.head = nn.Linear(spec.feature_channels, spec.num_classes)
        self.exits = make_exits(spec)

    def stage_outputs(self, x: Tensor, *, sample_keys: Tensor | None = None) -> list[Tensor]:
        """Return the map behind each stage: stage k has (N, channels, ceil(H / stride), ceil(W / stride)).

        Those of pre-activation networks are sums that no activation has seen yet; `finish` gives the last one its own.

        Args:
            x: Images, float (N, in_channels, H, W).
            sample_keys: int64 (N,), as in `forward`.
        """
        check_images(self.spec, x, sample_keys=sample_keys)
        draws = None if sample_keys is None else SampleDraws(sample_keys)
        outputs = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x, draws)
            outputs.append(x)
        return outputs

    def finish(self, x: Tensor) -> Tensor:
        """Return the last stage's map as the pooling sees it: normed and activated where the blocks leave that open."""
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def features(self, x: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
        """Return the vector per image that the classifier sees: (N, in_channels, H, W) -> (N, feature_channels)."""
        pooled: Tensor = self.pool(self.finish(self.stage_outputs(x, sample_keys=sample_keys)[-1]))
        return pooled

    def forward(self, x: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
        """Return logits (N, num_classes).

        Args:
            x: Images, float (N, in_channels, H, W).
            sample_keys: int64 (N,), one per image: whatever is left out at random while training is then a function of
                the key, not of torch's generator.
        """
        features = self.features(x, sample_keys=sample_keys)
        if self.dropout is not None:
            features = self.dropout(features, None if sample_keys is None else SampleDraws(sample_keys))
        logits: Tensor = self.head(features)
        return logits


def check_images(spec: ModelSpec, x: Tensor, *, sample_keys: Tensor | None = None, is_whole: bool = True) -> None:
    """Refuse images that a network cannot take; inside a compiled graph, where sizes stay open, nothing is checked.

    Args:
        spec: The network's.
        x: The images.
        sample_keys: Their keys, where given.
        is_whole: Whether they run through all stages, so that their size matters.

    Raises:
        SpecError: They have another number of channels, or are smaller than the strides allow.
        ValueError: There are more or fewer keys than images.
    """
    if torch.compiler.is_compiling():
        return
    if x.dim() != 4 or x.shape[1] != spec.in_channels:
        raise SpecError(
            "in_channels",
            spec.in_channels,
            f"the images have shape {list(x.shape)}",
            f"give (N, {spec.in_channels}, H, W), or build the network with their number of channels",
        )
    if is_whole:
        check_image_size(spec, min(x.shape[2:]))
    if sample_keys is not None and sample_keys.shape != x.shape[:1]:
        raise ValueError(f"sample_keys has shape {list(sample_keys.shape)}; there are {x.shape[0]} images")


def make_stage(spec: ModelSpec, stage: int) -> Stage:
    """Return the blocks of a stage, counted from 0."""
    widths = (spec.stem_width, *(channels * spec.expansion for channels in spec.stage_channels))
    first = sum(spec.stage_depths[:stage])
    blocks = [
        make_block(
            spec,
            widths[stage] if index == 0 else widths[stage + 1],
            spec.stage_channels[stage],
            stride=spec.stage_strides[stage] if index == 0 else 1,
            noise=make_noise(spec, stage, first + index),
        )
        for index in range(spec.stage_depths[stage])
    ]
    return Stage(*blocks)


def make_block(spec: ModelSpec, in_channels: int, channels: int, *, stride: int, noise: BlockNoise) -> ResidualBlock:
    """Return one residual block of a stage of `channels`."""
    parts = BlockParts.of(spec)
    if not spec.is_bottleneck:
        basic = PreactBasicBlock if spec.is_preactivation else BasicBlock
        return basic(in_channels, channels, stride=stride, parts=parts, noise=noise)
    bottleneck = PreactBottleneckBlock if spec.is_preactivation else BottleneckBlock
    return bottleneck(
        in_channels,
        spec.inner_channels(channels),
        channels * spec.expansion,
        stride=stride,
        stride_first=spec.stride_placement == "v1",
        groups=spec.cardinality,
        parts=parts,
        noise=noise,
    )


def make_noise(spec: ModelSpec, stage: int, index: int) -> BlockNoise:
    """Return what block `index` of the network, in `stage` (both from 0), leaves out at random.

    Stochastic depth rises linearly from 0 at the first block to its rate at the last (arXiv:1603.09382, eq. 4, but for
    its first block's p_0 = 1); DropBlock works in the last two stages (arXiv:1810.12890, sec. 4.1).
    """
    blocks = sum(spec.stage_depths)
    return BlockNoise(
        path=spec.drop_path_rate * index / max(1, blocks - 1),
        region=spec.drop_block_rate if stage >= spec.num_stages - 2 else 0.0,
        region_size=spec.drop_block_size,
        value=spec.block_dropout,
        layer=1 + index * LAYERS_PER_BLOCK,
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
