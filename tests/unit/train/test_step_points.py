"""The curve of an epoch's steps: how many points, of which steps, and what they say."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pipelines.train.schedule import rate_at
from pipelines.train.step_log import StepLog
from pipelines.train.step_points import POINTS, step_points
from tests.unit.train.tiny import make_config


def make_log(number: int, first: int = 1) -> StepLog:
    log = StepLog(first=first)
    for index in range(number):
        log.add(float(index), trace=0, images_per_s=100.0)
    return log


@pytest.mark.parametrize(("number", "every", "count"), [(4, 0, 4), (100, 0, 25), (3000, 0, POINTS), (100, 30, 4)])
def test_every_step_counts_in_one_point(number: int, every: int, count: int) -> None:
    config = make_config("d", log_every_steps=every)
    points = step_points(make_log(number, first=number + 1), config, steps_per_epoch=number)
    assert len(points) == count
    assert points[-1].step == 2 * number
    sizes = [after.step - before.step for before, after in pairwise(points)]
    assert not sizes or max(sizes) - min(sizes) <= 1
    losses = [point.figures["step_loss"] for point in points]
    weights = [points[0].step - number, *sizes]
    total = sum(loss * weight for loss, weight in zip(losses, weights, strict=True))
    assert total == pytest.approx(sum(range(number)))


def test_rate_and_speed_are_those_of_the_steps() -> None:
    config = make_config("d", epochs=3)
    log = make_log(4, first=5)
    log.rate_scales = [0.5] * 4
    log.images_per_s = [50.0, 100.0, 0.0, 100.0]
    first, _, third, last = step_points(log, config, steps_per_epoch=4)
    rate = rate_at(config.schedule, step=4, steps_per_epoch=4, epochs=3)
    assert first.figures == {"step_loss": 0.0, "step_lr": config.optimizer.lr * rate * 0.5, "step_images_per_s": 50.0}
    assert "step_images_per_s" not in third.figures  # not known
    assert last.at_s == log.ended_s[-1] > 0


def test_a_log_of_an_earlier_release_has_no_times() -> None:
    values = make_log(3).to_json()
    for name in ("images_per_s", "ended_s"):
        del values[name]
    log = StepLog.from_json(values)
    log.add(1.0, trace=0, images_per_s=10.0)  # the run went on
    assert log.images_per_s == [0.0, 0.0, 0.0, 10.0]
    points = step_points(log, make_config("d"), steps_per_epoch=4)
    assert [point.at_s > 0 for point in points] == [False, False, False, True]


def test_an_epoch_without_a_known_step_has_no_point() -> None:
    assert step_points(StepLog(first=9), make_config("d"), steps_per_epoch=4) == []
