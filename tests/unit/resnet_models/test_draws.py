from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnet_models.draws import SampleDraws

CONSECUTIVE = torch.arange(20_000)  # the hardest keys: a trainer's are hashes already
SPREAD = torch.randint(-(2**63), 2**63 - 1, (20_000,), generator=torch.Generator().manual_seed(3))
HIGH_ONLY = torch.arange(20_000) << 32


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), st.integers(0, 3000), st.randoms())
def test_a_draw_belongs_to_its_key(keys: list[int], layer: int, random) -> None:  # type: ignore[no-untyped-def]
    together = SampleDraws(torch.tensor(keys))
    order = list(range(len(keys)))
    random.shuffle(order)
    shuffled = SampleDraws(torch.tensor(keys)[order])
    for shape in ((), (3,), (2, 3, 2)):
        batch = together.uniform(layer, shape)
        assert batch.shape == (len(keys), *shape)
        assert torch.equal(batch[order], shuffled.uniform(layer, shape))
        for row, key in enumerate(keys):
            assert torch.equal(SampleDraws(torch.tensor([key])).uniform(layer, shape)[0], batch[row])


def test_recorded_draws_never_change() -> None:
    # A resumed run and another device must draw the same; computed once by plain Python integers below.
    draws = SampleDraws(torch.tensor([0, 1, -1, 2**62 + 12345]))
    expected = [[_reference(key, layer) for layer in (0, 7)] for key in draws.keys.tolist()]
    assert torch.stack([draws.uniform(0), draws.uniform(7)], dim=1).tolist() == expected


def _reference(key: int, layer: int) -> float:
    def mix(x: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = ((x ^ (x >> shift)) * factor) % 2**32
        return x ^ (x >> 16)

    low, high = key % 2**32, (key % 2**64) >> 32
    state = mix(mix(low ^ mix(2 * layer + 1)) ^ high ^ mix(2 * layer + 2))
    return (state >> 8) * 2.0**-24


@pytest.mark.parametrize("keys", [CONSECUTIVE, SPREAD, HIGH_ONLY], ids=["consecutive", "spread", "high_bits"])
@pytest.mark.parametrize("layer", [0, 1, 57, 1201])
def test_uniform_across_samples(keys: Tensor, layer: int) -> None:
    _check_uniform(SampleDraws(keys).uniform(layer))


@pytest.mark.parametrize("key", [0, 1, -7, 2**40])
@pytest.mark.parametrize("layer", [0, 3])
def test_uniform_across_positions(key: int, layer: int) -> None:
    _check_uniform(SampleDraws(torch.tensor([key])).uniform(layer, (4, 50, 100))[0].flatten())


def test_uniform_across_layers() -> None:
    draws = SampleDraws(torch.tensor([5]))
    _check_uniform(torch.cat([draws.uniform(layer) for layer in range(5000)]))


def _check_uniform(values: Tensor) -> None:
    """Mean, variance and a chi-square over 64 bins, each within about 4.5 standard deviations."""
    values = values.double()
    count = values.numel()
    assert values.dtype == torch.float64
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert abs(values.mean() - 0.5) < 4.5 * (1 / 12 / count) ** 0.5
    assert abs(values.var() - 1 / 12) < 4.5 * (1 / 180 / count) ** 0.5
    observed = torch.bincount((values * 64).long(), minlength=64).double()
    chi_square = float(((observed - count / 64) ** 2 / (count / 64)).sum())
    assert abs(chi_square - 63) < 4.5 * (2 * 63) ** 0.5


def test_layers_positions_and_samples_are_uncorrelated() -> None:
    keys = CONSECUTIVE[:4000]
    draws = SampleDraws(keys)
    columns = [draws.uniform(layer) for layer in range(12)]
    columns += list(draws.uniform(3, (6,)).unbind(1))
    columns += [SampleDraws(keys + 1).uniform(0), SampleDraws(keys + (1 << 32)).uniform(0)]
    correlations = torch.corrcoef(torch.stack(columns).double()) - torch.eye(len(columns))
    assert correlations.abs().max() < 5.0 / len(keys) ** 0.5
    joint = torch.corrcoef((torch.stack(columns[:12]) < 0.1).double()) - torch.eye(12)  # what a drop decides
    assert joint.abs().max() < 5.0 / len(keys) ** 0.5


def test_no_two_samples_share_a_stream() -> None:
    # Streams that are reorderings or shifts of each other would hold the same values.
    streams = SampleDraws(torch.tensor([10, 11])).uniform(2, (4096,))
    shared = set(streams[0].tolist()) & set(streams[1].tolist())
    assert len(shared) < 10  # 4096^2 / 2^24 = 1 expected by chance


def test_bits_are_balanced() -> None:
    words = (SampleDraws(CONSECUTIVE).uniform(4) * 2**24).long()
    ones = torch.stack([(words >> bit) & 1 for bit in range(24)]).double().mean(dim=1)
    assert (ones - 0.5).abs().max() < 4.5 * 0.5 / len(CONSECUTIVE) ** 0.5


def test_exports_with_a_dynamic_batch() -> None:
    class Drawing(nn.Module):
        def forward(self, keys: Tensor) -> tuple[Tensor, Tensor]:
            draws = SampleDraws(keys)
            return draws.uniform(3), draws.uniform(4, (2, 5))

    exported = torch.export.export(
        Drawing(), (torch.arange(4),), dynamic_shapes={"keys": {0: torch.export.Dim("batch", min=2)}}
    )
    keys = SPREAD[:9]
    for ours, theirs in zip(Drawing()(keys), exported.module()(keys), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("keys", "shown"), [(torch.zeros(3), "torch.float32 of shape [3]"), (torch.zeros(3, 2).long(), "[3, 2]")]
)
def test_wrong_keys_are_refused(keys: Tensor, shown: str) -> None:
    with pytest.raises(ValueError, match="they must be int64 of shape \\[N\\], one a sample") as refused:
        SampleDraws(keys)
    assert shown in str(refused.value)


@pytest.mark.gpu
def test_same_draws_on_a_gpu() -> None:
    for shape in ((), (3, 4)):
        there = SampleDraws(SPREAD[:100].cuda()).uniform(5, shape).cpu()
        assert torch.equal(there, SampleDraws(SPREAD[:100]).uniform(5, shape))
