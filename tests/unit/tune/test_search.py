"""The stopping rule, on figures alone."""

import itertools

import pytest

from pipelines.tune.search import Asha


def asha(**changes: int) -> Asha:
    return Asha(**({"grace_epochs": 1, "reduction_factor": 3, "max_epochs": 27} | changes))


@pytest.mark.parametrize(
    ("grace", "factor", "most", "rungs"),
    [(1, 3, 27, [1, 3, 9]), (2, 2, 20, [2, 4, 8, 16]), (5, 4, 5, []), (1, 2, 1, [])],
)
def test_rungs_lie_below_the_last_epoch(grace: int, factor: int, most: int, rungs: list[int]) -> None:
    rule = Asha(grace_epochs=grace, reduction_factor=factor, max_epochs=most)
    assert list(rule.rungs) == rungs


def test_the_first_to_arrive_goes_on_and_the_best_always_does() -> None:
    rule = asha()
    assert rule.should_stop("a", 1, 0.5) is False
    assert rule.should_stop("b", 1, 0.4) is True
    assert rule.should_stop("c", 1, 0.6) is False
    assert rule.should_stop("d", 1, 0.7) is False


def test_a_third_goes_on() -> None:
    rule = asha()
    figures = {f"t{i}": i / 10 for i in range(1, 9)}
    rule.replay({trial: [(1, figure)] for trial, figure in figures.items()})
    assert rule.should_stop("x", 1, 0.55) is True  # fourth of nine
    rule = asha()
    rule.replay({trial: [(1, figure)] for trial, figure in figures.items()})
    assert rule.should_stop("x", 1, 0.65) is False  # third of nine


def test_ties_go_on() -> None:
    rule = asha()
    assert [rule.should_stop(trial, 1, 0.5) for trial in "abcd"] == [False] * 4


def test_between_rungs_nothing_is_decided() -> None:
    rule = asha()
    rule.should_stop("a", 1, 0.9)
    assert rule.should_stop("b", 2, 0.0) is False
    assert rule.should_stop("b", 27, 0.0) is False


def test_a_decision_stands_when_a_resumed_trial_reports_the_epoch_again() -> None:
    rule = asha()
    assert rule.should_stop("a", 1, 0.1) is False
    rule.replay({trial: [(1, 0.9)] for trial in "bcd"})
    assert rule.should_stop("a", 1, 0.1) is False


def test_replayed_records_give_the_same_state_in_any_order() -> None:
    curves = {"a": [(1, 0.3), (2, 0.4), (3, 0.5)], "b": [(1, 0.2)], "c": [(1, 0.6), (2, 0.6), (3, 0.7)]}
    live = asha()
    for trial, curve in curves.items():
        for epoch, figure in curve:
            live.should_stop(trial, epoch, figure)
    for order in itertools.permutations(curves):
        replayed = asha()
        for trial in order:
            replayed.replay({trial: curves[trial]})
        assert replayed.rungs == live.rungs
