from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from resnet_models.depth import depth_choices, depths_of
from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec, spec_names
from tests.random_specs import random_spec


@given(st.integers(0, 2**32))
def test_json_round_trip(seed: int) -> None:
    spec = random_spec(random.Random(seed))
    again = ModelSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert json.dumps(again.to_json()) == json.dumps(spec.to_json())


def test_spec_loads_without_torch() -> None:
    code = (
        "import sys, resnet_models.spec, resnet_models.zoo\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("block", "depth", "stages", "expected"),
    [
        ("basic", 18, 4, (2, 2, 2, 2)),
        ("bottleneck", 101, 4, (3, 4, 23, 3)),
        ("basic", 20, 3, (3, 3, 3)),
        ("basic", 1202, 3, (200, 200, 200)),
        ("preact_bottleneck", 1001, 3, (111, 111, 111)),
        ("preact_basic", 28, 3, (4, 4, 4)),  # counted as Wide ResNets do
        ("preact_basic", 26, 3, (4, 4, 4)),  # counted as He et al. do
        ("basic", 0, 4, (2, 2, 2, 2)),
        ("basic", 0, 3, (3, 3, 3)),
        ("basic", 14, 2, (3, 3)),
        ("basic", 28, 3, None),
        ("basic", 50, 4, None),
        ("basic", 2, 3, None),
    ],
)
def test_depth_is_the_papers_layer_count(block: str, depth: int, stages: int, expected: tuple[int, ...] | None) -> None:
    assert depths_of(block, depth, stages) == expected


def test_every_listed_depth_can_be_built() -> None:
    for block in ("basic", "bottleneck", "preact_basic", "preact_bottleneck"):
        for stages in (2, 3, 4, 5):
            for depth in depth_choices(block, stages):
                assert depths_of(block, depth, stages) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"depth": 21, "stem": "cifar"},
            "depth is 21: 3 stages of basic blocks cannot have that many layers; "
            "the nearest that can be built: 20 or 26; or give depths=[...]",
        ),
        (
            {"depth": 18, "stem": "cifar"},
            "depth is 18: 3 stages of basic blocks cannot have that many layers; "
            "the nearest that can be built: 20 or 14; or give depths=[...]; "
            "18 is a network of four stages: add channels=[64, 128, 256, 512]",
        ),
        (
            {"depth": 50, "stem": "imagenet"},
            "depth is 50: 4 stages of basic blocks cannot have that many layers; "
            "the nearest that can be built: 34; or give depths=[...]",
        ),
        (
            {"cardinality": 32},
            "cardinality is 32: a basic block has no 1x1-3x3-1x1 to apply it to; "
            "use block=bottleneck, or leave cardinality at 1",
        ),
        (
            {"block": "preact_basic", "stride_placement": "v1"},
            "stride_placement is 'v1': a preact_basic block has no 1x1-3x3-1x1 to apply it to; "
            "use block=preact_bottleneck, or leave stride_placement at v1.5",
        ),
        (
            {"block": "preact_bottleneck", "zero_init_last": True},
            "zero_init_last is True: a preact_bottleneck block ends in a convolution, not in a norm; "
            "leave zero_init_last at false, or use block=bottleneck",
        ),
        (
            {"depth": 20, "depths": (3, 3, 3)},
            "depth is 20: depths is given too; give one of them: set depth=0 or depths=[]",
        ),
        (
            {"stem": "cifar", "shortcut": "zero_pad", "depths": (1, 1), "channels": (64, 32)},
            "shortcut is 'zero_pad': zeros can only widen, and a stage goes from 64 to 32 channels; "
            "use shortcut=projection",
        ),
        (
            {"stem": "cifar", "depths": (1, 1), "channels": (64, 32, 16)},
            "channels is [64, 32, 16]: the network has 2 stages; list 2 numbers, one per stage",
        ),
        (
            {"stem": "cifar", "block": "bottleneck", "depths": (1,), "channels": (8,), "base_width": 4},
            "base_width is 4: a stage of 8 channels would get no channel in its 3x3; use at least 8, or more channels",
        ),
        ({"block": "dense"}, "block is 'dense': no such choice; use one of basic, bottleneck, preact_basic, "),
        ({"width": 0.0}, "width is 0.0: it must be a number above 0 and at most 64; 1.0 is the paper's width"),
        ({"in_channels": 0}, "in_channels is 0: it is out of range; give whole numbers from 1 to 1024"),
        ({"depths": (2, 0)}, "depths is 0: it is out of range; give whole numbers from 1 to 1000"),
        ({"depths": [2, 2]}, "depths is [2, 2]: it must list whole numbers, 8 at most; give one per stage"),
        ({"num_classes": True}, "num_classes is True: it is out of range"),
    ],
)
def test_refusals_name_field_value_and_cure(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        ModelSpec(**changes)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_refusals_survive_pickle() -> None:
    error = SpecError("depth", 21, "no", "use 20")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.field) == ("depth is 21: no; use 20", "depth")


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"depths_ is 2: ModelSpec has no such field; did you mean depths\?"):
        ModelSpec.from_json({"depths_": 2})


def test_settling_for_images() -> None:
    small = ModelSpec().for_images(image_size_px=32, num_classes=10)
    assert (small.stem, small.stage_channels, small.num_classes) == ("cifar", (16, 32, 64), 10)
    large = ModelSpec(depth=50, block="bottleneck", width=0.5).for_images(image_size_px=65, num_classes=7)
    assert (large.stem, large.stage_channels, large.stem_width) == ("imagenet", (32, 64, 128, 256), 32)
    assert small.for_images(image_size_px=500) == small
    with pytest.raises(SpecError, match="num_classes is 10: the data has 12 classes; leave num_classes at 0"):
        small.for_images(image_size_px=32, num_classes=12)
    with pytest.raises(SpecError, match="nearest that can be built: 34 or 18; or give depths") as caught:
        ModelSpec(depth=32).for_images(image_size_px=224, num_classes=12)
    assert caught.value.field == "depth"


def test_checked_when_nested_in_pydantic() -> None:
    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
        model: ModelSpec = ModelSpec()

    config = Config.model_validate_json('{"model": {"channels": [64, 256, 256], "width": 2}}')
    assert config.model == ModelSpec(channels=(64, 256, 256), width=2.0)
    with pytest.raises(ValidationError, match="cardinality is 3: a basic block has no"):
        Config.model_validate_json('{"model": {"cardinality": 3}}')
    with pytest.raises(ValidationError, match=r"model\.depht"):
        Config.model_validate_json('{"model": {"depht": 3}}')


def test_named_specs() -> None:
    assert len(spec_names()) == len(set(spec_names())) >= 35
    changed = named_spec("resnet50", num_classes=10, depths=(1, 1, 1, 1))
    assert (changed.depths, changed.depth, changed.num_classes, changed.block) == ((1, 1, 1, 1), 0, 10, "bottleneck")
    with pytest.raises(SpecError, match="name is 'resnet51': no network has that name; did you mean resnet"):
        named_spec("resnet51")
    with pytest.raises(SpecError, match="colour is 3: ModelSpec has no such field"):
        named_spec("resnet50", colour=3)
