"""Over the whole space of descriptions: spec -> network -> spec -> JSON -> network is the identity, or is refused."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_models.errors import SpecError
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec
from tests.random_specs import any_values, random_spec

FIELDS = [field.name for field in fields(ModelSpec)]


def shapes(network: ResNet) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}


def check_round_trip(spec: ModelSpec) -> None:
    with torch.device("meta"):
        network = ResNet(spec)
    text = json.dumps(network.spec.to_json(), allow_nan=False)
    again = ModelSpec.from_json(json.loads(text))
    assert again == spec
    assert json.dumps(again.to_json()) == text
    with torch.device("meta"):
        rebuilt = ResNet(again)
    assert shapes(rebuilt) == shapes(network)
    assert str(rebuilt) == str(network), "the same modules with the same settings"


def check_any(seed: int) -> bool:
    """Return whether the random description could be built; a refusal names field, value and cure."""
    values = any_values(random.Random(seed))
    try:
        spec = ModelSpec(**values)
        if spec.stem == "auto" or not spec.num_classes:
            spec = spec.for_images(image_size_px=max(64, spec.total_stride + 1), num_classes=spec.num_classes or 3)
    except SpecError as refusal:
        check_refusal(refusal, values)
        return False
    if max(spec.stage_channels) * spec.expansion <= 65536 and sum(spec.stage_depths) <= 64:
        check_round_trip(spec)
    return True


def check_refusal(error: SpecError, values: dict[str, object]) -> None:
    """Check that a refusal names a field, the value that was given for it, and a cure."""
    given_value = values.get(error.field, getattr(ModelSpec(), error.field, None))
    named = error.value in given_value if isinstance(given_value, tuple) else False  # one number of a list
    assert error.field in FIELDS
    assert named or error.value is given_value or error.value == given_value, error
    assert error.reason
    assert error.cure
    shown = list(error.value) if isinstance(error.value, tuple) else error.value
    assert str(error) == f"{error.field} is {shown!r}: {error.reason}; {error.cure}"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_a_description_makes_the_same_network_or_is_refused(seed: int) -> None:
    check_any(seed)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_thousand_descriptions() -> None:
    built = sum(check_any(seed) for seed in range(2500))
    assert 500 <= built <= 2000, "both kinds are well represented"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_a_spec_without_later_fields_means_what_it_did(seed: int) -> None:
    spec = random_spec(random.Random(seed))
    later = {field.name: field.default for field in fields(ModelSpec) if field.metadata.get("later")}
    plain = {**spec.to_json(), **{name: list(v) if isinstance(v, tuple) else v for name, v in later.items()}}
    try:
        expected = ModelSpec.from_json(plain)
    except SpecError:
        return  # it leaned on a later field
    assert ModelSpec.from_json({name: value for name, value in plain.items() if name not in later}) == expected


def test_every_field_changes_the_network_or_its_first_weights() -> None:
    base = ModelSpec(
        block="bottleneck", depths=(2, 2), channels=(16, 32), strides=(2, 2), stem="imagenet", num_classes=3
    )
    changes: dict[str, object] = {
        "block": "preact_bottleneck", "depths": (1, 2), "channels": (16, 16), "width": 2.0, "strides": (1, 2),
        "stem": "deep", "stem_channels": 8, "shortcut": "blur_pool", "stride_placement": "v1", "cardinality": 2,
        "base_width": 32, "num_classes": 4, "in_channels": 1, "ordering": "relu_before_addition", "norm": "ghost",
        "activation": "mish", "attention": "se", "stem_pool": "average", "downsample": "average", "head_pool": "gem",
        "drop_path_rate": 0.1, "drop_block_rate": 0.1, "block_dropout": 0.1, "head_dropout": 0.1, "exits": (1,),
    }  # fmt: skip
    # By what stands elsewhere: depth with depths, sizes with their kinds, first weights.
    elsewhere = {"depth", "norm_size", "attention_reduction", "drop_block_size", "zero_init_last"}
    assert set(changes) | elsewhere == set(FIELDS)
    plain = describe(base)
    for name, value in changes.items():
        assert describe(replace(base, **{name: value})) != plain, name  # type: ignore[arg-type]
    for kind, size in (
        ({"norm": "group"}, {"norm_size": 4}),
        ({"norm": "ghost"}, {"norm_size": 4}),
        ({"attention": "se"}, {"attention_reduction": 4}),
        ({"drop_block_rate": 0.1}, {"drop_block_size": 3}),
    ):
        usual = {"norm_size": 16} if kind == {"norm": "group"} else {}
        assert describe(replace(base, **kind, **size)) != describe(replace(base, **kind, **usual)), size  # type: ignore[arg-type]


def describe(spec: ModelSpec) -> str:
    """Return modules, settings and shapes as text."""
    with torch.device("meta"):
        network = ResNet(spec)
    lines = [str(shapes(network))]
    for name, module in network.named_modules():
        own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        lines.append(
            f"{name}: {type(module).__name__} { {k: v for k, v in own.items() if not isinstance(v, ModelSpec)} }"
        )
        lines += [] if list(module.children()) else [str(module)]
    return "\n".join(lines)
