"""What a residual network is, as plain data: `ModelSpec`, importable without torch.

A spec says everything that `resnet_models.resnet.build` needs and nothing else, survives a trip through JSON
unchanged, and refuses at once what no network can honour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Literal, get_args

from resnet_models.depth import depth_choices, depths_of, nearest_depths
from resnet_models.errors import SpecError

BlockName = Literal["basic", "bottleneck", "preact_basic", "preact_bottleneck"]
StemName = Literal["auto", "imagenet", "cifar", "deep"]
ShortcutName = Literal["zero_pad", "projection", "all_projection", "average_pool"]
StrideName = Literal["v1", "v1.5"]

AUTO_STEM_LIMIT_PX = 64
"""Stem "auto": images up to this side keep their resolution in the stem, as in the CIFAR networks."""

_SPEC_CHOICES: dict[str, tuple[str, ...]] = {
    "block": get_args(BlockName),
    "stem": get_args(StemName),
    "shortcut": get_args(ShortcutName),
    "stride_placement": get_args(StrideName),
}
# Upper ends far beyond every published network: a description from elsewhere must not exhaust the memory.
_SPEC_INT_RANGES: dict[str, tuple[int, int]] = {
    "depth": (0, 6000),
    "stem_channels": (0, 16384),
    "cardinality": (1, 1024),
    "base_width": (1, 4096),
    "num_classes": (0, 1_000_000),
    "in_channels": (1, 1024),
}
_SPEC_TUPLE_RANGES: dict[str, tuple[int, int]] = {"depths": (1, 1000), "channels": (1, 16384), "strides": (1, 4)}
_SPEC_MAX_STAGES = 8


@dataclass(frozen=True)
class ModelSpec:
    """A residual network, layer counts and widths included.

    The defaults describe ResNet-18 for large images and ResNet-20 for small ones.

    Raises:
        SpecError: A value is out of range, or the block cannot honour a field; names field, value and cure.
    """

    block: BlockName = "basic"
    """basic: two 3x3 (arXiv:1512.03385 fig. 5 left); bottleneck: 1x1-3x3-1x1 (fig. 5 right);
    preact_*: norm and ReLU before each convolution (arXiv:1603.05027)."""
    depth: int = 0
    """The paper's layer count, e.g. 18, 50 (four stages) or 20, 110 (CIFAR); 0: `depths`, or the smallest usual."""
    depths: tuple[int, ...] = ()
    """Blocks per stage, e.g. [3, 4, 6, 3]; empty: from `depth`."""
    channels: tuple[int, ...] = ()
    """Base channels per stage before `width`, e.g. [64, 256, 256]; empty: doubling from 64 (stem cifar: 16)."""
    width: float = 1.0
    """Multiplies the base channels of every stage, and of the stem unless `stem_channels` is given."""
    strides: tuple[int, ...] = ()
    """Stride of the first block of each stage; empty: 1, then 2 for every later stage."""
    stem: StemName = "auto"
    """imagenet: 7x7/2 and max pool; deep: three 3x3 and max pool (ResNet-C, arXiv:1812.01187 fig. 2b);
    cifar: one 3x3 at full resolution; auto: cifar up to 64 px, imagenet above."""
    stem_channels: int = 0
    """Channels after the stem; 0: those of the first stage."""
    shortcut: ShortcutName = "projection"
    """zero_pad: option A; projection: option B, 1x1 where the shape changes; all_projection: option C
    (arXiv:1512.03385 sec. 4.1); average_pool: pooled, then 1x1 (ResNet-D, arXiv:1812.01187 fig. 2c)."""
    stride_placement: StrideName = "v1.5"
    """Bottlenecks: v1 strides in the first 1x1 as printed in 2015, v1.5 in the 3x3 as is usual since."""
    cardinality: int = 1
    """Groups of the bottleneck's 3x3 (ResNeXt, arXiv:1611.05431)."""
    base_width: int = 64
    """Channels per group of the bottleneck's 3x3 where the stage has 64 base channels; 128: WRN-50-2."""
    num_classes: int = 0
    """Outputs; 0: those of the data, to be settled with `for_images` before building."""
    in_channels: int = 3
    """Channels of the input images."""
    zero_init_last: bool = False
    """Start every block as its shortcut: zero scale in its last norm (arXiv:1706.02677 sec. 5.1)."""

    def __post_init__(self) -> None:
        """Refuse what no network can honour; shapes are checked once the stem is known."""
        _check_spec_values(self)
        _check_spec_honoured(self)
        if self.stem != "auto":
            _check_spec_shape(self)

    @property
    def is_preactivation(self) -> bool:
        """Whether norm and ReLU come before the convolutions."""
        return self.block.startswith("preact_")

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
        """Number of stages: as many as `depths`, `channels` or `strides` list, else 3 with stem cifar, 4 otherwise."""
        listed = self.depths or self.channels or self.strides
        return len(listed) if listed else (3 if self.stem == "cifar" else 4)

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
        first = 16 if self.stem == "cifar" else 64
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

    def inner_channels(self, channels: int) -> int:
        """Return the channels of a bottleneck's 3x3 in a stage of `channels` (ResNeXt: all groups together)."""
        return int(channels * (self.base_width / 64.0)) * self.cardinality

    def for_images(self, *, image_size_px: int, num_classes: int = 0) -> ModelSpec:
        """Return the spec settled for images of this side: no "auto" stem, and the number of classes filled in.

        Args:
            image_size_px: Side of the network's input; the shorter one where the images are not square.
            num_classes: Classes of the data; 0 keeps the spec's own.

        Raises:
            SpecError: The spec names another number of classes, or its depth does not fit the settled stem.
        """
        if num_classes and self.num_classes not in (0, num_classes):
            raise SpecError(
                "num_classes",
                self.num_classes,
                f"the data has {num_classes} classes",
                "leave num_classes at 0 to take it from the data",
            )
        stem = self.stem
        if stem == "auto":
            stem = "cifar" if image_size_px <= AUTO_STEM_LIMIT_PX else "imagenet"
        return replace(self, stem=stem, num_classes=num_classes or self.num_classes)

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values, all of them, in the order of declaration."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> ModelSpec:
        """Return the spec that `to_json` wrote; a missing field takes its default.

        Raises:
            SpecError: A field is unknown (the nearest is named) or holds a value of another type.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise SpecError(name, values[name], "ModelSpec has no such field", _nearest_spec_field(name, known))
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples})  # type: ignore[arg-type]  # types are checked by __post_init__


def _nearest_spec_field(name: str, known: list[str]) -> str:
    from difflib import get_close_matches  # 5 ms that only a misspelt field pays

    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}"


def _check_spec_values(spec: ModelSpec) -> None:
    """Check each field alone: type, choice, range."""
    for name, choices in _SPEC_CHOICES.items():
        if getattr(spec, name) not in choices:
            raise SpecError(name, getattr(spec, name), "no such choice", f"use one of {', '.join(choices)}")
    for name, (low, high) in _SPEC_INT_RANGES.items():
        _check_spec_int(name, getattr(spec, name), low, high)
    for name, (low, high) in _SPEC_TUPLE_RANGES.items():
        values = getattr(spec, name)
        if not isinstance(values, tuple) or len(values) > _SPEC_MAX_STAGES:
            raise SpecError(
                name, values, f"it must list whole numbers, {_SPEC_MAX_STAGES} at most", "give one per stage"
            )
        for value in values:
            _check_spec_int(name, value, low, high)
    if isinstance(spec.width, bool) or not isinstance(spec.width, (int, float)) or not 0.0 < spec.width <= 64.0:
        raise SpecError("width", spec.width, "it must be a number above 0 and at most 64", "1.0 is the paper's width")
    object.__setattr__(spec, "width", float(spec.width))  # 2 and 2.0 are one spec, also as JSON text
    if not isinstance(spec.zero_init_last, bool):
        raise SpecError("zero_init_last", spec.zero_init_last, "it must be true or false", "give true or false")


def _check_spec_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(name, value, "it is out of range", f"give whole numbers from {low} to {high}")


def _check_spec_honoured(spec: ModelSpec) -> None:
    """Refuse fields that the block cannot honour."""
    if not spec.is_bottleneck:
        block = "bottleneck" if spec.block == "basic" else "preact_bottleneck"
        for name, default in (("cardinality", 1), ("base_width", 64), ("stride_placement", "v1.5")):
            if getattr(spec, name) != default:
                raise SpecError(
                    name,
                    getattr(spec, name),
                    f"a {spec.block} block has no 1x1-3x3-1x1 to apply it to",
                    f"use block={block}, or leave {name} at {default}",
                )
    if spec.is_preactivation and spec.zero_init_last:
        raise SpecError(
            "zero_init_last",
            True,
            f"a {spec.block} block ends in a convolution, not in a norm",
            "leave zero_init_last at false, or use block=" + spec.block.removeprefix("preact_"),
        )
    if spec.depth and spec.depths:
        raise SpecError("depth", spec.depth, "depths is given too", "give one of them: set depth=0 or depths=[]")


def _check_spec_shape(spec: ModelSpec) -> None:
    """Check what depends on the number of stages, so only once the stem is known."""
    stages = spec.num_stages
    for name in ("channels", "strides"):
        values = getattr(spec, name)
        if values and len(values) != stages:
            raise SpecError(name, values, f"the network has {stages} stages", f"list {stages} numbers, one per stage")
    if not spec.depths and depths_of(spec.block, spec.depth, stages) is None:
        raise _impossible_depth(spec)
    for channels in spec.stage_channels if spec.is_bottleneck else ():
        if spec.inner_channels(channels) < 1:
            raise SpecError(
                "base_width",
                spec.base_width,
                f"a stage of {channels} channels would get no channel in its 3x3",
                f"use at least {-(-64 // channels)}, or more channels",
            )
    if spec.shortcut == "zero_pad":
        outs = (spec.stem_width, *(channels * spec.expansion for channels in spec.stage_channels))
        for before, after in pairwise(outs):
            if after < before:
                raise SpecError(
                    "shortcut",
                    spec.shortcut,
                    f"zeros can only widen, and a stage goes from {before} to {after} channels",
                    "use shortcut=projection",
                )


def _impossible_depth(spec: ModelSpec) -> SpecError:
    stages = spec.num_stages
    near = nearest_depths(spec.block, spec.depth, stages)
    if not near:
        return SpecError(
            "depth",
            spec.depth,
            f"no paper prints one for {stages} stages of {spec.block} blocks",
            "give depths instead",
        )
    cure = f"the nearest that can be built: {' or '.join(map(str, near))}; or give depths=[...]"
    if stages == 3 and not spec.channels and spec.depth in depth_choices(spec.block, 4):
        cure += f"; {spec.depth} is a network of four stages: add channels=[64, 128, 256, 512]"
    return SpecError("depth", spec.depth, f"{stages} stages of {spec.block} blocks cannot have that many layers", cure)
