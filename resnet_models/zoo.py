"""Networks by the names that papers and torchvision give them: name -> `ModelSpec`."""

from __future__ import annotations

from difflib import get_close_matches

from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec

_ZOO_CIFAR_SHAPE: dict[str, object] = {"stem": "cifar", "num_classes": 10}
_ZOO_IMAGENET_SHAPE: dict[str, object] = {"stem": "imagenet", "num_classes": 1000}


def _make_zoo() -> dict[str, dict[str, object]]:
    zoo: dict[str, dict[str, object]] = {}
    # He et al. 2015, arXiv:1512.03385, table 1; the stride sits in the 3x3, as in torchvision.
    for depth in (18, 34):
        zoo[f"resnet{depth}"] = {**_ZOO_IMAGENET_SHAPE, "block": "basic", "depth": depth}
    for depth in (50, 101, 152):
        bottleneck = {**_ZOO_IMAGENET_SHAPE, "block": "bottleneck", "depth": depth}
        zoo[f"resnet{depth}"] = bottleneck
        zoo[f"resnet{depth}_v1"] = {**bottleneck, "stride_placement": "v1"}  # as printed
        # He et al. 2018, arXiv:1812.01187, fig. 2
        zoo[f"resnet{depth}d"] = {**bottleneck, "stem": "deep", "shortcut": "average_pool"}
    # Xie et al. 2017, arXiv:1611.05431, table 1 and sec. 5
    for depth, cardinality, base_width in ((50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 64, 4)):
        zoo[f"resnext{depth}_{cardinality}x{base_width}d"] = {
            **zoo[f"resnet{depth}"],
            "cardinality": cardinality,
            "base_width": base_width,
        }
    for cardinality in (8, 16):
        zoo[f"resnext29_{cardinality}x64d"] = {
            **_ZOO_CIFAR_SHAPE,
            "block": "bottleneck",
            "depth": 29,
            "channels": (64, 128, 256),
            "cardinality": cardinality,
        }
    # Zagoruyko & Komodakis 2016, arXiv:1605.07146: tables 4, 5 (CIFAR) and sec. 3 (ImageNet, inner width doubled)
    for depth in (50, 101):
        zoo[f"wide_resnet{depth}_2"] = {**zoo[f"resnet{depth}"], "base_width": 128}
    for depth, width in ((16, 8), (16, 10), (22, 8), (22, 10), (28, 10), (28, 12), (40, 1), (40, 2), (40, 4), (40, 8)):
        zoo[f"wrn{depth}_{width}"] = {
            **_ZOO_CIFAR_SHAPE,
            "block": "preact_basic",
            "depth": depth,
            "width": float(width),
            "stem_channels": 16,  # the paper leaves conv1 unwidened
        }
    # He et al. 2015, sec. 4.2 and table 6: option A "in all cases"
    for depth in (20, 32, 44, 56, 110, 1202):
        zoo[f"resnet{depth}"] = {**_ZOO_CIFAR_SHAPE, "block": "basic", "depth": depth, "shortcut": "zero_pad"}
    # He et al. 2016, arXiv:1603.05027, table 4
    for depth in (164, 1001):
        zoo[f"preact_resnet{depth}"] = {**_ZOO_CIFAR_SHAPE, "block": "preact_bottleneck", "depth": depth}
    return zoo


_ZOO = _make_zoo()


def spec_names() -> list[str]:
    """Return every name that `named_spec` knows, in the order of the table."""
    return list(_ZOO)


def named_spec(name: str, **changes: object) -> ModelSpec:
    """Return a named network's spec with fields changed, e.g. `named_spec("resnet50", num_classes=10)`.

    Raises:
        SpecError: The name is unknown (the nearest is named), or a change cannot be honoured.
    """
    if name not in _ZOO:
        near = get_close_matches(name, _ZOO, n=1)
        cure = f"did you mean {near[0]}?" if near else f"the names are {', '.join(_ZOO)}"
        raise SpecError("name", name, "no network has that name", cure)
    if changes.get("depths"):
        changes = {"depth": 0, **changes}  # the name's depth gives way to explicit stages
    return ModelSpec.from_json({**_ZOO[name], **changes})
