"""What gives a label away: figures worked by hand, planted properties, and that chance is not taken for a sign."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset import predictive
from pipelines.dataset.predictive import as_numbers, find_predictive

LABELS = pa.array(["a"] * 6 + ["b"] * 6)


def share(values: list[float]) -> float:
    return find_predictive({"x": np.array(values, np.float64)}, LABELS)["x"].share


def test_numbers_are_told_by_their_order() -> None:
    assert share([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]) == 1.0
    assert share([7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6e9]) == pytest.approx(1 - 2 * 6 / 36, abs=1e-4)
    assert share([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]) == 0.0
    assert share([5] * 12) == 0.0
    # 30 of the 36 pairs are in order: AUC 5/6
    assert share([1, 2, 3, 4, 5, 12, 6, 7, 8, 9, 10, 11]) == pytest.approx(4 / 6, abs=1e-4)


def test_names_are_told_by_their_counts() -> None:
    found = find_predictive({"site": ["x"] * 6 + ["y"] * 6, "one": ["x"] * 12, "even": ["x", "y"] * 6}, LABELS)
    assert (found["site"].share, found["one"].share, found["even"].share) == (1.0, 0.0, 0.0)


def test_one_class_among_many_is_found_and_named() -> None:
    draw = np.random.default_rng(0)
    number = np.repeat(np.arange(20), 50)
    dark = np.where(number == 7, 0.05, draw.random(1000))
    labels = pa.array([f"c{each:02d}" for each in number])
    site = ["left" if each == 3 else "right" for each in number]
    found = find_predictive({"brightness": dark, "site": site, "noise": draw.random(1000)}, labels)
    assert (found["brightness"].label, found["site"].label) == ("c07", "c03")
    assert found["brightness"].excess > 0.85
    assert found["site"].excess == 1.0
    assert found["noise"].excess == 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.booleans())
def test_what_has_nothing_to_do_with_labels_is_rarely_taken_for_a_sign(seed: int, classes: int, is_name: bool) -> None:
    draw = np.random.default_rng(seed)
    labels = pa.array([f"c{each}" for each in draw.integers(0, classes, 300)])
    values = [f"v{each}" for each in draw.integers(0, 40, 300)] if is_name else draw.random(300)
    found = find_predictive({"x": values}, labels)["x"]
    assert found.share < 1.6 * found.chance


def test_chance_knows_the_rare_classes_of_a_large_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(3)
    number = np.concatenate([np.repeat(np.arange(100), 5), np.full(19_500, 100)])
    labels = pa.array([f"c{each:03d}" for each in number])
    values = {"noise": draw.random(20_000), "site": [f"s{each}" for each in draw.integers(0, 3, 20_000)]}
    whole = find_predictive(values, labels)
    monkeypatch.setattr(predictive, "SHUFFLED_ROWS", 2_000)
    found = find_predictive(values, labels)
    assert whole["noise"].share > 0.5  # five images lie anyhow
    for name in values:
        assert found[name].share == whole[name].share
        assert found[name].chance == pytest.approx(whole[name].chance, rel=0.15)
        assert found[name].excess == 0.0


def test_chance_falls_with_the_size_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(4)
    labels = pa.array([f"c{each}" for each in draw.integers(0, 4, 20_000)])
    values = {"noise": draw.random(20_000), "site": [f"s{each}" for each in draw.integers(0, 30, 20_000)]}
    whole = find_predictive(values, labels)
    monkeypatch.setattr(predictive, "SHUFFLED_ROWS", 2_000)
    found = find_predictive(values, labels)
    for name in values:
        assert found[name].chance == pytest.approx(whole[name].chance, rel=0.4)


def test_many_names_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = pa.array([f"c{number // 100}" for number in range(400)])
    values = {"scanner": [f"s{number // 50}" for number in range(400)]}
    whole = find_predictive(values, labels)["scanner"]
    assert whole.share == 1.0
    monkeypatch.setattr(predictive, "_MAX_CELLS", 10)
    assert find_predictive(values, labels)["scanner"] == whole


def test_identifiers_give_nothing_away_beyond_chance() -> None:
    labels = pa.array([f"c{number % 3}" for number in range(90)])
    assert find_predictive({"patient": [f"p{number}" for number in range(90)]}, labels)["patient"].excess == 0.0


def test_rows_with_several_labels_count_for_each_and_unlabelled_ones_for_none() -> None:
    labels = pa.array([["cat"], ["cat", "dog"], None, [], ["dog"]] * 10, pa.list_(pa.string()))
    values = np.array([1.0, 1.0, 99.0, -99.0, 0.0] * 10)
    found = find_predictive({"x": values}, labels)["x"]
    assert (found.label, found.share) == ("cat", 1.0)
    assert find_predictive({"x": values}, pa.nulls(50, pa.string()))["x"].share == 0.0


def test_small_classes_are_left_out() -> None:
    labels = pa.array(["a"] * 20 + ["b"] * 20 + ["rare"] * 4)
    values = np.array([*range(20), *range(20), 100, 101, 102, 103], np.float64)
    assert find_predictive({"x": values}, labels)["x"].share == 0.0


def test_text_is_a_number_where_all_of_it_is() -> None:
    numbers = as_numbers(pa.chunked_array([["1", "2.5"], ["-3"]]))
    assert numbers is not None
    assert numbers.tolist() == [1.0, 2.5, -3.0]
    for column in (["1", "x"], ["1", None], ["1", "1"], ["1", "nan"]):
        assert as_numbers(pa.chunked_array([column])) is None
