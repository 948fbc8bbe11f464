from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_models.adaptive import skip_blocks
from resnet_models.errors import SpecError
from resnet_models.growth.deepen import deepen
from resnet_models.growth.optimizer import read_optimizer_state
from resnet_models.growth.shrink import BlockContribution, least_blocks, measure_contributions, shrink
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec

BLOCKS = ("basic", "bottleneck", "preact_basic", "preact_bottleneck")


def network_of(block: str) -> ResNet:
    spec = ModelSpec.from_json(
        {"block": block, "stem": "cifar", "depths": [3, 2], "channels": [8, 16], "num_classes": 4}
    )
    network = build(spec, seed=1)
    with torch.no_grad():
        network.train()(batches()[0][0])
    return network.eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 3, 9, 9, generator=generator), torch.randint(4, (size,), generator=generator))
        for size in (8, 8, 3)
    ]


@pytest.mark.parametrize("block", BLOCKS)
def test_contributions_are_what_hooks_and_lesions_find(block: str) -> None:
    network = network_of(block)
    before = copy.deepcopy(network.state_dict())
    found = measure_contributions(network, batches())
    assert [(one.stage, one.block) for one in found] == [(0, 1), (0, 2), (1, 1)]
    for one in found:
        with torch.no_grad():
            loss = _mean_loss(skip_blocks(network, {(one.stage, one.block)})) - _mean_loss(network)
            assert one.loss_increase == pytest.approx(loss, abs=1e-5)
            assert one.relative_norm == pytest.approx(_relative_norm(network, one.stage, one.block), rel=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def _mean_loss(network: ResNet) -> float:
    return sum(float(F.cross_entropy(network(images), targets, reduction="sum")) for images, targets in batches()) / 19


def _relative_norm(network: ResNet, stage: int, number: int) -> float:
    entering: list[Tensor] = []
    block = network.stages[stage][number]
    handle = block.register_forward_pre_hook(lambda _module, inputs: entering.append(inputs[0].clone()))
    for images, _ in batches():
        network(images)
    handle.remove()
    x = torch.cat(entering)
    return float((block.branch(x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).mean())


def test_measuring_keeps_each_parts_mode_whatever_happens() -> None:
    network = network_of("basic").train()
    network.stem.eval()  # as frozen parts are
    modes = [module.training for module in network.modules()]
    measure_contributions(network, batches())
    assert [module.training for module in network.modules()] == modes
    with pytest.raises(ZeroDivisionError):
        measure_contributions(network, batches(), lambda logits, targets: logits.sum() * (1 // 0))
    assert [module.training for module in network.modules()] == modes


def test_measuring_takes_any_loss() -> None:
    network = network_of("basic").train()
    found = measure_contributions(network, batches(), lambda logits, targets: logits.sum() * 0.0)
    assert network.training
    assert {one.loss_increase for one in found} == {0.0}
    with pytest.raises(ValueError, match="there is no batch to measure contributions on"):
        measure_contributions(network, [])


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_that_do_nothing_go_first_and_nothing_changes(block: str) -> None:
    network = network_of(block)
    deeper = deepen(network, 0, count=2, position=2).network
    blocks = least_blocks(measure_contributions(deeper, batches()), 2, by="relative_norm")
    assert blocks == {(0, 2), (0, 3)}
    again = shrink(deeper, blocks).network
    assert again.spec.stage_depths == network.spec.stage_depths
    assert not again.training
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_the_state_of_what_stays_is_carried_along() -> None:
    network = network_of("basic").train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    F.cross_entropy(network(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()
    state = read_optimizer_state(network, optimizer)
    shrunk = shrink(network, {(0, 1)}, optimizer_state=state)
    assert {name.rpartition("/")[0] for name in shrunk.optimizer_state} == dict(
        shrunk.network.named_parameters()
    ).keys()
    for name, value in shrunk.optimizer_state.items():
        assert torch.equal(value, state[name.replace("stages.0.1.", "stages.0.2.")])


def test_least_blocks_by_either_measure() -> None:
    found = [BlockContribution(0, 1, 0.5, 0.1), BlockContribution(0, 2, 0.1, 0.2), BlockContribution(1, 1, 0.1, 0.1)]
    assert least_blocks(found, 1) == {(0, 1)}
    assert least_blocks(found, 2) == {(0, 1), (1, 1)}
    assert least_blocks(found, 1, by="relative_norm") == {(0, 2)}
    for count in (0, 4):
        with pytest.raises(SpecError) as refused:
            least_blocks(found, count)
        assert str(refused.value) == (
            f"count is {count}: 3 blocks can be left out: each stage keeps its first, which changes shape; "
            "use a number from 1 to 3"
        )


def test_a_first_block_stays() -> None:
    with pytest.raises(SpecError, match="the first block of a stage stays"):
        shrink(network_of("basic"), {(1, 0)})
