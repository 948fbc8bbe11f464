"""Networks by the names that papers, torchvision and timm give them: name -> `ModelSpec`."""

from __future__ import annotations

from difflib import get_close_matches

from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec

_ZooFields = dict[str, object]
_ZOO_CIFAR_SHAPE: _ZooFields = {"stem": "cifar", "num_classes": 10}
_ZOO_IMAGENET_SHAPE: _ZooFields = {"stem": "imagenet", "num_classes": 1000}
# Letters behind a depth. C and D: He et al. 2018, arXiv:1812.01187, fig. 2; S (wider stem) and T (tiered stem): timm's.
_ZOO_VARIANTS: dict[str, _ZooFields] = {
    "": {},
    "c": {"stem": "deep"},
    "d": {"stem": "deep", "shortcut": "average_pool"},
    "s": {"stem": "deep", "stem_channels": 128},
    "t": {"stem": "tiered", "shortcut": "average_pool"},
}
_ZOO_SE: _ZooFields = {"attention": "se"}
_ZOO_ECA: _ZooFields = {"attention": "eca"}
_ZOO_BLUR: _ZooFields = {"stem_pool": "blur", "downsample": "blur"}
_ZOO_AVERAGE: _ZooFields = {"stem_pool": "average", "downsample": "average"}
_ZOO_RS: _ZooFields = {**_ZOO_VARIANTS["d"], "attention": "se", "attention_reduction": 4, "stem_pool": "convolution"}
# Depths that no paper's table lists: timm's 269, He et al. 2021's (arXiv:2103.07579, table 1 of the appendix).
_ZOO_DEPTHS: dict[int, tuple[int, ...]] = {
    269: (3, 30, 48, 8),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}


def _zoo_imagenet(depth: int, *parts: _ZooFields, groups: tuple[int, int] = (1, 64)) -> _ZooFields:
    """Return a four-stage network: depth, then its parts, later ones winning; groups are cardinality, base width."""
    fields: _ZooFields = {**_ZOO_IMAGENET_SHAPE, "block": "basic" if depth in (10, 18, 34) else "bottleneck"}
    fields.update({"depths": _ZOO_DEPTHS[depth]} if depth in _ZOO_DEPTHS else {"depth": depth})
    if groups != (1, 64):
        fields.update(cardinality=groups[0], base_width=groups[1])
    for part in parts:
        fields.update(part)
    return fields


def _zoo_papers() -> dict[str, _ZooFields]:
    """Return what papers and torchvision name."""
    zoo: dict[str, _ZooFields] = {}
    # He et al. 2015, arXiv:1512.03385, table 1; the stride sits in the 3x3, as in torchvision.
    for depth in (18, 34, 50, 101, 152):
        zoo[f"resnet{depth}"] = _zoo_imagenet(depth)
    for depth in (50, 101, 152):
        zoo[f"resnet{depth}_v1"] = _zoo_imagenet(depth, {"stride_placement": "v1"})  # as printed
    # Xie et al. 2017, arXiv:1611.05431, table 1 and sec. 5
    for depth, cardinality, base_width in (
        (50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 32, 16), (101, 32, 32), (101, 64, 4),
    ):  # fmt: skip
        zoo[f"resnext{depth}_{cardinality}x{base_width}d"] = _zoo_imagenet(depth, groups=(cardinality, base_width))
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
        zoo[f"wide_resnet{depth}_2"] = _zoo_imagenet(depth, groups=(1, 128))
    for depth, width in ((16, 8), (16, 10), (22, 8), (22, 10), (28, 10), (28, 12), (40, 1), (40, 2), (40, 4), (40, 8)):
        zoo[f"wrn{depth}_{width}"] = {
            **_ZOO_CIFAR_SHAPE,
            "block": "preact_basic",
            "depth": depth,
            "width": float(width),
            "stem_channels": 16,  # the paper leaves conv1 unwidened
        }
    zoo["wrn28_10_dropout"] = {**zoo["wrn28_10"], "block_dropout": 0.3}  # table 6
    # He et al. 2015, sec. 4.2 and table 6: option A "in all cases"
    for depth in (20, 32, 44, 56, 110, 1202):
        zoo[f"resnet{depth}"] = {**_ZOO_CIFAR_SHAPE, "block": "basic", "depth": depth, "shortcut": "zero_pad"}
    # Huang et al. 2016, arXiv:1603.09382, sec. 4
    for depth in (110, 1202):
        zoo[f"resnet{depth}_stochastic"] = {**zoo[f"resnet{depth}"], "drop_path_rate": 0.5}
    # He et al. 2016, arXiv:1603.05027, tables 2 to 4
    for depth in (164, 1001):
        zoo[f"resnet{depth}"] = {**_ZOO_CIFAR_SHAPE, "block": "bottleneck", "depth": depth}
        zoo[f"preact_resnet{depth}"] = {**_ZOO_CIFAR_SHAPE, "block": "preact_bottleneck", "depth": depth}
    zoo["preact_resnet110"] = {**_ZOO_CIFAR_SHAPE, "block": "preact_basic", "depth": 110}
    # Zhang 2019, arXiv:1904.11486, sec. 4.2: its projections are blurred too, timm's are not
    for depth in (18, 34, 50, 101):
        zoo[f"resnet{depth}_antialiased"] = _zoo_imagenet(depth, _ZOO_BLUR, {"shortcut": "blur_pool"})
    return zoo


def _zoo_timm() -> dict[str, _ZooFields]:
    """Return what timm alone names, timm 1.0; its deprecated second names are left out."""
    zoo: dict[str, _ZooFields] = {}
    for name in (
        "10t", "14t", "18d", "26", "26d", "26t", "34d", "50c", "50d", "50s", "50t", "101c", "101d", "101s", "152c",
        "152d", "152s", "200", "200d",
    ):  # fmt: skip
        zoo[f"resnet{name}"] = _zoo_imagenet(*_zoo_variant(name))
    zoo["resnet50_gn"] = _zoo_imagenet(50, {"norm": "group"})
    for prefix, attention, names in (
        ("se", _ZOO_SE, ("18", "34", "50", "50t", "101", "152", "152d", "200d", "269d")),
        ("eca", _ZOO_ECA, ("26t", "50d", "50t", "101d", "200d", "269d")),
    ):
        for name in names:
            zoo[f"{prefix}resnet{name}"] = _zoo_imagenet(*_zoo_variant(name), attention)
    zoo["ecaresnetlight"] = _zoo_imagenet(
        50, _ZOO_ECA, {"depth": 0, "depths": (1, 1, 11, 3), "shortcut": "average_pool"}
    )
    zoo["resnext50d_32x4d"] = _zoo_imagenet(*_zoo_variant("50d"), groups=(32, 4))
    for prefix, attention, name, groups in (
        ("se", _ZOO_SE, "26d", (32, 4)),
        ("se", _ZOO_SE, "26t", (32, 4)),
        ("se", _ZOO_SE, "50", (32, 4)),
        ("se", _ZOO_SE, "101", (32, 4)),
        ("se", _ZOO_SE, "101", (32, 8)),
        ("se", _ZOO_SE, "101d", (32, 8)),
        ("se", _ZOO_SE, "101", (64, 4)),
        ("eca", _ZOO_ECA, "26t", (32, 4)),
        ("eca", _ZOO_ECA, "50t", (32, 4)),
    ):
        fields = _zoo_imagenet(*_zoo_variant(name), attention, groups=groups)
        zoo[f"{prefix}resnext{name}_{groups[0]}x{groups[1]}d"] = fields
    for name in ("18", "50", "50d", "101d"):
        zoo[f"resnetblur{name}"] = _zoo_imagenet(*_zoo_variant(name), _ZOO_BLUR)
    for name in ("34d", "50", "50d", "101d"):
        zoo[f"resnetaa{name}"] = _zoo_imagenet(*_zoo_variant(name), _ZOO_AVERAGE)
    zoo["seresnetaa50d"] = {**zoo["resnetaa50d"], **_ZOO_SE}
    zoo["seresnextaa101d_32x8d"] = {**zoo["seresnext101d_32x8d"], **_ZOO_AVERAGE}
    zoo["seresnextaa201d_32x8d"] = {
        **zoo["seresnextaa101d_32x8d"],
        "depth": 0,
        "depths": (3, 24, 36, 4),
        "stem_channels": 128,
    }
    # Bello et al. 2021, arXiv:2103.07579
    for depth in (50, 101, 152, 200, 270, 350, 420):
        zoo[f"resnetrs{depth}"] = _zoo_imagenet(depth, _ZOO_RS)
    # He et al. 2016 on ImageNet; 200 is the paper's own, table 5
    for name in ("18", "18d", "34", "34d", "50", "50d", "50t", "101", "101d", "152", "152d", "200"):
        fields = _zoo_imagenet(*_zoo_variant(name))
        zoo[f"resnetv2_{name}"] = {**fields, "block": f"preact_{fields['block']}"}
    zoo["resnetv2_50d_gn"] = {**zoo["resnetv2_50d"], "norm": "group"}
    return zoo


def _zoo_variant(name: str) -> tuple[int, _ZooFields]:
    """Return the depth and the parts behind a name like "50d"."""
    letter = name[-1] if name[-1].isalpha() else ""
    return int(name.removesuffix(letter)), _ZOO_VARIANTS[letter]


_ZOO = {**_zoo_papers(), **_zoo_timm()}


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
    elif changes.get("depth"):
        changes = {"depths": (), **changes}
    return ModelSpec.from_json({**_ZOO[name], **changes})
