"""The layer table adds up to what is counted elsewhere; memory told is memory kept."""

from __future__ import annotations

import random

import pytest
import torch

from resnet_models.checkpointing import saved_activation_bytes
from resnet_models.complexity import count
from resnet_models.layers import trace_layers
from resnet_models.memory import training_memory
from resnet_models.norm import FrozenBatchNorm
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec
from tests.random_specs import random_spec


@pytest.mark.parametrize("name", ["resnet50d", "seresnet50", "resnet110", "preact_resnet164", "resnext29_8x64d"])
def test_layers_add_up_to_the_whole(name: str) -> None:
    spec = named_spec(name)
    layers, whole = trace_layers(spec, image_size_px=64), count(spec, image_size_px=64)
    assert sum(layer.macs for layer in layers) == whole.macs
    assert sum(layer.parameters for layer in layers) == whole.parameters


def test_every_block_is_listed_once_in_order() -> None:
    network = build(named_spec("resnet34", num_classes=3))
    layers = trace_layers(network.spec, image_size_px=64)
    convolutions = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert [layer.name for layer in layers if "conv," in layer.kind] == convolutions
    shapes = {layer.name: layer.shape for layer in layers}
    assert shapes["stages.2.5.conv2"] == (256, 4, 4)
    assert shapes["head"] == (3,)
    first = layers[0]
    assert (first.kind, first.part, first.block, first.is_beside) == ("7x7 conv, 64, /2", "stem", -1, False)
    beside = next(layer for layer in layers if layer.name == "stages.1.0.shortcut.conv")
    assert (beside.kind, beside.part, beside.block, beside.is_beside) == ("1x1 conv, 128, /2", "stage2", 0, True)


RICH = {
    "se": {"attention": "se"},
    "eca": {"attention": "eca", "block": "bottleneck"},
    "drops": {"drop_path_rate": 0.3, "drop_block_rate": 0.1, "block_dropout": 0.2, "head_dropout": 0.1},
    "group norm, gelu": {"norm": "group", "norm_size": 4, "activation": "gelu"},
    "ghost norm": {"norm": "ghost", "norm_size": 2},
    "frozen norm": {"norm": "frozen"},
    "preactivation d": {"block": "preact_basic", "ordering": "relu_only_preactivation"},
    "ordering c": {"ordering": "relu_before_addition"},
    "gem, blur": {"head_pool": "gem", "stem": "imagenet", "stem_pool": "blur", "downsample": "blur"},
    "whitening": {"stem": "whitening", "head_pool": "concat"},
    "max pools": {"downsample": "max"},
    "max pools before norms": {"downsample": "max_before_norm"},
}


@pytest.mark.parametrize("name", RICH)
def test_memory_of_every_part_is_what_autograd_keeps(name: str) -> None:
    fields = {"stem": "cifar", "depths": (1, 3, 2), "channels": (8, 8, 16), "num_classes": 3, **RICH[name]}
    check_memory(ModelSpec(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_memory_of_any_network_is_what_autograd_keeps(seed: int) -> None:
    check_memory(random_spec(random.Random(seed)))


def check_memory(spec: ModelSpec) -> None:
    network = build(spec).train()
    told = training_memory(spec, image_size_px=32, batch_size=4)
    kept = saved_activation_bytes(network, torch.randn(4, spec.in_channels, 32, 32))
    if spec.norm == "frozen":  # the meta device keeps mean and deviation of each norm, which a CPU does not
        kept += sum(8 * len(norm.weight) for norm in network.modules() if isinstance(norm, FrozenBatchNorm))
    assert told.activation_bytes == kept, spec
    held = [*network.parameters(), *network.buffers()]
    assert told.parameters == sum(tensor.numel() * tensor.element_size() for tensor in held)
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    assert told.gradients == sum(weight.numel() * 4 for weight in trained)
    assert told.total_bytes() == told.activation_bytes + told.parameters + 2 * told.gradients


def test_memory_grows_with_depth_by_equal_blocks() -> None:
    told = {
        depth: training_memory(named_spec("resnet50", depths=(3, depth, 6, 3)), image_size_px=64, batch_size=2)
        for depth in (2, 3, 40)
    }
    block = told[3].activations["stage2"] - told[2].activations["stage2"]
    assert told[40].activations["stage2"] == told[2].activations["stage2"] + 38 * block
    assert told[40].activations["stage3"] == told[2].activations["stage3"]
