"""Early exits and blocks left out: exact, and free of cost when off."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from resnet_models.adaptive import exit_logits, predict_early, skip_blocks, skippable_blocks
from resnet_models.errors import SpecError
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import load_strict

KINDS: dict[str, dict[str, object]] = {
    "basic": {},
    "bottleneck": {"block": "bottleneck"},
    "preact_basic": {"block": "preact_basic"},
    "preact_bottleneck": {"block": "preact_bottleneck", "head_pool": "concat"},
    "relu_only": {"block": "preact_basic", "ordering": "relu_only_preactivation"},
    "norm_after_addition": {"ordering": "norm_after_addition"},
    "dropping": {"drop_path_rate": 0.4, "head_dropout": 0.3},
    "zero_pad": {"shortcut": "zero_pad"},
}


def network_of(kind: str, **changes: object) -> ResNet:
    """Random weights with statistics of their own, in eval mode."""
    values = {"stem": "cifar", "depths": [3, 2, 2], "channels": [8, 12, 16], "num_classes": 5}
    network = build(ModelSpec.from_json({**values, **KINDS[kind], **changes}), seed=4)
    with torch.no_grad():
        for _ in range(3):
            network.train()(images(16, seed=1))
        network.eval()
        for stage, end in {} if network.exits is None else network.exits.items():
            logits = end(network.stage_outputs(images(64))[int(stage) - 1])
            scale = 1.5 / logits.std(dim=0)  # classifiers of a trained network's spread: sure of some images
            end.head.bias.copy_(scale * (end.head.bias - logits.mean(dim=0)))
            end.head.weight.copy_(scale[:, None] * end.head.weight)
    return network


def images(count: int, *, seed: int = 2) -> Tensor:
    return torch.randn(count, 3, 13, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_exits_leave_the_network_as_it_is(kind: str) -> None:
    plain, with_exits = network_of(kind), network_of(kind, exits=[1, 2])
    own = {name: tensor for name, tensor in with_exits.state_dict().items() if not name.startswith("exits.")}
    load_strict(plain, own)  # the same names and no others
    x = images(4)
    with torch.no_grad():
        everything = exit_logits(with_exits, x)
        assert len(everything) == 3
        assert torch.equal(everything[-1], plain(x))
        assert torch.equal(everything[-1], with_exits(x))
        assert len(exit_logits(plain, x)) == 1
        maps = with_exits.stage_outputs(x)
        for number in (1, 2):
            assert torch.equal(everything[number - 1], with_exits.exits[str(number)](maps[number - 1]))
    assert network_of(kind).exits is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_gets_the_logits_of_the_first_exit_that_is_sure(kind: str) -> None:
    network, x = network_of(kind, exits=[1, 2]), images(64)
    with torch.no_grad():
        everything = torch.stack(exit_logits(network, x))
    confidence = everything.softmax(dim=2).amax(dim=2)
    threshold = float(confidence[:2].quantile(0.6))
    found = predict_early(network, x, threshold)
    assert set(found.stages.tolist()) == {1, 2, 3}  # every way out is taken
    for image, stage in enumerate(found.stages.tolist()):
        first_sure = next((n for n in (0, 1) if confidence[n, image] >= threshold), 2)
        assert stage == first_sure + 1
        if stage == 1:  # no batch was parted before it
            assert torch.equal(found.logits[image], everything[0, image])
        torch.testing.assert_close(found.logits[image], everything[first_sure, image], rtol=1e-5, atol=1e-6)
    assert torch.equal(predict_early(network, x, 0.0).logits, everything[0])
    assert torch.equal(predict_early(network, x, 1.1).logits, everything[2])


def test_an_image_that_exits_early_costs_no_deeper_stage() -> None:
    network = network_of("basic", exits=[1])
    seen: list[int] = []
    network.stages[1].register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    predict_early(network, images(8), 0.0)
    assert seen == []
    going_on = predict_early(network, images(64), 0.5).stages > 1
    assert seen == [int(going_on.sum())]
    assert 0 < seen[0] < 64


def test_exits_train_by_sample_keys() -> None:
    network = network_of("dropping", exits=[2]).train()
    keys = torch.arange(8)
    first, again = (exit_logits(copy.deepcopy(network), images(8), sample_keys=keys) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert torch.equal(first[-1], copy.deepcopy(network)(images(8), sample_keys=keys))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda network: network.train(),
            "is in train mode, where exits depend on the batch; call network.eval() first",
        ),
        (
            lambda network: network_of("basic"),
            "has no early exits; build it with exits=[...], the stages to leave after",
        ),
    ],
)
def test_early_prediction_refuses(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError) as refused:
        predict_early(change(network_of("basic", exits=[1])), images(2), 0.9)
    assert message in str(refused.value)


def test_early_prediction_refuses_what_it_cannot_compare_or_see() -> None:
    network = network_of("basic", exits=[1], stem="imagenet")
    with pytest.raises(ValueError, match="threshold is nan; give a probability from 0"):
        predict_early(network, images(2), float("nan"))
    with pytest.raises(SpecError, match="image_size_px is 4: the network strides over 16 pixels"):
        predict_early(network, images(2)[..., :4], 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_equals_a_network_without_those_blocks(kind: str) -> None:
    network = network_of(kind)
    assert skippable_blocks(network) == ((0, 1), (0, 2), (1, 1), (2, 1))
    skipped = skip_blocks(network, {(0, 1), (2, 1)})
    # by hand: a network of these depths, its weights picked from the whole one's by name
    by_hand = build(ModelSpec.from_json({**network.spec.to_json(), "depths": [2, 2, 1]}))
    whole = network.state_dict()
    old_names = {name: name.replace("stages.0.1.", "stages.0.2.") for name in by_hand.state_dict()}
    load_strict(by_hand, {name: whole[old] for name, old in old_names.items()})
    x = images(3)
    with torch.no_grad():
        assert torch.equal(skipped(x), by_hand.eval()(x))
        assert not torch.equal(skipped(x), network(x))
    assert skipped.spec == by_hand.spec
    assert list(skipped.state_dict()) == list(by_hand.state_dict())


def test_a_skipping_network_shares_weights_and_leaves_the_whole_one_alone() -> None:
    network = network_of("basic", exits=[1])
    x = images(3)
    with torch.no_grad():
        before = network(x)
        skipped = skip_blocks(network, [(0, 2)])
        assert torch.equal(network(x), before)
    assert {id(parameter) for parameter in skipped.parameters()} < {id(parameter) for parameter in network.parameters()}
    assert network.spec.stage_depths == (3, 2, 2)
    assert len(exit_logits(skipped, x)) == 2
    with torch.no_grad():
        assert torch.equal(skip_blocks(network, ())(x), before)


@pytest.mark.parametrize(
    ("changes", "place", "reason"),
    [
        ({}, (0, 0), "the first block of a stage stays, and so does one whose shortcut projects"),
        ({"shortcut": "all_projection"}, (0, 1), "among none: no block can be left out"),
        (
            {},
            (0, 3),
            "skip is [0, 3]: there is no such stage and block; use (stage, block) from 0, among (0, 1), (0, 2)",
        ),
        ({}, (-1, 1), "there is no such stage and block"),
    ],
)
def test_blocks_that_must_stay(changes: dict[str, object], place: tuple[int, int], reason: str) -> None:
    with pytest.raises(SpecError) as refused:
        skip_blocks(network_of("basic", **changes), {place})
    assert reason in str(refused.value)
