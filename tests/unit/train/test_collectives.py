from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.train.batch_norm import GlobalBatchNorm2d, make_global
from pipelines.train.collectives import World, join_trace, split_trace
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from tests.unit.train.worlds import in_threads

SPEC = ModelSpec(depths=(1, 1), channels=(6, 12), stem="cifar", num_classes=5)
GENERATOR = torch.Generator().manual_seed(5)
IMAGES = torch.randn(12, 3, 8, 8, generator=GENERATOR, dtype=torch.float64) * 3 + 1
TARGETS = torch.randint(0, 5, (12,), generator=GENERATOR)


def run_step(dtype: torch.dtype, shares: list[list[int]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """One forward and backward of the global batch, cut into shares; gradients and state of the last worker."""

    def work(world: World) -> tuple[list[Tensor], dict[str, Tensor]]:
        network = make_global(build(SPEC, seed=1), world).to(dtype)
        mine = torch.tensor(shares[world.rank], dtype=torch.int64)
        logits = network(IMAGES[mine].to(dtype))
        (F.cross_entropy(logits, TARGETS[mine], reduction="sum") / len(IMAGES)).backward()
        world.sum_gradients(network)
        return [p.grad.clone() for p in network.parameters() if p.grad is not None], network.state_dict()

    return in_threads(len(shares), work)[-1]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Relative difference of two gradients as wholes."""
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (one, other))
    return float((a - b).norm() / a.norm())


SPLITS = {
    "two, unequal": [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]],
    "three": [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]],
    "three, one without rows": [list(range(11)), [], [11]],
}


def test_any_number_of_workers_computes_the_gradient_of_the_global_batch() -> None:
    for dtype, bound in [(torch.float32, 1e-5), (torch.float64, 1e-12)]:
        alone, state = run_step(dtype, [list(range(12))])
        assert len(alone) == len(list(build(SPEC).parameters()))
        for name, shares in SPLITS.items():
            gradients, shared_state = run_step(dtype, shares)
            assert difference(alone, gradients) < bound, name
            for key, value in state.items():
                torch.testing.assert_close(shared_state[key], value, rtol=10 * bound, atol=10 * bound, msg=name)


def test_weights_of_the_plain_norm_are_kept_and_named_as_before() -> None:
    network = build(SPEC, seed=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    replaced = make_global(network, World())
    assert any(isinstance(module, GlobalBatchNorm2d) for module in replaced.modules())
    assert not any(type(module) is nn.BatchNorm2d for module in replaced.modules())
    assert list(replaced.state_dict()) == list(before)
    assert all(torch.equal(replaced.state_dict()[name], value) for name, value in before.items())


def test_a_single_worker_gets_torchs_own_bits() -> None:
    ours, plain = make_global(build(SPEC, seed=2), World()), build(SPEC, seed=2)
    images = IMAGES.float()
    assert torch.equal(ours(images), plain(images))
    assert torch.equal(ours.eval()(images), plain.eval()(images))


def test_a_batch_with_one_value_per_channel_uses_the_running_statistics() -> None:
    x = torch.tensor([[[[2.0]], [[-1.0]]]])

    def work(world: World) -> tuple[Tensor, Tensor, Tensor]:
        norm = GlobalBatchNorm2d(2, eps=1e-5, momentum=0.1, world=world)
        share = (x if world.rank == 0 else x[:0]).clone().requires_grad_()
        result = norm(share)
        result.sum().backward()
        assert share.grad is not None
        assert norm.running_mean is not None
        return result.detach(), share.grad, norm.running_mean

    for size in (1, 2):
        result, gradient, mean = in_threads(size, work)[0]
        torch.testing.assert_close(result, x / (1 + 1e-5) ** 0.5)
        torch.testing.assert_close(gradient, torch.full_like(x, 1 / (1 + 1e-5) ** 0.5))
        assert mean.tolist() == [0.0, 0.0]


def test_all_start_from_the_weights_of_the_first() -> None:
    def work(world: World) -> Tensor:
        network = nn.Linear(3, 2)
        nn.init.constant_(network.weight, float(world.rank + 1))
        world.copy_from_first(network)
        return network.weight.detach()

    assert [float(weight.mean()) for weight in in_threads(3, work)] == [1.0, 1.0, 1.0]


def test_figures_add_up_over_workers() -> None:
    summed = in_threads(3, lambda world: world.sum_values([1.0, world.rank], torch.device("cpu")))
    assert summed == [[3.0, 3.0]] * 3


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9))
def test_traces_add_up_exactly_as_limbs(traces: list[int]) -> None:
    limbs = [sum(parts) for parts in zip(*map(split_trace, traces), strict=True)]
    assert join_trace(limbs) == sum(traces) % 2**64
