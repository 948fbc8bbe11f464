"""What cannot grow without changing what it computes, each with its message; and the maps of channels themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resnet_models.errors import SpecError
from resnet_models.growth.channels import ChannelMap, MapMaker, TensorGrowth, same_channels
from resnet_models.growth.deepen import deepen
from resnet_models.growth.grow import grow
from resnet_models.growth.optimizer import load_optimizer_state, read_optimizer_state
from resnet_models.growth.widen import widen, wider_spec
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec


def tiny(**changes: object) -> ResNet:
    values = {"stem": "cifar", "depths": [2, 2], "channels": [8, 16], "num_classes": 3}
    return build(ModelSpec.from_json({**values, **changes})).eval()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation": "silu"},
            "activation is 'silu': a block whose branch is zero must pass its input on unchanged, and silu of the sum "
            "changes what it has activated once (relu leaves it); use activation=relu, or block=preact_*, whose sum is "
            "not activated",
        ),
        (
            {"activation": "leaky_relu"},
            "and leaky_relu of the sum changes what it has activated once",
        ),
        (
            {"ordering": "norm_after_addition"},
            "ordering is 'norm_after_addition': a block whose branch is zero must pass its input on unchanged, and the "
            "norm after the addition changes it; use ordering=original or block=preact_*, whose shortcuts are clean",
        ),
        (
            {"ordering": "relu_before_addition"},
            "ordering is 'relu_before_addition': a branch that ends in a relu of zero passes no gradient, so that the "
            "new block would never learn; use ordering=original or block=preact_*, or an activation with a slope at "
            "zero such as silu",
        ),
        (
            {"shortcut": "all_projection"},
            "shortcut is 'all_projection': a block whose branch is zero must pass its input on unchanged, and every "
            "shortcut projects; use a network with shortcut=projection, which projects only where the shape changes",
        ),
    ],
)
def test_blocks_that_cannot_be_the_identity(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        deepen(tiny(**changes), 0)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": 2}, "stage is 2: the network has stages 0 to 1; use a number from 0 to 1"),
        ({"stage": -1}, "stage is -1: the network has stages 0 to 1"),
        (
            {"stage": 0, "position": 0},
            "position is 0: blocks can be inserted at 1 to 2 of stage 0: its first block changes shape; "
            "use a place from 1 to 2, or None for the end",
        ),
        ({"stage": 0, "position": 3}, "position is 3: blocks can be inserted at 1 to 2 of stage 0"),
        ({"stage": 0, "count": 0}, "count is 0: deepening adds blocks; give 1 or more"),
    ],
)
def test_places_that_are_not_there(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        deepen(tiny(), **arguments)
    assert message in str(refused.value)


def test_a_relu_of_zero_would_indeed_never_learn() -> None:
    block = tiny(ordering="relu_before_addition").stages[0][1]
    nn.init.zeros_(block.norm2.weight)
    block.branch(torch.randn(2, 8, 5, 5)).sum().backward()
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())


@pytest.mark.parametrize(
    ("network", "widths", "message"),
    [
        (
            {},
            {"channels": (8, 12)},
            "channels is 12: stages.1.0.conv2 has 16 already; give at least as many: widening takes none away",
        ),
        (
            {"attention": "eca"},
            {"width": 2.0},
            "attention is 'eca': its gates look at neighbouring channels, and copies have other neighbours; "
            "widen base_width or cardinality only, which leaves the gated channels, or use attention=se",
        ),
        (
            {"norm": "group", "norm_size": 4},
            {"width": 1.5},
            "channels is 12: stem.conv has 8, and a group norm keeps its figures only if each is repeated alike; "
            "use a multiple, for example 8 or 16",
        ),
        (
            {"block": "bottleneck", "cardinality": 2, "norm": "group", "norm_size": 2},
            {"cardinality": 4},
            "cardinality is 4: group norm would mix copied groups of channels; leave it as it is",
        ),
        (
            {"block": "bottleneck", "cardinality": 4},
            {"cardinality": 2},
            "cardinality is 2: stages.0.0.conv2 has 4 groups already; give at least as many",
        ),
        (
            {"shortcut": "zero_pad"},
            {"channels": (14, 20)},
            "channels is 20: stages.1.0.conv2 has 16, 8 of them filled with zeros by its shortcut, and would have 6 "
            "filled; use 22 or more, or widen all stages alike",
        ),
        (
            {"shortcut": "zero_pad", "channels": [8, 8]},
            {"channels": (8, 12)},
            "channels is 12: stages.1.0.conv2 has 8, 0 of them filled with zeros by its shortcut, and would have 4 "
            "filled; use 8, or widen all stages alike",
        ),
        (
            {},
            {"stem_channels": 12},
            "channels is 12: the shortcut of stages.0.0 is the identity, and with these channels would be a "
            "projection; widen the stem and the stages on both sides alike",
        ),
    ],
)
def test_widths_that_would_change_the_function(
    network: dict[str, object], widths: dict[str, object], message: str
) -> None:
    model = tiny(**network)
    with pytest.raises(SpecError) as refused:
        widen(model, wider_spec(model.spec, **widths))  # type: ignore[arg-type]
    assert message in str(refused.value)


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan")])
def test_noise_is_a_fraction(noise: float) -> None:
    with pytest.raises(SpecError, match=f"noise is {noise}: it is a fraction of the weights' spread; give 0 to 1"):
        widen(tiny(), wider_spec(tiny().spec, width=2.0), noise=noise)


def test_widening_changes_widths_only() -> None:
    network = tiny()
    for name, value in {"depths": [3, 2], "num_classes": 4, "head_pool": "max", "activation": "silu"}.items():
        spec = ModelSpec.from_json({**network.spec.to_json(), name: value})
        with pytest.raises(SpecError, match=f"{name} is .*: widening leaves it at .*; change only channels, width"):
            widen(network, spec)
    same = ModelSpec.from_json({**network.spec.to_json(), "channels": [4, 8], "width": 2.0})
    assert widen(network, same).network.spec == same  # the same widths in other words


def test_growing_needs_a_spec_that_is_no_smaller() -> None:
    network = tiny()
    for depths in ([1, 2], [2, 2, 1]):
        spec = ModelSpec.from_json({**network.spec.to_json(), "depths": depths, "channels": [8, 16, 32][: len(depths)]})
        with pytest.raises(SpecError) as refused:
            grow(network, spec)
        assert "the network has [2, 2] blocks; give at least as many in each of its stages" in str(refused.value)


def test_optimiser_state_that_fits_nothing() -> None:
    network = tiny()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError) as refused:
        load_optimizer_state(network, optimizer, {"head.weight/momentum_buffer": torch.zeros(2, 2)})
    assert str(refused.value) == (
        "the optimiser state head.weight/momentum_buffer of shape [2, 2] fits no parameter of this network"
    )
    with pytest.raises(ValueError, match=r"the optimiser state body.weight/exp_avg of shape \[\] fits no parameter"):
        load_optimizer_state(network, optimizer, {"body.weight/exp_avg": torch.tensor(0.0)})
    with pytest.raises(ValueError) as refused:
        widen(network, wider_spec(network.spec, width=2.0), optimizer_state={"head.weight/prev": torch.zeros(3, 16)})
    assert str(refused.value).startswith(
        "the optimiser state head.weight/prev cannot be widened: prev has no rule; those with one are momentum_buffer,"
    )


def test_optimiser_state_round_trip() -> None:
    network = tiny()
    optimizer, other = (torch.optim.AdamW(network.parameters(), lr=0.1) for _ in range(2))
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = read_optimizer_state(network, optimizer)
    load_optimizer_state(network, other, state)
    assert {name: value.tolist() for name, value in read_optimizer_state(network, other).items()} == {
        name: value.tolist() for name, value in state.items()
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 9))
def test_every_channel_is_copied_about_as_often(old: int, more: int, seed: int) -> None:
    channels = MapMaker(seed=seed, repeats=False).free(old, old + more, "conv")
    counts = torch.bincount(channels.source, minlength=old)
    assert len(channels.source) == old + more
    assert torch.equal(channels.source[:old], torch.arange(old))
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    assert int(channels.is_copy.sum()) == more
    assert channels.is_identity == (more == 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.integers(0, 5), st.integers(0, 9))
def test_grouped_convolutions_of_copies_agree(groups: int, inside: int, more: int, wider: int, seed: int) -> None:
    torch.manual_seed(seed)
    new_groups, new_inside = groups + more, inside + wider
    maker = MapMaker(seed=seed, repeats=False)
    channels = maker.grouped((groups, new_groups), (groups * inside, new_groups * new_inside), "conv2")
    old = nn.Conv2d(groups * inside, groups * inside, 3, groups=groups, bias=False).double()
    new = nn.Conv2d(new_groups * new_inside, new_groups * new_inside, 3, groups=new_groups, bias=False).double()
    growth = TensorGrowth(makes=channels, takes=channels, groups=(groups, new_groups))
    new.weight.data = growth.weight(old.weight.data)
    x = torch.randn(2, groups * inside, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(new(x[:, channels.source]), old(x)[:, channels.source])


def test_a_map_twice_over() -> None:
    channels = ChannelMap(torch.tensor([0, 1, 0]), 2).twice()
    assert channels.source.tolist() == [0, 1, 0, 2, 3, 2]
    assert channels.copies.tolist() == [2, 1, 2, 2, 1, 2]
    assert same_channels(3).twice().is_identity
