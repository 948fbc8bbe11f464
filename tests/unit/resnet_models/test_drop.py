from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resnet_models.draws import SampleDraws
from resnet_models.drop import DropBlock, DropPath, SampleDropout

KEYS = torch.randint(-(2**63), 2**63 - 1, (2000,), generator=torch.Generator().manual_seed(1))
DROPS = {
    "path": lambda rate: DropPath(rate, layer=4),
    "dropout": lambda rate: SampleDropout(rate, layer=5),
    "block": lambda rate: DropBlock(rate, block_size=3, layer=6),
}


def positive_images(count: int) -> Tensor:
    return torch.rand(count, 3, 9, 11, generator=torch.Generator().manual_seed(2)) + 0.5


@pytest.mark.parametrize("kind", DROPS)
def test_identity_in_eval_mode_and_at_rate_zero(kind: str) -> None:
    x = positive_images(4)
    assert DROPS[kind](0.5).eval()(x, SampleDraws(KEYS[:4])) is x
    assert DROPS[kind](0.0).train()(x) is x


@pytest.mark.parametrize("kind", DROPS)
def test_a_sample_is_dropped_alike_in_any_batch(kind: str) -> None:
    drop = DROPS[kind](0.4).train()
    x = positive_images(6)
    whole = drop(x, SampleDraws(KEYS[:6]))
    assert not torch.equal(whole, x)
    order = [5, 2, 0]
    assert torch.equal(drop(x[order], SampleDraws(KEYS[order])), whole[order])
    assert torch.equal(drop(x, SampleDraws(KEYS[:6])), whole)  # whatever torch's generator did meanwhile
    assert not torch.equal(drop(x, SampleDraws(KEYS[6:12])), whole)


@pytest.mark.parametrize("kind", DROPS)
@pytest.mark.parametrize("keyed", [True, False])
def test_expectation_is_kept(kind: str, keyed: bool) -> None:
    torch.manual_seed(0)
    x = torch.ones(2000, 3, 9, 11)
    out = DROPS[kind](0.2).train()(x, SampleDraws(KEYS) if keyed else None)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.05)
    assert 0.15 < float((out == 0).float().mean()) < 0.25


def test_drop_path_drops_whole_samples_and_scales_the_rest() -> None:
    x = positive_images(2000)
    out = DropPath(0.25, layer=1).train()(x, SampleDraws(KEYS))
    dropped = (out == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    torch.testing.assert_close(out[~dropped.any(1)], x[~dropped.any(1)] / 0.75)
    assert float(dropped.all(1).float().mean()) == pytest.approx(0.25, abs=0.04)


def test_layers_drop_independently() -> None:
    x = torch.ones(2000, 1, 1, 1)
    first, second = (DropPath(0.5, layer=layer).train()(x, SampleDraws(KEYS)).flatten() > 0 for layer in (0, 1))
    both = float((first & second).float().mean())
    assert both == pytest.approx(0.25, abs=0.04)


def test_dropout_values_are_independent_within_a_sample() -> None:
    out = SampleDropout(0.5, layer=2).train()(torch.ones(2000, 16), SampleDraws(KEYS))
    correlations = torch.corrcoef((out > 0).double().T) - torch.eye(16)
    assert correlations.abs().max() < 5.0 / 2000**0.5


@pytest.mark.parametrize("block_size", [1, 2, 3, 5])
def test_drop_block_zeroes_whole_squares_and_normalises_by_the_sample(block_size: int) -> None:
    x = positive_images(50)
    out = DropBlock(0.1, block_size, layer=3).train()(x, SampleDraws(KEYS[:50]))
    zero = (out == 0).float()
    # every zero lies in some all-zero square: opening by the square leaves the set as it is
    squares = -nn.functional.max_pool2d(-zero, block_size, stride=1)
    spread = nn.functional.max_pool2d(nn.functional.pad(squares, (block_size - 1,) * 4), block_size, stride=1)
    assert torch.equal(spread, zero)
    kept = 1.0 - zero.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(out, x * (1.0 - zero) / kept)


def test_drop_block_gamma_is_the_papers() -> None:
    # arXiv:1810.12890, eq. 1, on a 9x11 map: corners fall with (1 - keep_prob) / 3^2 x 9 x 11 / (7 x 9).
    drop = DropBlock(0.1, block_size=3, layer=3).train()
    x = torch.ones(2000, 1, 9, 11)
    corners = SampleDraws(KEYS).uniform(3, (1, 7, 9)) < 0.1 / 9 * 99 / 63
    expected = torch.zeros(2000, 1, 9, 11)
    for sample, channel, row, column in corners.nonzero().tolist():
        expected[sample, channel, row : row + 3, column : column + 3] = 1.0
    assert torch.equal(drop(x, SampleDraws(KEYS)) == 0, expected == 1)


def test_drop_block_on_a_map_smaller_than_the_block() -> None:
    out = DropBlock(0.5, block_size=7, layer=0).train()(torch.ones(200, 4, 2, 3), SampleDraws(KEYS[:200]))
    assert torch.isfinite(out).all()
    assert (out == 0).any()
    alone = DropBlock(0.9, block_size=7, layer=0).train()(torch.ones(200, 1, 1, 1), SampleDraws(KEYS[:200]))
    assert torch.isfinite(alone).all()  # nothing kept of some samples: zeros, no division by zero


@pytest.mark.parametrize("kind", DROPS)
def test_half_precision_stays_and_gradients_flow_through_what_is_kept(kind: str) -> None:
    x = positive_images(8).to(torch.bfloat16).requires_grad_()
    out = DROPS[kind](0.4).train()(x, SampleDraws(KEYS[:8]))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, out == 0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize(("kind", "name"), [("path", "DropPath"), ("dropout", "SampleDropout"), ("block", "DropBlock")])
def test_wrong_rates_are_refused(kind: str, name: str, rate: float) -> None:
    with pytest.raises(ValueError, match=f"{name}'s rate is .*; it must be at least 0 and below 1"):
        DROPS[kind](rate)


def test_a_block_of_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match="DropBlock's block_size is 0; it must be at least 1, and 7 is the paper's"):
        DropBlock(0.1, 0, layer=0)
