"""What no network can honour: each refusal names the field, its value, why, and what to do instead."""

from __future__ import annotations

from itertools import pairwise
from math import gcd
from typing import get_args

from resnet_models.depth import depth_choices, depths_of, nearest_depths
from resnet_models.errors import SpecError
from resnet_models.spec_fields import (
    ActivationName,
    AttentionName,
    BlockName,
    DownsampleName,
    HeadPoolName,
    NormName,
    OrderingName,
    ShortcutName,
    SpecFields,
    StemName,
    StemPoolName,
    StrideName,
)

_SPEC_CHOICES: dict[str, tuple[str, ...]] = {
    "block": get_args(BlockName),
    "stem": get_args(StemName),
    "shortcut": get_args(ShortcutName),
    "stride_placement": get_args(StrideName),
    "ordering": get_args(OrderingName),
    "norm": get_args(NormName),
    "activation": get_args(ActivationName),
    "attention": get_args(AttentionName),
    "stem_pool": get_args(StemPoolName),
    "downsample": get_args(DownsampleName),
    "head_pool": get_args(HeadPoolName),
}
# Upper ends far beyond every published network: a description from elsewhere must not exhaust the memory.
_SPEC_INT_RANGES: dict[str, tuple[int, int]] = {
    "depth": (0, 6000),
    "stem_channels": (0, 16384),
    "cardinality": (1, 1024),
    "base_width": (1, 4096),
    "num_classes": (0, 1_000_000),
    "in_channels": (1, 1024),
    "norm_size": (0, 65536),
    "attention_reduction": (1, 1024),
    "drop_block_size": (1, 1024),
}
_SPEC_MAX_STAGES = 8
_SPEC_TUPLE_RANGES: dict[str, tuple[int, int]] = {
    "depths": (1, 1000),
    "channels": (1, 16384),
    "strides": (1, 4),
    "exits": (1, _SPEC_MAX_STAGES),
}
_SPEC_RATES = ("drop_path_rate", "drop_block_rate", "block_dropout", "head_dropout")
_SPEC_ORDERINGS: dict[bool, tuple[str, ...]] = {
    False: ("auto", "original", "norm_after_addition", "relu_before_addition"),
    True: ("auto", "relu_only_preactivation", "full_preactivation"),
}
_MAX_WHITENED_CHANNELS = 64
# Why a block cannot start as its shortcut by a zero scale in its last norm.
_NO_ZERO_INIT: dict[str, str] = {
    "norm_after_addition": "the last norm stands after the addition, so that zero would stop the shortcut too",
    "relu_before_addition": "the activation after the last norm passes no gradient at zero, so that the branch is dead",
}


def check_spec_values(spec: SpecFields) -> None:
    """Check each field alone: type, choice, range; whole numbers in number fields become floats.

    Raises:
        SpecError: A field holds something else.
    """
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
    _check_spec_number(spec, "width", "it must be a number above 0 and at most 64", "1.0 is the paper's width")
    if not 0.0 < spec.width <= 64.0:
        raise SpecError("width", spec.width, "it must be a number above 0 and at most 64", "1.0 is the paper's width")
    for name in _SPEC_RATES:
        reason, cure = "it must be a number of at least 0 and below 1", "0.0 turns it off"
        _check_spec_number(spec, name, reason, cure)
        if not 0.0 <= getattr(spec, name) < 1.0:
            raise SpecError(name, getattr(spec, name), reason, cure)
    if not isinstance(spec.zero_init_last, bool):
        raise SpecError("zero_init_last", spec.zero_init_last, "it must be true or false", "give true or false")


def _check_spec_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SpecError(name, value, "it is out of range", f"give whole numbers from {low} to {high}")


def _check_spec_number(spec: SpecFields, name: str, reason: str, cure: str) -> None:
    value = getattr(spec, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(name, value, reason, cure)
    try:
        object.__setattr__(spec, name, float(value))  # 2 and 2.0 are one spec, also as JSON text
    except OverflowError:
        raise SpecError(name, value, reason, cure) from None


def check_spec_honoured(spec: SpecFields) -> None:
    """Refuse fields that the block, or another field, gives nothing to do.

    Raises:
        SpecError: Names the field.
    """
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
    _check_spec_ordering(spec)
    if spec.depth and spec.depths:
        raise SpecError("depth", spec.depth, "depths is given too", "give one of them: set depth=0 or depths=[]")
    if spec.stem == "whitening" and spec.in_channels > _MAX_WHITENED_CHANNELS:
        raise SpecError(
            "in_channels",
            spec.in_channels,
            f"stem whitening makes {18 * spec.in_channels} maps of that many",
            f"use stem=cifar, or at most {_MAX_WHITENED_CHANNELS} channels",
        )
    if spec.norm_size and not spec.settled_norm_size:
        raise SpecError(
            "norm_size",
            spec.norm_size,
            f"norm {spec.norm} has no size",
            "leave it at 0, or use norm=group or norm=ghost",
        )
    if spec.attention_reduction != 16 and spec.attention != "se":
        raise SpecError(
            "attention_reduction",
            spec.attention_reduction,
            f"attention {spec.attention} reduces nothing",
            "leave it at 16, or use attention=se",
        )
    if spec.drop_block_size != 7 and not spec.drop_block_rate:
        raise SpecError(
            "drop_block_size", spec.drop_block_size, "drop_block_rate is 0", "leave it at 7, or give drop_block_rate"
        )


def _check_spec_ordering(spec: SpecFields) -> None:
    fitting = _SPEC_ORDERINGS[spec.is_preactivation]
    if spec.ordering not in fitting:
        other = spec.block.removeprefix("preact_") if spec.is_preactivation else f"preact_{spec.block}"
        raise SpecError(
            "ordering",
            spec.ordering,
            f"a {spec.block} block cannot be ordered so",
            f"use block={other}, or ordering={' or '.join(fitting)}",
        )
    if not spec.zero_init_last:
        return
    if spec.settled_ordering == "full_preactivation":
        raise SpecError(
            "zero_init_last",
            True,
            f"a {spec.block} block ends in a convolution, not in a norm",
            "leave zero_init_last at false, or use block=" + spec.block.removeprefix("preact_"),
        )
    if spec.settled_ordering in _NO_ZERO_INIT:
        raise SpecError(
            "zero_init_last",
            True,
            f"with ordering={spec.ordering} {_NO_ZERO_INIT[spec.settled_ordering]}",
            "leave zero_init_last at false, or use ordering=original",
        )
    if spec.norm == "frozen":
        raise SpecError(
            "zero_init_last",
            True,
            "a frozen norm would stay at zero",
            "leave zero_init_last at false, or use norm=batch",
        )


def check_spec_shape(spec: SpecFields) -> None:
    """Check what depends on the number of stages, so only once the stem is known.

    Raises:
        SpecError: Names the field.
    """
    stages = spec.num_stages
    for name in ("channels", "strides"):
        values = getattr(spec, name)
        if values and len(values) != stages:
            raise SpecError(name, values, f"the network has {stages} stages", f"list {stages} numbers, one per stage")
    if not spec.depths and depths_of(spec.block, spec.depth, stages) is None:
        raise _impossible_depth(spec)
    _check_spec_pools(spec)
    _check_spec_exits(spec)
    if spec.drop_path_rate and sum(spec.stage_depths) == 1:
        raise SpecError(
            "drop_path_rate",
            spec.drop_path_rate,
            "it rises from 0 at the first block, and the network has one block",
            "leave it at 0.0, or give more blocks",
        )
    _check_spec_groups(spec)
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


def _check_spec_pools(spec: SpecFields) -> None:
    if spec.has_small_stem and spec.stem_pool not in ("auto", "none"):
        raise SpecError(
            "stem_pool",
            spec.stem_pool,
            f"stem {spec.stem} keeps the image's size",
            "leave it at auto, or use stem=imagenet",
        )
    if spec.downsample != "stride" and all(stride == 1 for stride in spec.stage_strides):
        raise SpecError(
            "downsample", spec.downsample, "no stage has a stride", "leave it at stride, or give strides above 1"
        )


def _check_spec_exits(spec: SpecFields) -> None:
    if any(after <= before for before, after in pairwise(spec.exits)):
        raise SpecError("exits", spec.exits, "stages must be named once, in order", "list them ascending")
    if spec.exits and spec.exits[-1] >= spec.num_stages:
        reason = f"the network has {spec.num_stages} stages, and the last one has the network's own classifier"
        last = spec.num_stages - 1
        raise SpecError("exits", spec.exits, reason, f"name stages 1 to {last}" if last else "leave it empty")


def _check_spec_groups(spec: SpecFields) -> None:
    """Check that groups of convolutions and of norms come out whole."""
    # A width is to blame where the paper's own width would do.
    for channels in spec.stage_channels if spec.is_bottleneck else ():
        if spec.inner_channels(channels) < 1:
            raise SpecError(
                "base_width",
                spec.base_width,
                f"a stage of {channels} channels would get no channel in its 3x3",
                f"use at least {-(-64 // channels)}, or more channels",
            )
        if spec.cardinality > 1 and channels * spec.base_width % 64:
            blamed = "cardinality" if spec.width == 1.0 else "width"
            step = 64 // gcd(64, spec.base_width)
            raise SpecError(
                blamed,
                getattr(spec, blamed),
                f"the 3x3 of a stage of {channels} channels has {spec.cardinality} groups, and each would get "
                f"{channels * spec.base_width / 64:g} channels",
                f"use channels that are multiples of {step} after width, for example {-(-channels // step) * step}, "
                "or cardinality=1",
            )
    if spec.norm != "group":
        return
    common = gcd(*_normed_channels(spec))
    for channels in _normed_channels(spec):
        if channels % spec.settled_norm_size:
            blamed = "norm_size" if spec.width == 1.0 else "width"
            raise SpecError(
                blamed,
                getattr(spec, blamed),
                f"a norm of {channels} channels does not part into {spec.settled_norm_size} groups",
                f"use norm_size={gcd(common, spec.settled_norm_size)}, which parts every norm's channels, or channels "
                f"that are multiples of {spec.settled_norm_size}",
            )


def _normed_channels(spec: SpecFields) -> list[int]:
    """Return the numbers of channels that norms stand behind, in the order of the network, each once."""
    found = [*spec.stem_channels_inside()] if spec.stem in ("deep", "tiered") else []
    found.append(spec.stem_width)
    for channels in spec.stage_channels:
        found += [spec.inner_channels(channels)] if spec.is_bottleneck else []
        found.append(channels * spec.expansion)
    return list(dict.fromkeys(found))


def _impossible_depth(spec: SpecFields) -> SpecError:
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
