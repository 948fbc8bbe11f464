from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.train.config import ProgressiveConfig, ScheduleConfig
from pipelines.train.schedule import rate_at, side_at

schedules = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["cosine", "one_cycle", "constant", "polynomial"]),
    warmup_epochs=st.floats(0, 12),
    start_fraction=st.floats(0, 1),
    final_fraction=st.floats(0, 1),
)


def rates(schedule: ScheduleConfig, steps_per_epoch: int, epochs: int) -> list[float]:
    return [
        rate_at(schedule, step=step, steps_per_epoch=steps_per_epoch, epochs=epochs)
        for step in range(steps_per_epoch * epochs)
    ]


@given(schedules, st.integers(1, 40), st.integers(1, 10))
def test_no_step_jumps_further_than_its_slope_allows(
    schedule: ScheduleConfig, steps_per_epoch: int, epochs: int
) -> None:
    values = rates(schedule, steps_per_epoch, epochs)
    last = max(1, len(values) - 1)
    warmup = min(schedule.warmup_epochs * steps_per_epoch, last)
    # The steepest a rise or a fall can be: straight over its own length, half a cosine pi/2 times that.
    # twice that for a square.
    steepest = max(1 / max(warmup, 1), 2 / max(last - warmup, 1))
    assert all(0 <= value <= 1 for value in values)
    for before, after in pairwise(values):
        assert abs(after - before) <= steepest + 1e-9


def test_one_cycle_starts_peaks_and_ends_where_it_says() -> None:
    schedule = ScheduleConfig(name="one_cycle", warmup_epochs=2, start_fraction=0.2, final_fraction=0.05)
    values = rates(schedule, steps_per_epoch=10, epochs=10)
    assert values[0] == pytest.approx(0.2)
    assert values[20] == max(values) == 1.0
    assert values[-1] == pytest.approx(0.05)
    assert values[60] == pytest.approx(1 - 0.95 * 40 / 79)


def test_cosine_is_half_way_in_the_middle() -> None:
    values = rates(ScheduleConfig(name="cosine", warmup_epochs=0), steps_per_epoch=101, epochs=1)
    assert (values[0], values[50], values[100]) == pytest.approx((1.0, 0.5, 0.0))


def test_a_warm_up_longer_than_the_run_still_reaches_the_peak() -> None:
    assert rates(ScheduleConfig(warmup_epochs=50), steps_per_epoch=4, epochs=1)[-1] == 1.0


def test_a_run_of_one_step_trains_at_the_peak_or_the_warm_up() -> None:
    assert rates(ScheduleConfig(name="constant", warmup_epochs=0), steps_per_epoch=1, epochs=1) == [1.0]
    assert rates(ScheduleConfig(name="cosine", warmup_epochs=1), steps_per_epoch=1, epochs=1) == [0.1]


def test_steps_come_down_at_their_milestones() -> None:
    schedule = ScheduleConfig(name="multi_step", milestones=(2, 3.5), gamma=0.5, warmup_epochs=0)
    values = rates(schedule, steps_per_epoch=4, epochs=5)
    assert values == [1.0] * 8 + [0.5] * 6 + [0.25] * 6


def test_polynomial_falls_as_a_power_of_what_is_left() -> None:
    schedule = ScheduleConfig(name="polynomial", power=3.0, warmup_epochs=0, final_fraction=0.1)
    values = rates(schedule, steps_per_epoch=11, epochs=1)
    assert values[5] == pytest.approx(0.1 + 0.9 * 0.5**3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "multi_step"}, "needs milestones"),
        ({"name": "cosine", "milestones": (3.0,)}, "the others take none"),
        ({"name": "multi_step", "milestones": (3.0, 2.0)}, "must be above 0 and rise"),
        ({"name": "multi_step", "milestones": (0.0, 2.0)}, "must be above 0 and rise"),
        ({"name": "cosine", "gamma": 0.5}, "only multi_step has it"),
        ({"name": "cosine", "power": 1.0}, "only polynomial has it"),
    ],
    ids=["no-milestones", "for-none", "falling", "zero", "gamma", "power"],
)
def test_what_a_shape_does_not_have_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ScheduleConfig(**values)


@given(st.floats(0.1, 1), st.floats(0.1, 1), st.integers(1, 64), st.integers(8, 300), st.integers(1, 40))
def test_images_grow_to_their_full_side(start: float, full_at: float, multiple: int, side: int, epochs: int) -> None:
    progressive = ProgressiveConfig(start_fraction=start, full_at=full_at, multiple_px=multiple)
    sides = [side_at(progressive, side_px=side, epoch=epoch, epochs=epochs) for epoch in range(1, epochs + 1)]
    assert sides == sorted(sides)
    assert all(value == side or value % multiple == 0 for value in sides)
    assert all(value == side for value in sides[math.ceil(full_at * epochs) :])
    if epochs > 1 and full_at * epochs > 1 and start < 1:
        assert abs(sides[0] - start * side) <= multiple


def test_without_it_images_have_their_full_side() -> None:
    assert side_at(ProgressiveConfig(), side_px=33, epoch=1, epochs=10) == 33
