from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.plots.rate_range import rate_range
from pipelines.train import probe
from tests.unit.train.tiny import make_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def test_a_smoke_run_keeps_nothing_and_says_what_the_whole_would_take(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = probe.smoke(make_config(dataset, epochs=5))
    assert result.figures["steps"] == "2 of 20"
    assert list(tmp_path.iterdir()) == []


def test_the_range_test_finds_where_the_loss_breaks(dataset: str) -> None:
    result, points = probe.find_rate(make_config(dataset, optimizer={"lr": 1.0}), steps=60)
    rates = [point.lr for point in points]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(1e-4)
    suggested = probe.suggested_rate(points)
    assert rates[0] < suggested < rates[-1]
    assert f"optimizer.lr={suggested:g}" in str(result.figures["suggested"])
    assert rate_range(rates, [point.smooth for point in points], suggested).data.startswith(b"\x89PNG")


def test_a_range_in_which_nothing_is_learnt_is_told(dataset: str) -> None:
    with pytest.raises(DataError, match="did not fall at any rate"):
        probe.find_rate(make_config(dataset, optimizer={"lr": 1e-9}), steps=10)
