from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.train.config import LossConfig
from pipelines.train.losses import RowLoss, class_weights


def row_loss(
    smoothing: float = 0.0,
    counts: tuple[int, ...] = (1, 1, 1, 1),
    dtype: torch.dtype = torch.float64,
    **config: Any,
) -> RowLoss:
    return RowLoss(
        LossConfig(**config),
        smoothing=smoothing,
        targets=np.repeat(np.arange(len(counts)), counts),
        num_classes=len(counts),
        device=torch.device("cpu"),
        dtype=dtype,
    )


def draw(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 4, (6,), generator=generator)


@given(st.integers(0, 999), st.floats(0, 0.9))
@settings(max_examples=25)
def test_bce_is_a_yes_or_no_for_every_class(seed: int, smoothing: float) -> None:
    logits, targets = draw(seed)
    goal = F.one_hot(targets, 4).double() * (1 - smoothing) + smoothing / 4
    yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
    expected = -(goal * yes + (1 - goal) * no).sum(1)
    torch.testing.assert_close(row_loss(smoothing, name="bce")(logits, targets), expected)


@given(st.integers(0, 999), st.floats(0, 5))
@settings(max_examples=25)
def test_focal_counts_what_is_known_less(seed: int, gamma: float) -> None:
    logits, targets = draw(seed)
    probability = logits.softmax(1)[torch.arange(6), targets]
    expected = -((1 - probability) ** gamma) * probability.log()
    losses = row_loss(name="focal", focal_gamma=gamma)(logits, targets)
    torch.testing.assert_close(losses, expected)
    assert (losses <= F.cross_entropy(logits, targets, reduction="none") + 1e-12).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_surely_right_row_gives_focal_a_gradient_that_is_a_number(gamma: float, smoothing: float) -> None:
    logits = torch.tensor([[60.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = row_loss(smoothing, (1, 1), torch.float32, name="focal", focal_gamma=gamma)
    loss(logits, torch.tensor([0, 0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().min() > 0.01


def test_focal_without_an_exponent_is_cross_entropy() -> None:
    logits, targets = draw(0)
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(row_loss(0.1, name="focal", focal_gamma=0.0)(logits, targets), expected)


@given(st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(any), st.sampled_from(["balanced", "effective"]))
def test_class_weights_are_one_on_average_and_larger_for_rarer_classes(counts: list[int], kind: str) -> None:
    targets = np.repeat(np.arange(len(counts)), counts)
    weights = class_weights(targets, len(counts), LossConfig(class_weights=kind))  # type: ignore[arg-type]
    assert weights[targets].mean() == pytest.approx(1)
    seen = [(count, weight) for count, weight in zip(counts, weights, strict=True) if count]
    assert [weight for _, weight in sorted(seen)] == sorted((weight for _, weight in seen), reverse=True)


def test_balanced_weights_make_classes_count_alike() -> None:
    losses = row_loss(counts=(30, 10), class_weights="balanced")(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert 30 * losses[0] == pytest.approx(float(10 * losses[1]))
