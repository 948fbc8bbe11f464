"""Deepen, widen, shrink on trained networks: same function, then training goes on."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_models.adaptive import exit_logits
from resnet_models.checkpointing import checkpoint_activations, is_checkpointed
from resnet_models.growth.carry import Grown
from resnet_models.growth.channels import TensorGrowth
from resnet_models.growth.deepen import deepen
from resnet_models.growth.grow import grow
from resnet_models.growth.optimizer import load_optimizer_state, read_optimizer_state
from resnet_models.growth.plan import WideningPlan
from resnet_models.growth.shrink import shrink
from resnet_models.growth.widen import widen, wider_spec
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import load_strict
from resnet_models.zoo import named_spec

BASIC: dict[str, object] = {"stem": "cifar", "depths": [2, 2], "channels": [8, 16], "num_classes": 4}
BOTTLENECK: dict[str, object] = {**BASIC, "block": "bottleneck"}
PREACT: dict[str, object] = {**BASIC, "block": "preact_basic"}
PREACT_BOTTLENECK: dict[str, object] = {**BASIC, "block": "preact_bottleneck"}
GROUPED: dict[str, object] = {**BOTTLENECK, "cardinality": 4, "base_width": 16, "channels": [8, 16]}

KINDS: dict[str, dict[str, object]] = {
    "basic": BASIC,
    "bottleneck": BOTTLENECK,
    "bottleneck_v1": {**BOTTLENECK, "stride_placement": "v1"},
    "preact_basic": PREACT,
    "preact_bottleneck": PREACT_BOTTLENECK,
    "grouped": GROUPED,
    "preact_grouped": {**GROUPED, "block": "preact_bottleneck"},
    "relu_only": {**PREACT, "ordering": "relu_only_preactivation"},
    "relu_only_bottleneck": {**PREACT_BOTTLENECK, "ordering": "relu_only_preactivation"},
    "silu_before_addition": {**BASIC, "ordering": "relu_before_addition", "activation": "silu"},
    "preact_gelu": {**PREACT, "activation": "gelu"},
    "zero_pad": {**BASIC, "shortcut": "zero_pad"},
    "preact_zero_pad": {**PREACT, "shortcut": "zero_pad"},
    "average_pool": {**BOTTLENECK, "shortcut": "average_pool", "stem": "deep", "strides": [1, 1]},
    "blur": {**BASIC, "downsample": "blur", "shortcut": "blur_pool"},
    "se": {**BASIC, "attention": "se"},
    "preact_se": {**PREACT_BOTTLENECK, "attention": "se", "attention_reduction": 2},
    "eca": {**BASIC, "attention": "eca"},
    "ghost": {**BASIC, "norm": "ghost", "norm_size": 16},
    "group": {**BASIC, "norm": "group", "norm_size": 4},
    "preact_group": {**PREACT_BOTTLENECK, "norm": "group", "norm_size": 2},
    "frozen": {**BASIC, "norm": "frozen"},
    "imagenet_stem": {**BASIC, "stem": "imagenet", "strides": [1, 1]},
    "tiered_stem": {**BASIC, "stem": "tiered", "strides": [1, 1], "stem_pool": "convolution"},
    "whitening_stem": {**BASIC, "stem": "whitening"},
    "gem": {**BASIC, "head_pool": "gem"},
    "concat": {**BASIC, "head_pool": "concat"},
    "exits": {**BASIC, "exits": [1]},
    "preact_exits": {**PREACT, "exits": [1], "head_pool": "concat"},
    "dropping": {**PREACT, "drop_path_rate": 0.1, "block_dropout": 0.1, "head_dropout": 0.1},
}
DEEPER = sorted(KINDS)
NO_COPIES = {"eca"}  # refused, and tested so


@cache
def ten_batches() -> list[tuple[Tensor, Tensor]]:
    """Four classes of stripes under noise, every eighth label wrong: the loss falls, and not to zero."""
    generator = torch.Generator().manual_seed(3)
    axis = torch.arange(10.0)
    waves = torch.stack([torch.sin(axis), torch.cos(2 * axis)])
    patterns = torch.stack(
        [*(wave.expand(10, 10) for wave in waves), *(wave[:, None].expand(10, 10) for wave in waves)]
    )
    batches = []
    for _ in range(10):
        targets = torch.randint(4, (24,), generator=generator)
        noise = torch.randn(24, 3, 10, 10, generator=generator)
        batches.append((patterns[targets][:, None] + noise, torch.cat([targets[:21], 3 - targets[21:]])))
    return batches


def make_optimizer(network: ResNet, kind: str) -> torch.optim.Optimizer:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if kind == "adamw":
        return torch.optim.AdamW(trained, lr=2e-3)
    # Frozen norms do not tame a new block's first steps: at 0.05 the next ten losses were 1.16 of the last ten.
    lr = 0.01 if network.spec.norm == "frozen" else 0.05
    return torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4)


def train(network: ResNet, optimizer: torch.optim.Optimizer, *, rounds: int, seed: int) -> list[float]:
    """Train on the ten batches in turn; return the last round's losses, which compare with any other round's."""
    torch.manual_seed(seed)  # what is left out at random
    network.train()
    losses = []
    for images, targets in ten_batches() * rounds:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[-10:]


@cache
def _trained(kind: str, rule: str) -> tuple[ResNet, dict[str, Tensor], float]:
    network = build(ModelSpec.from_json(KINDS[kind]), seed=1)
    optimizer = make_optimizer(network, rule)
    losses = train(network, optimizer, rounds=3, seed=5)
    return network.eval(), read_optimizer_state(network, optimizer), sum(losses) / 10


def trained(kind: str, rule: str = "sgd") -> tuple[ResNet, dict[str, Tensor], float]:
    """A trained network, its optimiser's state, the mean loss of its last ten steps."""
    network, state, loss = _trained(kind, rule)
    return copy.deepcopy(network), state, loss


def images() -> Tensor:
    return torch.randn(6, 3, 13, 11, generator=torch.Generator().manual_seed(9))


def check_rebuilds(network: ResNet) -> None:
    """The spec describes the network: built from it, with these weights, it computes the same."""
    again = build(ModelSpec.from_json(network.spec.to_json()))
    load_strict(again, network.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), network.eval()(images()))


def check_training_goes_on(grown: Grown, rule: str, before: float) -> None:
    optimizer = make_optimizer(grown.network, rule)
    load_optimizer_state(grown.network, optimizer, grown.optimizer_state)
    losses = train(grown.network, optimizer, rounds=1, seed=6)
    assert sum(losses) / 10 <= 1.1 * before, (losses, before)


@pytest.mark.parametrize("kind", DEEPER)
def test_deepened_is_bit_equal_and_training_goes_on(kind: str) -> None:
    network, state, before = trained(kind)
    grown = deepen(network, 0, count=2, position=1, optimizer_state=state)
    grown = deepen(grown.network, 1, optimizer_state=grown.optimizer_state)
    assert grown.network.spec.stage_depths == (4, 3)
    with torch.no_grad():
        assert torch.equal(grown.network(images()), network(images()))
    check_rebuilds(grown.network)
    check_training_goes_on(grown, "sgd", before)
    assert _every_new_tensor_moved(grown.network, network)


def _every_new_tensor_moved(network: ResNet, old: ResNet) -> bool:
    """After the ten steps above, no branch of a new block is zero any more."""
    with torch.no_grad():
        x = network.eval().stem(images())
        for stage in network.stages:
            for block in stage.children():
                if not block.branch(x).abs().max() > 0:
                    return False
                x = block(x)
    return True


@pytest.mark.parametrize("kind", ["basic", "preact_bottleneck", "group"])
def test_deepened_and_widened_with_adamw(kind: str) -> None:
    network, state, before = trained(kind, "adamw")
    grown = deepen(network, 1, optimizer_state=state)
    check_training_goes_on(Grown(copy.deepcopy(grown.network), grown.optimizer_state), "adamw", before)
    grown = widen(grown.network, wider_spec(grown.network.spec, width=2.0), optimizer_state=grown.optimizer_state)
    check_training_goes_on(grown, "adamw", before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NO_COPIES])
def test_widened_computes_the_same_and_training_goes_on(kind: str) -> None:
    network, state, before = trained(kind)
    for width in (1.5, 2.0) if KINDS[kind].get("norm") != "group" else (3.0, 2.0):
        grown = widen(network, wider_spec(network.spec, width=width), optimizer_state=state, seed=4)
        assert grown.network.spec.stage_channels == tuple(int(channels * width) for channels in (8, 16))
        check_same_function(grown.network, network)
    check_rebuilds(grown.network)
    check_training_goes_on(grown, "sgd", before)


def check_same_function(network: ResNet, old: ResNet) -> None:
    with torch.no_grad():
        # Over all logits: float32 rounds sums of more terms otherwise; float64 shows that nothing else differs.
        for got, expected in zip(exit_logits(network, images()), exit_logits(old, images()), strict=True):
            assert float((got - expected).norm() / expected.norm()) <= 1e-6
        exact_old = copy.deepcopy(old).double()
        exact = widen(exact_old, network.spec, seed=4).network
        for is_training in (False, True) if not old.spec.drop_path_rate else (False,):  # wider maps draw other numbers
            got, expected = exact.train(is_training)(images().double()), exact_old.train(is_training)(images().double())
            assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-12


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("grouped", {"cardinality": 8}),
        ("preact_grouped", {"cardinality": 6}),
        ("grouped", {"cardinality": 7, "base_width": 24}),
        ("eca", {}),
        ("zero_pad", {"channels": (12, 24)}),
        ("bottleneck", {"channels": (8, 24)}),
        ("bottleneck", {"base_width": 96}),
        ("preact_bottleneck", {"stem_channels": 19}),
        ("bottleneck", {"channels": (11, 17)}),
    ],
)
def test_every_way_to_widen(kind: str, changes: dict[str, object]) -> None:
    network, state, before = trained(kind)
    grown = widen(network, wider_spec(network.spec, **changes), seed=4, optimizer_state=state)  # type: ignore[arg-type]
    check_same_function(grown.network, network)
    check_rebuilds(grown.network)
    check_training_goes_on(grown, "sgd", before)


@pytest.mark.parametrize("large", ["resnet34", "resnet101", "wide_resnet50_2"])
def test_the_named_networks_grow_into_each_other(large: str) -> None:
    network = build(named_spec("resnet18" if large == "resnet34" else "resnet50", num_classes=7), seed=2).eval()
    grown = grow(network, named_spec(large, num_classes=0)).network
    assert grown.spec == named_spec(large, num_classes=7)
    x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if "wide" not in large:
            assert torch.equal(grown(x), network(x))
            return
        got, expected = grown.double()(x.double()), network.double()(x.double())
    assert (got - expected).norm() <= 1e-12 * expected.norm()  # float32 rounds 50 layers to about 1e-6


@pytest.mark.parametrize(
    "kind", ["basic", "preact_grouped", "preact_se", "group", "exits", "concat", "gem", "zero_pad"]
)
def test_widened_gradients_are_those_of_a_wide_network(kind: str) -> None:
    """The rule for momentum: what the grown network computes is what the old one's gradients become."""
    network = trained(kind)[0].double()
    spec = wider_spec(network.spec, width=2.0)
    if kind == "preact_grouped":
        spec = wider_spec(network.spec, width=2.0, cardinality=8)
    (gradients, wide_gradients), wide = ([], []), widen(network, spec, seed=3).network
    for found, model in ((gradients, network), (wide_gradients, wide)):
        loss = sum(F.cross_entropy(logits, torch.arange(6) % 4) for logits in exit_logits(model, images().double()))
        found.extend(torch.autograd.grad(loss, list(model.parameters())))
    growths = WideningPlan(network, build(spec), seed=3).growths
    for (name, _), old, new in zip(network.named_parameters(), gradients, wide_gradients, strict=True):
        rule = growths.get(name, TensorGrowth())
        torch.testing.assert_close(rule.gradient(old, power=1), new, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(rule.gradient(old**2, power=2), new**2, rtol=1e-9, atol=1e-12)


def test_state_of_new_blocks_starts_at_zero_and_the_rest_moves_with_its_block() -> None:
    network, state, _ = trained("basic", "adamw")
    grown = deepen(network, 0, position=1, optimizer_state=state)
    assert set(grown.optimizer_state) == {
        f"{name}/{slot}" for name, _ in grown.network.named_parameters() for slot in ("step", "exp_avg", "exp_avg_sq")
    }
    for name, value in grown.optimizer_state.items():
        if name.startswith("stages.0.1."):
            assert not value.any()
        else:
            assert torch.equal(value, state[name.replace("stages.0.2.", "stages.0.1.")])
    assert deepen(network, 0).optimizer_state == {}


def test_the_old_network_stays_and_the_new_one_is_in_the_same_state() -> None:
    network = trained("basic")[0].to(torch.bfloat16)
    network.stem.requires_grad_(False)
    checkpoint_activations(network)
    before = copy.deepcopy(network.state_dict())
    for grown in (deepen(network.train(), 0).network, widen(network, wider_spec(network.spec, width=2.0)).network):
        assert grown.training
        assert is_checkpointed(grown)
        assert {parameter.dtype for parameter in grown.parameters()} == {torch.bfloat16}
        assert [name for name, parameter in grown.named_parameters() if not parameter.requires_grad] == [
            name for name, _ in grown.named_parameters() if name.startswith("stem.")
        ]
        for parameter in grown.parameters():
            parameter.detach().zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_each_part_keeps_its_mode() -> None:
    network = trained("basic")[0].train()
    network.stem.eval()  # as frozen parts are
    network.stages[0][1].eval()
    deeper = deepen(network, 0, position=1).network
    assert not any(module.training for part in (deeper.stem, deeper.stages[0][2]) for module in part.modules())
    assert all(module.training for part in (deeper.stages[0][1], deeper.head) for module in part.modules())
    wider = widen(network, wider_spec(network.spec, width=2.0)).network
    shallower = shrink(deeper, {(0, 1)}).network
    for same in (wider, shallower):
        assert {name: module.training for name, module in same.named_modules()} == {
            name: module.training for name, module in network.named_modules()
        }


def test_widening_is_a_function_of_the_seed_and_noise_parts_copies() -> None:
    network, _, _ = trained("basic")
    spec = wider_spec(network.spec, width=1.5)
    states = [widen(network, spec, seed=seed).network.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    plain, parted = (widen(network, wider_spec(network.spec, width=2.0), noise=noise).network for noise in (0.0, 1e-3))
    rows = [grown.stages[0][0].conv1.weight.detach().flatten(1) for grown in (plain, parted)]
    assert len(rows[0].unique(dim=0)) == 8
    assert len(rows[1].unique(dim=0)) == 16
    with torch.no_grad():
        got, expected = parted(images()), network(images())
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.05
