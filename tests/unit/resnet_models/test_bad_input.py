"""Descriptions, weights and images that cannot be used: each refusal's text names what, its value and the cure."""

from __future__ import annotations

import re

import pytest
import torch

from resnet_models import create
from resnet_models.errors import SpecError
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import WeightsError, check_finite, load_strict, pack_weights, unpack_weights
from resnet_models.zoo import named_spec

CIFAR: dict[str, object] = {"stem": "cifar", "num_classes": 3}
RESNEXT: dict[str, object] = {**CIFAR, "block": "bottleneck", "depths": [1], "cardinality": 32, "base_width": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {**CIFAR, "norm": "group", "norm_size": 32, "width": 0.75, "channels": [32, 64], "depths": [1, 1]},
            "width is 0.75: a norm of 24 channels does not part into 32 groups; use norm_size=8, which parts every "
            "norm's channels, or channels that are multiples of 32",
        ),
        (
            {**CIFAR, "norm": "group", "depths": [1, 1], "channels": [64, 80]},
            "norm_size is 0: a norm of 80 channels does not part into 32 groups; use norm_size=16, which parts every "
            "norm's channels, or channels that are multiples of 32",
        ),
        (
            {**RESNEXT, "channels": [24]},
            "cardinality is 32: the 3x3 of a stage of 24 channels has 32 groups, and each would get 1.5 channels; use "
            "channels that are multiples of 16 after width, for example 32, or cardinality=1",
        ),
        (
            {**RESNEXT, "channels": [64], "width": 0.3},
            "width is 0.3: the 3x3 of a stage of 19 channels has 32 groups, and each would get 1.1875 channels; use "
            "channels that are multiples of 16 after width, for example 32, or cardinality=1",
        ),
        (
            {"ordering": "full_preactivation"},
            "ordering is 'full_preactivation': a basic block cannot be ordered so; use block=preact_basic, or "
            "ordering=auto or original or norm_after_addition or relu_before_addition",
        ),
        (
            {"block": "preact_bottleneck", "ordering": "original"},
            "ordering is 'original': a preact_bottleneck block cannot be ordered so; use block=bottleneck, or "
            "ordering=auto or relu_only_preactivation or full_preactivation",
        ),
        (
            {"ordering": "norm_after_addition", "zero_init_last": True},
            "zero_init_last is True: with ordering=norm_after_addition the last norm stands after the addition, so "
            "that zero would stop the shortcut too; leave zero_init_last at false, or use ordering=original",
        ),
        (
            {"ordering": "relu_before_addition", "zero_init_last": True},
            "zero_init_last is True: with ordering=relu_before_addition the activation after the last norm passes no "
            "gradient at zero, so that the branch is dead; leave zero_init_last at false, or use ordering=original",
        ),
        (
            {"norm": "frozen", "zero_init_last": True},
            "zero_init_last is True: a frozen norm would stay at zero; leave zero_init_last at false, or use "
            "norm=batch",
        ),
        (
            {"norm_size": 8},
            "norm_size is 8: norm batch has no size; leave it at 0, or use norm=group or norm=ghost",
        ),
        (
            {"attention": "eca", "attention_reduction": 4},
            "attention_reduction is 4: attention eca reduces nothing; leave it at 16, or use attention=se",
        ),
        (
            {"drop_block_size": 3},
            "drop_block_size is 3: drop_block_rate is 0; leave it at 7, or give drop_block_rate",
        ),
        (
            {**CIFAR, "stem_pool": "max"},
            "stem_pool is 'max': stem cifar keeps the image's size; leave it at auto, or use stem=imagenet",
        ),
        (
            {**CIFAR, "downsample": "blur", "depths": [1, 1], "strides": [1, 1]},
            "downsample is 'blur': no stage has a stride; leave it at stride, or give strides above 1",
        ),
        (
            {**CIFAR, "drop_path_rate": 0.1, "depths": [1]},
            "drop_path_rate is 0.1: it rises from 0 at the first block, and the network has one block; leave it at "
            "0.0, or give more blocks",
        ),
        (
            {"head_dropout": 1.0},
            "head_dropout is 1.0: it must be a number of at least 0 and below 1; 0.0 turns it off",
        ),
        (
            {**CIFAR, "exits": [3]},
            "exits is [3]: the network has 3 stages, and the last one has the network's own classifier; name stages 1 "
            "to 2",
        ),
        ({**CIFAR, "exits": [2, 1]}, "exits is [2, 1]: stages must be named once, in order; list them ascending"),
        (
            {"stem": "whitening", "in_channels": 200},
            "in_channels is 200: stem whitening makes 3600 maps of that many; use stem=cifar, or at most 64 channels",
        ),
        (
            {"norm": "layer"},
            "norm is 'layer': no such choice; use one of batch, ghost, sync, group, frozen",
        ),
    ],
)
def test_descriptions_that_cannot_be_honoured(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        ModelSpec.from_json(changes)


@pytest.mark.parametrize("values", [None, [], "resnet50", {1: 2}])
def test_what_is_no_table_of_fields(values: object) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(f'a spec is read from fields by name, not from {values!r}')}$"):
        ModelSpec.from_json(values)  # type: ignore[arg-type]


def test_the_cures_work() -> None:
    build(ModelSpec.from_json({**CIFAR, "norm": "group", "norm_size": 16, "depths": [1, 1], "channels": [64, 80]}))
    build(ModelSpec.from_json({**RESNEXT, "channels": [32]}))


def test_an_image_smaller_than_the_strides_allow() -> None:
    message = re.escape(
        "image_size_px is 16: the network strides over 32 pixels (stem 4, stages 1 x 2 x 2 x 2); use images of at "
        "least 17 px, smaller strides, or stem=cifar"
    )
    spec = named_spec("resnet18", num_classes=3)
    with pytest.raises(SpecError, match=message):
        spec.for_images(image_size_px=16)
    network = build(spec).eval()
    with pytest.raises(SpecError, match=message):
        network(torch.zeros(1, 3, 16, 300))
    assert network(torch.zeros(1, 3, 17, 17)).shape == (1, 3)
    blurred = create("resnetblur18", num_classes=3).eval()
    assert blurred(torch.zeros(1, 3, 17, 17)).shape == (1, 3), "every map that is blurred has two pixels"


def test_images_with_other_channels() -> None:
    message = re.escape(
        "in_channels is 3: the images have shape [2, 1, 32, 32]; give (N, 3, H, W), or build the network with their "
        "number of channels"
    )
    network = build(ModelSpec(stem="cifar", depths=(1,), num_classes=3))
    with pytest.raises(SpecError, match=message):
        network(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=re.escape("sample_keys has shape [3]; there are 2 images")):
        network(torch.zeros(2, 3, 32, 32), sample_keys=torch.zeros(3, dtype=torch.int64))


def test_weights_of_another_depth_name_the_first_mismatch() -> None:
    shallow, deep = create("resnet20"), create("resnet32")
    with pytest.raises(
        WeightsError,
        match=r"the weights lack stages\.0\.3\.conv1\.weight, which the network has with shape \[16, 16, 3, 3\]",
    ):
        load_strict(deep, shallow.state_dict())
    with pytest.raises(WeightsError, match=r"the weights hold stages\.0\.3\.conv1\.weight, which the network lacks"):
        load_strict(shallow, deep.state_dict())


def test_half_a_file_another_type_and_values_that_are_no_numbers() -> None:
    network = create("resnet20")
    data = pack_weights(network.state_dict())
    with pytest.raises(WeightsError, match="the weights are no readable safetensors file: "):
        unpack_weights(data[: len(data) // 2])
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in unpack_weights(data).items()
    }
    with pytest.raises(WeightsError, match=r"stem\.conv\.weight is torch\.float16; the network's is torch\.float32"):
        load_strict(network, halves)
    state = unpack_weights(data)
    check_finite(state)
    state["head.bias"][2:4] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(WeightsError, match=r"^head\.bias holds 2 values that are infinite or not a number, of 10$"):
        check_finite(state)


def test_create_makes_a_named_network() -> None:
    network = create("resnet50", num_classes=10, width=0.5, seed=3)
    assert (network.spec.num_classes, network.spec.width, network.head.in_features) == (10, 0.5, 1024)
    assert pack_weights(network.state_dict()) == pack_weights(build(network.spec, seed=3).state_dict())
    with pytest.raises(SpecError, match="name is 'resnet5O': no network has that name; did you mean resnet5"):
        create("resnet5O")
    with pytest.raises(AttributeError, match="module 'resnet_models' has no attribute 'make'"):
        __import__("resnet_models").make  # noqa: B018
