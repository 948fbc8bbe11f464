from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resnet_models.blocks.basic import BasicBlock
from resnet_models.blocks.parts import BlockParts
from resnet_models.blocks.preactivation import PreactBasicBlock
from resnet_models.blocks.shortcut import ProjectionShortcut, ZeroPadShortcut
from resnet_models.complexity import count
from resnet_models.errors import SpecError
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import (
    WeightsError,
    count_nonfinite,
    from_torchvision,
    load_strict,
    pack_weights,
    unpack_weights,
)
from resnet_models.zoo import named_spec
from tests.random_specs import random_spec

TINY = ModelSpec(stem="cifar", depths=(1, 1), channels=(8, 16), num_classes=5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_any_spec_trains_and_counts_right(seed: int) -> None:
    spec = random_spec(random.Random(seed), noise=True)
    network = build(spec)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = network.train()(images)
    assert logits.shape == (2, spec.num_classes)
    logits.square().sum().backward()
    for name, weight in network.named_parameters():
        if not name.startswith("exits."):  # trained by their own losses
            assert weight.grad is not None
            assert torch.isfinite(weight.grad).all(), name
    assert count(spec, image_size_px=32).parameters == sum(weight.numel() for weight in network.parameters())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_channels_last_gives_the_same_logits(seed: int) -> None:
    spec = random_spec(random.Random(seed))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = build(spec).eval()(images)
        network = build(spec).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fast = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_the_deepest_network_in_print_builds_and_learns() -> None:
    network = build(named_spec("resnet1202")).train()
    assert sum(weight.numel() for weight in network.parameters()) == 19_421_274
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in network.parameters())


def test_weights_are_a_function_of_spec_and_seed() -> None:
    torch.manual_seed(1)
    first = pack_weights(build(TINY).state_dict())
    state_before = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert pack_weights(build(TINY).state_dict()) == first
    assert pack_weights(build(TINY, seed=1).state_dict()) != first
    torch.manual_seed(1)
    build(TINY, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state_before), "building left the global generator alone"


def test_initial_scale_is_hes() -> None:
    network = build(named_spec("resnet18", num_classes=10))
    weight = network.get_submodule("stages.2.1.conv2").weight
    assert isinstance(weight, torch.Tensor)
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("norm", ["batch", "ghost", "sync"])
def test_zero_init_starts_blocks_as_their_shortcut(block: str, norm: str) -> None:
    spec = replace(TINY, block=block, depths=(2,), channels=(8,), zero_init_last=True, norm=norm)  # type: ignore[arg-type]
    second = build(spec).eval().get_submodule("stages.0.1")
    images = torch.rand(2, 8 * spec.expansion, 6, 6)
    assert torch.equal(second(images), images)  # relu(0 + x) of positive x


def test_shortcuts_keep_the_size_of_the_block() -> None:
    x = torch.rand(1, 4, 7, 9)
    for shortcut in (
        ZeroPadShortcut(4, 6, stride=2),
        ProjectionShortcut(4, 6, stride=2, norm=nn.BatchNorm2d),
        ProjectionShortcut(4, 6, stride=2, pooling="average", norm=nn.BatchNorm2d),
        ProjectionShortcut(4, 6, stride=2, pooling="blur"),
    ):
        assert shortcut(x).shape == (1, 6, 4, 5)
    padded = ZeroPadShortcut(4, 6, stride=2)(x)
    assert torch.equal(padded[:, :4], x[:, :, ::2, ::2])
    assert not padded[:, 4:].any()


def test_a_preactivation_identity_carries_the_raw_signal() -> None:
    block = PreactBasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    always = BlockParts(shortcut="all_projection")
    assert isinstance(BasicBlock(4, 4, stride=1, parts=always).shortcut, ProjectionShortcut)


def test_an_unsettled_spec_is_not_built() -> None:
    with pytest.raises(SpecError, match="stem is 'auto': the image size is not known here; settle it with"):
        ResNet(ModelSpec(num_classes=3))
    with pytest.raises(SpecError, match="num_classes is 0: a network needs outputs; settle it with"):
        ResNet(ModelSpec(stem="cifar"))


def test_weights_round_trip_whatever_the_layout() -> None:
    network = build(TINY)
    data = pack_weights(network.state_dict())
    assert pack_weights(network.to(memory_format=torch.channels_last).state_dict()) == data  # type: ignore[call-overload]
    other = build(TINY, seed=9)
    load_strict(other, unpack_weights(data))
    assert pack_weights(other.state_dict()) == data
    assert count_nonfinite(other.state_dict()) == 0


def test_the_first_mismatch_is_named() -> None:
    network = build(TINY)
    state = network.state_dict()
    before = pack_weights(state)
    wider = build(ModelSpec(stem="cifar", depths=(1, 1), channels=(8, 24), num_classes=5)).state_dict()
    lacking = {name: tensor for name, tensor in state.items() if name != "head.bias"}
    cases = [
        (wider, r"stages\.1\.0\.conv1\.weight has shape \[24, 8, 3, 3\]; the network's has \[16, 8, 3, 3\]"),
        (lacking, r"the weights lack head\.bias, which the network has with shape \[5\]"),
        ({**state, "extra": torch.zeros(1)}, "the weights hold extra, which the network lacks"),
        (
            {**state, "head.bias": state["head.bias"].double()},
            "head.bias is torch.float64; the network's is torch.float32",
        ),
    ]
    for given_state, message in cases:
        with pytest.raises(WeightsError, match=message):
            load_strict(network, given_state)
    assert pack_weights(network.state_dict()) == before


def test_damaged_weights_are_refused() -> None:
    data = pack_weights(build(TINY).state_dict())
    for cut in (b"", b"PK\x03\x04", data[: len(data) // 2]):
        with pytest.raises(WeightsError, match="the weights are no readable safetensors file"):
            unpack_weights(cut)
    assert count_nonfinite({"w": torch.tensor([1.0, float("nan"), float("inf")])}) == 2


def test_torchvision_weights_fit_their_kind_only() -> None:
    with pytest.raises(
        WeightsError, match="torchvision has no network with stem=cifar, shortcut=projection, block=basic"
    ):
        from_torchvision({}, TINY)
