"""timm's names for the weights of its residual networks, in ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from resnet_models.spec import ModelSpec
from resnet_models.state_dict import WeightsError

# `ResNet` of timm (post-activation): pattern -> ours; \1, \2 are kept as they are.
_TIMM_V1_NAMES: tuple[tuple[str, str], ...] = (
    (r"^maxpool\.0\.", "stem.pool.conv."),  # ResNet-RS: a convolution in the pooling's place
    (r"^maxpool\.1\.", "stem.pool.norm."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.se\.fc1\.", ".attention.reduce."),
    (r"\.se\.fc2\.", ".attention.expand."),
    (r"\.se\.conv\.", ".attention.conv."),
    (r"^fc\.", "head."),
)
_TIMM_PLAIN_STEM: tuple[tuple[str, str], ...] = ((r"^conv1\.", "stem.conv."), (r"^bn1\.", "stem.norm."))
_TIMM_DEEP_STEM: tuple[tuple[str, str], ...] = (
    (r"^conv1\.0\.", "stem.conv1."),
    (r"^conv1\.1\.", "stem.norm1."),
    (r"^conv1\.3\.", "stem.conv2."),
    (r"^conv1\.4\.", "stem.norm2."),
    (r"^conv1\.6\.", "stem.conv3."),
    (r"^bn1\.", "stem.norm3."),
)
# `ResNetV2` of timm (pre-activation).
_TIMM_V2_NAMES: tuple[tuple[str, str], ...] = (
    (r"\.blocks\.", "."),
    (r"\.downsample\.", ".shortcut."),
    (r"^head\.fc\.", "head."),
)
_TIMM_STEMS = ("imagenet", "deep", "tiered")
_TIMM_SHORTCUTS = ("projection", "average_pool")


def from_timm(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Return a timm residual network's state dict, or its gradients, under our names, ready for `load_strict`.

    Tensors stay as they are but for one: the classifier of timm's pre-activation networks is a 1x1 convolution
    (classes, channels, 1, 1), ours is linear.

    Args:
        state: Of a `ResNet` (any attention, anti-aliasing, stem) or a `ResNetV2` with plain convolutions.
        spec: What is to be loaded.

    Raises:
        WeightsError: timm has no network of the spec's kind.
    """
    fits = spec.stem in _TIMM_STEMS and spec.shortcut in _TIMM_SHORTCUTS and spec.stride_placement == "v1.5"
    if not fits or spec.ordering not in ("auto", "original", "full_preactivation"):
        raise WeightsError(
            f"timm has no network with stem={spec.stem}, shortcut={spec.shortcut}, "
            f"stride_placement={spec.stride_placement}, ordering={spec.ordering}; its weights fit "
            f"stem={' or '.join(_TIMM_STEMS)}, shortcut={' or '.join(_TIMM_SHORTCUTS)}, stride_placement=v1.5, "
            "ordering=auto"
        )
    rename = _rename_v2 if spec.is_preactivation else _rename_v1
    renamed = {rename(name, spec): tensor for name, tensor in state.items()}
    head = renamed.get("head.weight")
    if head is not None and head.dim() == 4:
        renamed["head.weight"] = head.flatten(1)
    return renamed


def _rename_v1(name: str, spec: ModelSpec) -> str:
    stem = _TIMM_PLAIN_STEM if spec.stem == "imagenet" else _TIMM_DEEP_STEM
    # The pooling before an average-pool shortcut's convolution takes number 0.
    first = 1 if spec.shortcut == "average_pool" else 0
    shortcut = (
        (rf"\.downsample\.{first}\.", ".shortcut.conv."),
        (rf"\.downsample\.{first + 1}\.", ".shortcut.norm."),
    )
    for pattern, ours in (*stem, *shortcut, *_TIMM_V1_NAMES):
        name = re.sub(pattern, ours, name)
    return re.sub(r"^layer(\d+)\.", lambda found: f"stages.{int(found[1]) - 1}.", name)


def _rename_v2(name: str, _spec: ModelSpec) -> str:
    for pattern, ours in _TIMM_V2_NAMES:
        name = re.sub(pattern, ours, name)
    return name
