"""Ensembles, snapshots and soups: exact on what they promise, refusing what cannot be averaged."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.ensemble import Ensemble
from resnet_models.errors import SpecError
from resnet_models.explain.gradcam import grad_cam
from resnet_models.norm import GhostBatchNorm, SyncedBatchNorm
from resnet_models.resnet import ResNet, build
from resnet_models.snapshot import SnapshotCollector, snapshot_lr_factor
from resnet_models.soup import greedy_soup, remeasure_statistics, uniform_soup
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import WeightsError, load_strict, pack_weights, unpack_weights
from tests.squares import SPEC, square_batch, trained_on_squares


@pytest.fixture(scope="module")
def fine_tuned() -> list[ResNet]:
    """Return three networks that share their first steps, as soups need it, and one that diverged."""
    start = trained_on_squares(steps=15)
    networks = [trained_on_squares(seed=seed, steps=10, network=copy.deepcopy(start)) for seed in (1, 2, 3)]
    spoilt = copy.deepcopy(start)
    with torch.no_grad():
        for weight in spoilt.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return [*networks, spoilt]


def accuracy(network: nn.Module) -> float:
    assert not network.training
    images, targets, _ = square_batch(128, seed=99)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))  # or all would be right on all
    with torch.no_grad():
        return float((network(images + 0.35 * noise).argmax(dim=1) == targets).double().mean())


def measuring_batches() -> list[Tensor]:
    return [square_batch(count, seed=count)[0] for count in (64, 64, 32)]


def equal_states(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- ensemble


def test_logits_are_the_mean(fine_tuned: list[ResNet]) -> None:
    images, _, _ = square_batch(8, seed=1)
    stacked = torch.stack([network(images).double() for network in fine_tuned])
    within = 1e-6 * float(stacked.abs().max().detach())
    torch.testing.assert_close(Ensemble(fine_tuned).eval()(images).double(), stacked.mean(dim=0), rtol=0, atol=within)
    weighted = Ensemble(fine_tuned, [3, 1, 1, 5]).eval()(images).double()
    expected = torch.einsum("m,mnk->nk", torch.tensor([0.3, 0.1, 0.1, 0.5]).double(), stacked)
    torch.testing.assert_close(weighted, expected, rtol=0, atol=within)


def test_one_member_is_itself(fine_tuned: list[ResNet]) -> None:
    images, _, _ = square_batch(8, seed=1)
    assert torch.equal(Ensemble(fine_tuned[:1]).eval()(images), fine_tuned[0](images))


def test_behaves_like_a_network(fine_tuned: list[ResNet]) -> None:
    members = [copy.deepcopy(network) for network in fine_tuned[:2]]
    ensemble = Ensemble(members, [2.0, 1.0])
    assert (ensemble.spec, ensemble.specs) == (SPEC, (SPEC, SPEC))
    ensemble.train()
    assert all(module.training for member in members for module in member.modules())
    ensemble.eval()
    again = Ensemble([build(SPEC, seed=8), build(SPEC, seed=9)]).eval()
    load_strict(again, unpack_weights(pack_weights(ensemble.state_dict())))
    images, targets, _ = square_batch(4, seed=2)
    assert torch.equal(again(images), ensemble(images))
    assert ensemble.features(images).shape == (4, 32)
    assert [one.shape for one in ensemble.member_logits(images)] == [(4, 3), (4, 3)]
    F.cross_entropy(ensemble(images), targets).backward()
    assert all(weight.grad is not None for weight in ensemble.parameters())
    assert grad_cam(ensemble, images, layer="members.1.stages.1").shape == (4, 32, 32)
    half = copy.deepcopy(ensemble).double()
    assert half(images.double()).dtype == torch.float64
    exported = torch.export.export(ensemble, (images,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    more, _, _ = square_batch(7, seed=3)
    torch.testing.assert_close(exported.module()(more), ensemble(more))


def test_members_may_differ_in_depth() -> None:
    deep = ModelSpec(stem="cifar", depth=20, num_classes=3)
    ensemble = Ensemble([build(SPEC), build(deep)])
    assert ensemble.specs == (SPEC, deep)
    assert ensemble(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_sample_keys_reach_every_member() -> None:
    class Keyed(nn.Module):
        def forward(self, x: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
            return x if sample_keys is None else x + sample_keys[:, None]

    ensemble, x = Ensemble([Keyed(), Keyed()]), torch.zeros(2, 3)
    assert ensemble(x).eq(0).all()
    assert torch.equal(ensemble(x, sample_keys=torch.tensor([1, 5]))[:, 0], torch.tensor([1.0, 5.0]))
    dropping = Ensemble([build(replace(SPEC, drop_path_rate=0.9, norm="frozen"), seed=seed) for seed in (1, 2)]).train()
    images, keys = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    first = dropping.features(images, sample_keys=keys)
    assert torch.equal(dropping.features(images, sample_keys=keys), first)
    assert not torch.equal(dropping.features(images, sample_keys=keys + 8), first)


def test_impossible_ensembles_are_refused() -> None:
    ten = build(ModelSpec(stem="cifar", channels=(8, 16), depths=(1, 1), num_classes=10))
    grey = build(ModelSpec(stem="cifar", channels=(8, 16), depths=(1, 1), num_classes=3, in_channels=1))
    three = build(SPEC)
    with pytest.raises(
        SpecError, match="num_classes is 10: member 1 differs from member 0, which has 3; give members of one task"
    ):
        Ensemble([three, ten])
    with pytest.raises(SpecError, match="in_channels is 1: member 2 differs from member 0, which has 3"):
        Ensemble([three, three, grey])
    with pytest.raises(ValueError, match="member 1 is a Linear; members must all have a spec, or none"):
        Ensemble([three, nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="an ensemble has no members: give one network or more"):
        Ensemble([])
    with pytest.raises(ValueError, match="3 weights for 1 members: give one per member"):
        Ensemble([three], [1, 2, 3])
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"a weight is {weight}: it must be above 0"):
            Ensemble([three], [weight])


# ---- snapshots


@given(st.integers(1, 500), st.data())
def test_cycles_start_at_one_and_fall(total_steps: int, data: st.DataObject) -> None:
    cycles = data.draw(st.integers(1, total_steps))
    factors = [snapshot_lr_factor(step, total_steps=total_steps, cycles=cycles) for step in range(total_steps)]
    starts = [step for step, factor in enumerate(factors) if factor == 1.0]
    assert len(starts) == cycles
    assert starts[0] == 0
    lengths = [end - start for start, end in zip(starts, [*starts[1:], total_steps], strict=True)]
    assert max(lengths) - min(lengths) <= 1
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert all(later < earlier or later == 1.0 for earlier, later in pairwise(factors))
    collector = SnapshotCollector(total_steps=total_steps, cycles=cycles)
    ends = [step + 1 for step in range(total_steps) if collector.after_step(step, nn.Identity())]
    assert ends == [*starts[1:], total_steps]


def test_schedule_is_the_papers_where_cycles_divide_the_run() -> None:
    for step in range(60):
        printed = 0.5 * (math.cos(math.pi * (step % 15) / 15) + 1)  # eq. 2, with T = 60 and M = 4
        assert snapshot_lr_factor(step, total_steps=60, cycles=4) == pytest.approx(printed)


def test_snapshots_of_one_training_make_an_ensemble() -> None:
    network = build(SPEC)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    collector = SnapshotCollector(total_steps=30, cycles=3)
    kept = []
    for step in range(30):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * snapshot_lr_factor(step, total_steps=30, cycles=3)
        images, targets, _ = square_batch(16, seed=step)
        loss = F.cross_entropy(network.train()(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if collector.after_step(step, network):
            kept.append(copy.deepcopy(network).eval())
    assert len(kept) == 3
    ensemble = collector.ensemble(network, last=2).eval()
    assert len(ensemble.members) == 2
    assert equal_states(ensemble.members[0], kept[1])
    assert equal_states(ensemble.members[1], network)
    images, targets, _ = square_batch(64, seed=77)
    expected = torch.stack([member(images) for member in kept]).mean(dim=0)
    torch.testing.assert_close(collector.ensemble(network).eval()(images), expected)
    assert (expected.argmax(dim=1) == targets).double().mean() > 0.9

    file = io.BytesIO()  # a checkpoint carries the snapshots on
    torch.save(collector.snapshots, file)
    file.seek(0)
    resumed = SnapshotCollector(total_steps=30, cycles=3)
    resumed.snapshots = torch.load(file, weights_only=True)
    assert equal_states(resumed.ensemble(network), collector.ensemble(network))


def test_impossible_cycles_are_refused() -> None:
    for cycles in (0, 11):
        with pytest.raises(ValueError, match=f"cycles is {cycles}: a run of 10 steps has 1 to 10"):
            SnapshotCollector(total_steps=10, cycles=cycles)
    with pytest.raises(ValueError, match="step is 10: the run has steps 0 to 9"):
        snapshot_lr_factor(10, total_steps=10, cycles=2)
    with pytest.raises(ValueError, match="last is 0: 0 snapshots were kept so far"):
        SnapshotCollector(total_steps=10, cycles=2).ensemble(build(SPEC))


# ---- soups


def test_soup_of_one_is_itself(fine_tuned: list[ResNet]) -> None:
    for soup in (uniform_soup(fine_tuned[:1]), greedy_soup(fine_tuned[:1], accuracy).network):
        assert soup is not fine_tuned[0]
        assert equal_states(soup, fine_tuned[0])


def test_soup_of_equals_has_their_weights(fine_tuned: list[ResNet]) -> None:
    soup = uniform_soup([fine_tuned[0]] * 3, measuring_batches())
    for name, weight in soup.named_parameters():
        assert torch.equal(weight, fine_tuned[0].get_parameter(name)), name


def test_uniform_soup_is_the_mean_with_its_own_statistics(fine_tuned: list[ResNet]) -> None:
    before = [copy.deepcopy(network) for network in fine_tuned]
    soup = uniform_soup(fine_tuned[:3], measuring_batches())
    for name, weight in soup.named_parameters():
        mean = torch.stack([network.get_parameter(name).double() for network in fine_tuned[:3]]).mean(dim=0)
        torch.testing.assert_close(weight.double(), mean, rtol=1e-6, atol=1e-7)
    outputs = [soup.stem.conv(batch) for batch in measuring_batches()]
    weights = torch.tensor([64, 64, 32]) / 160
    mean = sum(weight * output.mean(dim=(0, 2, 3)) for weight, output in zip(weights, outputs, strict=True))
    variance = sum(weight * output.var(dim=(0, 2, 3)) for weight, output in zip(weights, outputs, strict=True))
    torch.testing.assert_close(soup.stem.norm.running_mean, mean.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(soup.stem.norm.running_var, variance.detach(), rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in soup.modules())
    assert {module.momentum for module in soup.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    assert all(equal_states(network, old) for network, old in zip(fine_tuned, before, strict=True))
    assert accuracy(soup) > 0.8, [accuracy(network) for network in fine_tuned]


def test_greedy_soup_is_never_below_the_best_single(fine_tuned: list[ResNet]) -> None:
    modes = [network.training for network in fine_tuned]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [3, 0], [1, 3, 2]):
        networks = [fine_tuned[index] for index in order]
        soup = greedy_soup(networks, accuracy, iter(measuring_batches()))
        assert soup.single_scores == tuple(accuracy(uniform_soup([network])) for network in networks)
        assert soup.score >= max(soup.single_scores)
        assert soup.score == accuracy(soup.network)
        assert order.index(3) not in soup.ingredients  # the spoilt one
        assert soup.single_scores[soup.ingredients[0]] == max(soup.single_scores)
    assert [network.training for network in fine_tuned] == modes


def test_greedy_soup_keeps_what_does_not_harm() -> None:
    constant = greedy_soup([build(SPEC, seed=seed) for seed in range(3)], lambda _: 0.5, measuring_batches())
    assert constant.ingredients == (0, 1, 2)
    only_first = iter([0.9, 0.5, 0.6, 0.8, 0.8])
    picky = greedy_soup([build(SPEC, seed=seed) for seed in range(3)], lambda _: next(only_first), measuring_batches())
    assert (picky.ingredients, picky.score, picky.single_scores) == ((0,), 0.9, (0.9, 0.5, 0.6))
    assert equal_states(picky.network, build(SPEC, seed=0))


def test_remeasured_statistics_leave_modes_and_dropout_alone() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3)).train()
    network[1].eval()
    images = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    remeasure_statistics(network, [images])
    torch.testing.assert_close(network[1].running_mean, images.mean(dim=(0, 2, 3)))
    assert (network[0].training, network[1].training, network[1].momentum) == (True, False, 0.1)


@pytest.mark.parametrize("norm", [SyncedBatchNorm(3), GhostBatchNorm(3, size=100), GhostBatchNorm(3, size=8)])
def test_other_batch_norms_are_remeasured(norm: nn.BatchNorm2d) -> None:
    batches = [square_batch(count, seed=count)[0] for count in (24, 8)]
    plain = nn.Sequential(nn.BatchNorm2d(3))
    network = nn.Sequential(norm)
    for one in (plain, network):
        remeasure_statistics(one, batches)
    torch.testing.assert_close(network[0].running_mean, plain[0].running_mean)
    torch.testing.assert_close(network[0].running_var, plain[0].running_var, rtol=0.01, atol=0.0)


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_soups_without_running_statistics_need_no_batches(norm: str) -> None:
    spec = replace(SPEC, norm=norm, norm_size=4 if norm == "group" else 0)
    soup = uniform_soup([build(spec, seed=seed) for seed in range(2)])
    assert soup(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_impossible_soups_are_refused(fine_tuned: list[ResNet]) -> None:
    other = build(ModelSpec(stem="cifar", channels=(8, 32), depths=(1, 1), num_classes=3))
    with pytest.raises(ValueError, match="a soup has no ingredients: give one network or more"):
        uniform_soup([])
    with pytest.raises(
        SpecError,
        match=r"channels is \[8, 32\]: network 1 differs from network 0, which has \[8, 16\]; "
        "weights can be averaged within one spec only; average the logits with Ensemble instead",
    ):
        uniform_soup([fine_tuned[0], other])
    with pytest.raises(WeightsError, match="weight of network 1 does not fit network 0: a soup needs equal networks"):
        uniform_soup([nn.Linear(2, 3), nn.Linear(3, 3)])
    with pytest.raises(WeightsError, match="bias of network 1 does not fit network 0"):
        uniform_soup([nn.Linear(2, 3, bias=False), nn.Linear(2, 3)])
    with pytest.raises(WeightsError, match="batches is empty: the norms' running statistics must be measured"):
        uniform_soup(fine_tuned[:2])
    with pytest.raises(ValueError, match="the score of network 0 is nan: a soup cannot be chosen by it"):
        greedy_soup(fine_tuned[:2], lambda _: math.nan)
