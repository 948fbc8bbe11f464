"""A loop that calls back, taken step by step."""

import threading
from collections.abc import Callable

import pytest

from pipelines.tune.stepwise import Stalled, StepwiseFit


def counting(epochs: int, done: list[int]) -> Callable[[Callable[[int], bool]], str]:
    def fit(on_epoch: Callable[[int], bool]) -> str:
        for epoch in range(1, epochs + 1):
            done.append(epoch)
            if not on_epoch(epoch):
                return f"stopped at {epoch}"
        return "finished"

    return fit


def test_epochs_come_one_by_one_and_then_the_outcome() -> None:
    done: list[int] = []
    fit: StepwiseFit[int, str] = StepwiseFit(counting(2, done))
    assert [fit.next(), fit.next(), fit.next()] == [(1, None), (2, None), (None, "finished")]
    assert fit.stop()


def test_nothing_runs_ahead() -> None:
    done: list[int] = []
    fit: StepwiseFit[int, str] = StepwiseFit(counting(5, done))
    fit.next()
    assert done == [1]
    assert fit.stop()
    assert done == [1]


def test_stopping_in_the_middle_of_an_epoch_ends_after_it() -> None:
    entered, leave, done = threading.Event(), threading.Event(), list[int]()

    def fit(on_epoch: Callable[[int], bool]) -> str:
        entered.set()
        leave.wait(10)
        return counting(3, done)(on_epoch)

    running: StepwiseFit[int, str] = StepwiseFit(fit)
    assert entered.wait(10)
    assert running.stop(timeout_s=0.01) is False
    leave.set()
    assert running.stop() is True
    assert done == [1]


def test_an_error_comes_out_where_it_is_asked_for() -> None:
    def fit(on_epoch: Callable[[int], bool]) -> str:
        on_epoch(1)
        raise ZeroDivisionError("in epoch 2")

    running: StepwiseFit[int, str] = StepwiseFit(fit)
    assert running.next() == (1, None)
    with pytest.raises(ZeroDivisionError, match="in epoch 2"):
        running.next()


def test_a_training_that_hangs_is_noticed() -> None:
    leave = threading.Event()

    def fit(on_epoch: Callable[[int], bool]) -> str:
        leave.wait(10)
        return "late"

    running: StepwiseFit[int, str] = StepwiseFit(fit)
    with pytest.raises(Stalled, match=r"no epoch ended within 0\.01 s"):
        running.next(timeout_s=0.01)
    leave.set()
    assert running.next() == (None, "late")
