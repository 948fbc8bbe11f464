"""Any network there is either grows into one that computes the same, or is refused by field, reason and cure."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resnet_models.adaptive import skip_blocks, skippable_blocks
from resnet_models.errors import SpecError
from resnet_models.growth.carry import Grown
from resnet_models.growth.deepen import deepen
from resnet_models.growth.shrink import shrink
from resnet_models.growth.widen import widen, wider_spec
from resnet_models.resnet import ResNet, build
from tests.random_specs import random_spec


def network_of(seed: int) -> ResNet:
    """A network of any spec, its norms with figures, scales and shifts that no initialisation gives."""
    network = build(random_spec(random.Random(seed)), seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", ".bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        elif name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def images(network: ResNet) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, network.spec.in_channels, 32, 32, dtype=torch.float64, generator=generator)


def grown_or_refused(grow: Callable[[], Grown]) -> ResNet | SpecError:
    try:
        return grow().network
    except SpecError as refused:
        return refused


def widened(network: ResNet, way: dict[str, float]) -> Grown:
    return widen(network, wider_spec(network.spec, **way), seed=3)  # type: ignore[arg-type]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.data())
@torch.no_grad()
def test_deepening_and_shrinking_back(seed: int, data: st.DataObject) -> None:
    network = network_of(seed)
    expected = network(images(network))
    stage = data.draw(st.integers(0, network.spec.num_stages - 1))
    position = data.draw(st.integers(1, network.spec.stage_depths[stage]))
    deeper = grown_or_refused(lambda: deepen(network, stage, count=2, position=position))
    if isinstance(deeper, SpecError):
        assert deeper.field in ("shortcut", "ordering", "activation")
        return
    assert torch.equal(deeper(images(network)), expected)
    again = {(stage, position), (stage, position + 1)}
    assert again <= set(skippable_blocks(deeper))
    for shallower in (shrink(deeper, again).network, skip_blocks(deeper, again)):
        assert torch.equal(shallower(images(network)), expected)
        assert shallower.spec.stage_depths == network.spec.stage_depths


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1.25, 1.5, 2.0, 3.0]))
@torch.no_grad()
def test_widening(seed: int, width: float) -> None:
    network = network_of(seed)
    spec = network.spec
    expected = network(images(network))
    ways: list[dict[str, float]] = [{"width": width}, {"stem_channels": spec.stem_width + 3}]
    if spec.is_bottleneck:
        ways += [{"base_width": 2 * spec.base_width}, {"cardinality": spec.cardinality + 1}]
    for way in ways:
        wider = grown_or_refused(partial(widened, network, way))
        if isinstance(wider, SpecError):
            assert way != {"width": 2.0} or wider.field == "attention"  # doubling works for all but ECA's gates
            continue
        assert float((wider(images(network)) - expected).norm() / expected.norm()) <= 1e-10
