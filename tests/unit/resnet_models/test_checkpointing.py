from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.checkpointing import checkpoint_activations, is_checkpointed, saved_activation_bytes
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec

BLOCKS = ("basic", "bottleneck", "preact_basic", "preact_bottleneck")


def tiny(block: str, **changes: object) -> ResNet:
    return build(ModelSpec.from_json({"block": block, "stem": "cifar", "depths": [2, 2], "channels": [8, 16],
                                      "num_classes": 5, **changes}))  # fmt: skip


def images(count: int = 4, size: int = 15) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def gradients(network: nn.Module, x: Tensor, *, sample_keys: Tensor | None = None) -> dict[str, Tensor]:
    network.zero_grad()
    F.cross_entropy(network(x, sample_keys=sample_keys), torch.arange(len(x)) % 5).backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("block", "changes"),
    [
        *((block, {}) for block in BLOCKS),
        ("basic", {"norm": "ghost", "norm_size": 2}),
        ("basic", {"norm": "sync"}),
        ("basic", {"norm": "group", "norm_size": 4}),
        ("bottleneck", {"norm": "frozen", "attention": "se"}),
        ("preact_basic", {"activation": "silu", "attention": "eca", "downsample": "blur"}),
        ("basic", {"stem": "whitening", "exits": [1], "head_pool": "gem"}),
        ("basic", {"ordering": "relu_before_addition", "activation": "mish"}),
    ],
)
def test_bit_equal_and_statistics_move_once(block: str, changes: dict[str, object]) -> None:
    plain, checkpointed = (tiny(block, **changes).train() for _ in range(2))
    checkpoint_activations(checkpointed)
    assert is_checkpointed(checkpointed)
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    for _ in range(2):
        expected, got = gradients(plain, images()), gradients(checkpointed, images())
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(checkpointed.state_dict()[name], tensor), name
    assert torch.equal(checkpointed.eval()(images()), plain.eval()(images()))


def test_a_copy_is_checkpointed_on_its_own_and_switching_off_restores_the_classes() -> None:
    network = tiny("basic").train()
    kinds = [type(module) for module in network.modules()]
    checkpoint_activations(network)
    checkpoint_activations(network)  # twice is once
    other = copy.deepcopy(network)
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    gradients(other, images())
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    assert is_checkpointed(other)
    checkpoint_activations(network, enabled=False)
    assert [type(module) for module in network.modules()] == kinds
    assert not is_checkpointed(network)


def test_it_goes_through_pickle_to_other_processes() -> None:
    network = tiny("basic").train()
    checkpoint_activations(network)
    again = pickle.loads(pickle.dumps(network))
    assert is_checkpointed(again)
    assert [type(module) for module in again.modules()] == [type(module) for module in network.modules()]
    expected, got = gradients(network, images()), gradients(again, images())
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_random_draws_are_the_same_in_the_recomputation(block: str, keyed: bool) -> None:
    results = []
    for enabled in (False, True):
        network = tiny(
            block, drop_path_rate=0.4, drop_block_rate=0.2, drop_block_size=3, block_dropout=0.2, head_dropout=0.3
        ).train()
        checkpoint_activations(network, enabled)
        torch.manual_seed(5)
        results.append(gradients(network, images(), sample_keys=torch.arange(4) if keyed else None))
        if keyed:
            torch.manual_seed(6)  # has no say
            results.append(gradients(network, images(), sample_keys=torch.arange(4)))
    for result in results[1:]:
        assert all(torch.equal(results[0][name], result[name]) for name in results[0])


def test_a_failing_recomputation_gives_the_buffers_back() -> None:
    network = tiny("basic").train()
    checkpoint_activations(network)
    loss = network(images()).sum()
    statistics = copy.deepcopy({name: buffer for name, buffer in network.named_buffers()})
    conv = network.stages[0][1].conv2
    handle = conv.register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="recomputed"):
        loss.backward()
    handle.remove()
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in network.named_buffers())


def _fail(*_: object) -> None:
    raise RuntimeError("recomputed")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet152", "preact_resnet164"])
def test_kept_activations_are_halved_or_better(name: str) -> None:
    network = build(named_spec(name, num_classes=10)).train()
    size = 32 if "164" in name else 64
    kept = saved_activation_bytes(network, images(2, size))
    own = _block_bytes(network, images(2, size))  # what a recomputation adds, one block at a time
    checkpoint_activations(network)
    less = saved_activation_bytes(network, images(2, size))
    # At its recomputation a block's input is there and those of later blocks are gone: the first blocks never add up.
    inputs = sum(entering for entering, _ in own)
    peak, before = less, 0
    for entering, inner in own:
        before += entering
        peak = max(peak, less - inputs + before + inner)
    assert less <= 0.4 * kept
    assert peak <= 0.5 * kept


def _block_bytes(network: ResNet, x: Tensor) -> list[tuple[int, int]]:
    """Return for each block the bytes of its input and what it keeps for its backward pass beside it."""
    found = []
    x = network.stem(x).detach()
    for stage in network.stages:
        for block in stage.children():
            found.append((x.untyped_storage().nbytes(), saved_activation_bytes(block, x.requires_grad_())))
            x = block(x).detach()
    return found


def test_saved_activations_count_each_memory_once() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2.0
            return y.exp() * y.sin() * y.view(-1).cos().view_as(y)

    x = torch.ones(10, 10, requires_grad=True)
    # y; exp; sin; their product; cos: five memories of 400 bytes
    assert saved_activation_bytes(Twice(), x) == 5 * 400


def test_without_gradients_nothing_is_kept_and_nothing_differs() -> None:
    network = tiny("bottleneck").eval()
    expected = network(images())
    checkpoint_activations(network)
    with torch.no_grad():
        assert torch.equal(network(images()), expected)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_step_of_resnet152_within_24_gib() -> None:
    import resource

    network = build(named_spec("resnet152")).train()  # no checkpointing: the bar holds without it
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    F.cross_entropy(network(torch.randn(32, 3, 224, 224)), torch.arange(32)).backward()
    optimizer.step()
    assert all("momentum_buffer" in optimizer.state[weight] for weight in network.parameters())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 24 * 2**20  # KiB


def test_compiled_it_is_the_same_too() -> None:
    plain, checkpointed = (tiny("basic", depths=[1, 1], drop_path_rate=0.4).train() for _ in range(2))
    checkpoint_activations(checkpointed)
    keys = torch.arange(4)
    expected = gradients(plain, images(), sample_keys=keys)
    compiled = torch.compile(checkpointed, backend="aot_eager", fullgraph=True)
    F.cross_entropy(compiled(images(), sample_keys=keys), torch.arange(4)).backward()
    for name, weight in checkpointed.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name])
    for name, buffer in checkpointed.named_buffers():
        torch.testing.assert_close(buffer, plain.get_buffer(name))
