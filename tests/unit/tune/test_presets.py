"""Every preset of a sweep loads, and all it can sample fits the images it is meant for."""

import pytest

from pipelines.config.load import find_preset, load_config, preset_names
from pipelines.tune.config import TuneConfig
from pipelines.tune.space import make_trials

SIDES = {"digits": 8, "cifar10": 32, "default": 224}


def test_every_preset_has_its_images_here() -> None:
    assert set(preset_names("tune")) == set(SIDES)


@pytest.mark.parametrize("name", sorted(SIDES))
def test_a_preset_samples_depth_width_and_rate_and_nothing_impossible(name: str) -> None:
    config = load_config(TuneConfig, find_preset("tune", name))
    trials = make_trials(config, image_size_px=SIDES[name], num_classes=10)
    assert {"model.depth", "model.width", "optimizer.lr"} <= set(trials[0].params)
    assert [trial.refusal for trial in trials] == [""] * config.num_trials
