"""The fields of a network description and what follows from them; `spec.py` makes them a checked `ModelSpec`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

from resnet_models.depth import depths_of

BlockName = Literal["basic", "bottleneck", "preact_basic", "preact_bottleneck"]
StemName = Literal["auto", "imagenet", "cifar", "deep", "tiered", "whitening"]
ShortcutName = Literal["zero_pad", "projection", "all_projection", "average_pool", "blur_pool"]
StrideName = Literal["v1", "v1.5"]
OrderingName = Literal[
    "auto",
    "original",
    "norm_after_addition",
    "relu_before_addition",
    "relu_only_preactivation",
    "full_preactivation",
]
NormName = Literal["batch", "ghost", "sync", "group", "frozen"]
ActivationName = Literal["relu", "leaky_relu", "silu", "gelu", "mish", "hard_swish"]
AttentionName = Literal["none", "se", "eca"]
StemPoolName = Literal["auto", "max", "average", "blur", "convolution", "none"]
DownsampleName = Literal["stride", "blur", "average", "max", "max_before_norm"]
HeadPoolName = Literal["average", "max", "gem", "concat"]

_USUAL_NORM_SIZE = 32  # groups: Wu & He 2018, arXiv:1803.08494, sec. 4; ghost batches of 32 as in its comparison


# Networks already in use lack these fields: at their defaults they leave the keys of stages alone.
_LATER = {"later": True}


@dataclass(frozen=True, init=False, repr=False, eq=False)
class SpecFields:
    """What a residual network is, field by field; unchecked (see `ModelSpec`).

    The defaults describe ResNet-18 for large images and ResNet-20 for small ones.
    """

    block: BlockName = "basic"
    """basic: two 3x3 (arXiv:1512.03385 fig. 5 left); bottleneck: 1x1-3x3-1x1 (fig. 5 right);
    preact_*: activation before each convolution (arXiv:1603.05027)."""
    depth: int = 0
    """The paper's layer count, e.g. 18, 50 (four stages) or 20, 110 (CIFAR); 0: `depths`, or the smallest usual."""
    depths: tuple[int, ...] = ()
    """Blocks per stage, e.g. [3, 4, 6, 3]; empty: from `depth`."""
    channels: tuple[int, ...] = ()
    """Base channels per stage before `width`, e.g. [64, 256, 256]; empty: doubling from 64 (small stems: 16)."""
    width: float = 1.0
    """Multiplies the base channels of every stage, and of the stem unless `stem_channels` is given."""
    strides: tuple[int, ...] = ()
    """Stride of the first block of each stage; empty: 1, then 2 for every later stage."""
    stem: StemName = "auto"
    """imagenet: 7x7/2; deep: three 3x3, the first /2 (ResNet-C, arXiv:1812.01187 fig. 2b); tiered: deep, of 3/8, 1/2
    and 1 of the channels (timm's -T); cifar: one 3x3 at full resolution; whitening: 3x3 patches, whitened by a fixed
    convolution, then 1x1, at full resolution; auto: cifar up to 64 px, imagenet above."""
    stem_channels: int = 0
    """Channels after the stem; 0: those of the first stage."""
    shortcut: ShortcutName = "projection"
    """zero_pad: option A; projection: option B, 1x1 where the shape changes; all_projection: option C
    (arXiv:1512.03385 sec. 4.1); average_pool: pooled, then 1x1 (ResNet-D, arXiv:1812.01187 fig. 2c);
    blur_pool: blurred, then 1x1 (arXiv:1904.11486 sec. 4.2)."""
    stride_placement: StrideName = "v1.5"
    """Bottlenecks: v1 strides in the first 1x1 as printed in 2015, v1.5 in the 3x3 as is usual since."""
    cardinality: int = 1
    """Groups of the bottleneck's 3x3 (ResNeXt, arXiv:1611.05431)."""
    base_width: int = 64
    """Channels per group of the bottleneck's 3x3 where the stage has 64 base channels; 128: WRN-50-2."""
    num_classes: int = 0
    """Outputs; 0: those of the data, to be settled with `for_images` before building."""
    in_channels: int = 3
    """Channels of the input images: 1 grey, 3 RGB, more for multispectral ones."""
    zero_init_last: bool = False
    """Start every block as its shortcut: zero scale in its last norm (arXiv:1706.02677 sec. 5.1)."""
    ordering: OrderingName = field(default="auto", metadata=_LATER)
    """Order of convolution, norm and activation, arXiv:1603.05027 fig. 4: original (a), norm_after_addition (b),
    relu_before_addition (c) for basic and bottleneck; relu_only_preactivation (d), full_preactivation (e) for preact_*;
    auto: a and e."""
    norm: NormName = field(default="batch", metadata=_LATER)
    """batch; ghost: batch norm over slices of the batch (arXiv:1705.08741); sync: over all processes of
    torch.distributed; group (arXiv:1803.08494); frozen: batch norm whose figures and scales never change."""
    norm_size: int = field(default=0, metadata=_LATER)
    """ghost: images of a slice; group: number of groups; 0: 32. The other norms have none."""
    activation: ActivationName = field(default="relu", metadata=_LATER)
    """Non-linearity of blocks and stem: relu; leaky_relu (slope 0.01); silu; gelu; mish; hard_swish."""
    attention: AttentionName = field(default="none", metadata=_LATER)
    """Channel gates at the end of each branch: se (arXiv:1709.01507), eca (arXiv:1910.03151)."""
    attention_reduction: int = field(default=16, metadata=_LATER)
    """se: channels of a block divided by those of its gate, which are rounded to a multiple of 8."""
    stem_pool: StemPoolName = field(default="auto", metadata=_LATER)
    """After the stem's convolutions: max 3x3/2; average 2x2/2; blur: max 3x3/1, then blur/2 (arXiv:1904.11486);
    convolution: 3x3/2 (arXiv:2103.07579); none; auto: max, and none for cifar and whitening, which take no other."""
    downsample: DownsampleName = field(default="stride", metadata=_LATER)
    """How the branch of a strided block shrinks: stride: in the convolution; blur, average, max: the convolution keeps
    the size and its activated output is blurred (arXiv:1904.11486), averaged or max-pooled 3x3; max_before_norm: its
    output is max-pooled in tiles before its norm, which so costs a quarter (arXiv:2404.00498)."""
    head_pool: HeadPoolName = field(default="average", metadata=_LATER)
    """From the last map to a vector: average; max; gem: generalised mean with a learned power (arXiv:1711.02512);
    concat: average and max side by side."""
    drop_path_rate: float = field(default=0.0, metadata=_LATER)
    """Stochastic depth (arXiv:1603.09382): chance to leave out the last block's branch; rises linearly from 0 at the
    first block."""
    drop_block_rate: float = field(default=0.0, metadata=_LATER)
    """DropBlock (arXiv:1810.12890) after the 3x3 of every block of the last two stages: share of values dropped."""
    drop_block_size: int = field(default=7, metadata=_LATER)
    """Side of DropBlock's squares in pixels of the feature map."""
    block_dropout: float = field(default=0.0, metadata=_LATER)
    """Dropout before the last convolution of every block (arXiv:1605.07146 sec. 2.4)."""
    head_dropout: float = field(default=0.0, metadata=_LATER)
    """Dropout before the classifier."""
    exits: tuple[int, ...] = field(default=(), metadata=_LATER)
    """Stages, counted from 1, after which an early-exit classifier stands; the last stage has the network's own."""

    @property
    def is_preactivation(self) -> bool:
        """Whether the activation comes before the convolutions."""
        return self.block.startswith("preact_")

    @property
    def settled_ordering(self) -> str:
        """The ordering with "auto" filled in."""
        if self.ordering != "auto":
            return self.ordering
        return "full_preactivation" if self.is_preactivation else "original"

    @property
    def settled_norm_size(self) -> int:
        """Ghost batch or number of groups, the usual one filled in; 0 for norms that have none."""
        if self.norm not in ("ghost", "group"):
            return 0
        return self.norm_size or _USUAL_NORM_SIZE

    @property
    def settled_stem_pool(self) -> str:
        """The stem's pooling with "auto" filled in."""
        if self.stem_pool != "auto":
            return self.stem_pool
        return "none" if self.has_small_stem else "max"

    @property
    def has_small_stem(self) -> bool:
        """Whether the stem keeps the image's resolution."""
        return self.stem in ("cifar", "whitening")

    @property
    def is_bottleneck(self) -> bool:
        """Whether blocks are 1x1-3x3-1x1."""
        return self.block.endswith("bottleneck")

    @property
    def expansion(self) -> int:
        """Output channels of a block divided by its stage's channels."""
        return 4 if self.is_bottleneck else 1

    @property
    def num_stages(self) -> int:
        """Number of stages: as many as `depths`, `channels` or `strides` list, else 3 with a small stem, else 4."""
        listed = self.depths or self.channels or self.strides
        return len(listed) if listed else (3 if self.has_small_stem else 4)

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Blocks per stage."""
        if self.depths:
            return self.depths
        found = depths_of(self.block, self.depth, self.num_stages)
        assert found is not None, "checked on construction"
        return found

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels per stage after `width`; a block's output has `expansion` times as many."""
        first = 16 if self.has_small_stem else 64
        base = self.channels or tuple(first * 2**stage for stage in range(self.num_stages))
        return tuple(max(1, round(channels * self.width)) for channels in base)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Stride of the first block per stage."""
        return self.strides or (1,) + (2,) * (self.num_stages - 1)

    @property
    def stem_width(self) -> int:
        """Channels after the stem."""
        return self.stem_channels or self.stage_channels[0]

    @property
    def stem_stride(self) -> int:
        """Pixels of the image per pixel of the stem's output, along one side."""
        if self.has_small_stem:
            return 1
        return 2 if self.settled_stem_pool == "none" else 4

    @property
    def total_stride(self) -> int:
        """Pixels of the image per pixel of the last feature map, along one side."""
        return self.stem_stride * prod(self.stage_strides)

    @property
    def min_image_px(self) -> int:
        """Shortest side of an image that every strided layer can still shrink: the last one must see two pixels."""
        strides = [2] * (self.stem_stride // 2) + [stride for stride in self.stage_strides if stride > 1]
        return prod(strides[:-1]) + 1 if strides else 1

    @property
    def feature_channels(self) -> int:
        """Length of the vector that the classifier sees."""
        return self.stage_channels[-1] * self.expansion * (2 if self.head_pool == "concat" else 1)

    def inner_channels(self, channels: int) -> int:
        """Return the channels of a bottleneck's 3x3 in a stage of `channels` (ResNeXt: all groups together)."""
        return int(channels * (self.base_width / 64.0)) * self.cardinality

    def stem_channels_inside(self) -> tuple[int, int]:
        """Return the channels of the first two of a deep stem's three convolutions."""
        half = max(1, self.stem_width // 2)
        return (max(1, 3 * self.stem_width // 8), half) if self.stem == "tiered" else (half, half)
