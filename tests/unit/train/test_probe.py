from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ConfigError, DataError
from pipelines.plots.rate_range import rate_range
from pipelines.train import probe
from pipelines.train.schedule import side_at
from tests.unit.train.seen import training_inputs
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


def test_of_several_workers_a_smoke_run_is_one(dataset: str) -> None:
    with training_inputs() as inputs:
        figures = probe.smoke(make_config(dataset, epochs=5, num_workers=4)).figures
    assert [len(images) for images in inputs] == [5, 5]
    assert figures["steps"] == "2 of 20"
    assert str(figures["whole_run_would_take"]).endswith(" with 4 workers like this process")


def test_a_look_refuses_what_the_run_would(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="use_gpu is true"):
        probe.smoke(make_config(dataset, use_gpu=True))
    with pytest.raises(ConfigError, match="num_workers is 21"):
        probe.find_rate(make_config(dataset, num_workers=21))


PROGRESSIVE = {"start_fraction": 0.5, "full_at": 0.9, "multiple_px": 2}
"""Ten epochs of 8-pixel images: the first of 4 pixels, then of 6, the last of 8."""


def test_a_look_finds_what_it_starts_from_in_the_runs_own_store(dataset: str) -> None:
    config = make_config(dataset, tracking={"uri": "http://localhost:5000", "enabled": True})
    tracking = probe._pinned(config).tracking
    assert (tracking.uri, tracking.enabled) == ("http://localhost:5000", False)


def test_progressive_images_are_measured_at_their_full_size(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(dataset, epochs=10, progressive=PROGRESSIVE)
    times = {4: 1.0, 6: 2.25, 8: 4.0}
    with training_inputs() as inputs:
        # A clock by which a step takes what its pixels would, and all else nothing.
        monkeypatch.setattr(probe.time, "perf_counter", lambda: sum(times[each.shape[-1]] for each in inputs))
        figures = probe.smoke(config).figures
    assert [images.shape[-1] for images in inputs] == [4, 4, 8, 8]
    sides = [side_at(config.progressive, side_px=8, epoch=epoch, epochs=10) for epoch in range(1, 11)]
    assert set(sides) == {4, 6, 8}
    whole_s = sum(4 * times[side] for side in sides)
    assert figures["steps"] == "4 of 40"
    assert figures["whole_run_would_take"] == f"{whole_s / 60:.0f} min"
    assert figures["images_per_s"] == 20 / times[8]


def test_the_range_test_sees_progressive_images_at_their_full_size(dataset: str) -> None:
    with training_inputs() as inputs:
        probe.find_rate(make_config(dataset, epochs=10, progressive=PROGRESSIVE), steps=30)
    assert {images.shape[-1] for images in inputs} == {8}


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
