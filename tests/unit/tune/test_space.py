"""Sampling: pure, without repeats, spread over the space; what cannot be trained is kept with its reason."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config.load import load_config
from pipelines.errors import ConfigError
from pipelines.tune.config import TuneConfig
from pipelines.tune.space import default_space, make_trials, sample_params, space_size
from resnet_models.spec import ModelSpec

_DEPTH = "model.depth: {choice: [8, 14, 20]}"
_LR = "optimizer.lr: {loguniform: [0.01, 1]}"
_WIDTH = "model.width: {uniform: [0.5, 2]}"
MIXED = f"space={{{_DEPTH}, {_LR}, {_WIDTH}}}"


def load(*overrides: str) -> TuneConfig:
    return load_config(TuneConfig, None, overrides)


def sample(*overrides: str) -> list[dict[str, object]]:
    config = load(*overrides)
    return sample_params(config, config.space)


@pytest.mark.parametrize("search", ["quasi_random", "random"])
def test_trial_i_depends_on_space_seed_and_i_alone(search: str) -> None:
    few, many = sample(MIXED, f"search={search}", "num_trials=4"), sample(MIXED, f"search={search}", "num_trials=40")
    assert few == many[:4]
    other_order = f"space={{{_LR}, {_WIDTH}, {_DEPTH}}}"
    assert sample(other_order, f"search={search}", "num_trials=4") == few
    assert sample(MIXED, f"search={search}", "num_trials=4", "seed=1") != few


def test_the_first_samples_are_pinned() -> None:
    """A change here changes every sweep's trials: raise OUTPUT_VERSION in plan.py with it."""
    assert sample(MIXED, "num_trials=3") == [
        {"model.depth": 8, "model.width": 1.583, "optimizer.lr": 0.2347},
        {"model.depth": 20, "model.width": 1.09, "optimizer.lr": 0.02951},
        {"model.depth": 20, "model.width": 0.5961, "optimizer.lr": 0.3709},
    ]


@pytest.mark.parametrize("search", ["quasi_random", "random"])
def test_a_space_between_narrow_bounds_has_as_many_points_as_four_digits_tell_apart(search: str) -> None:
    narrow = "space={optimizer.beta2: {uniform: [0.999, 0.9995]}}"
    assert len(sample(narrow, f"search={search}", "num_trials=6")) == 6
    with pytest.raises(ConfigError, match="num_trials is 8, and space holds 6 different points, as values have four"):
        sample(narrow, f"search={search}", "num_trials=8")


def test_rounding_does_not_leave_the_bounds() -> None:
    sampled = sample("space={ema_decay: {uniform: [0.999, 0.99999]}, seed: {integer: [0, 9999]}}", "num_trials=200")
    assert max(params["ema_decay"] for params in sampled) == 0.99999  # type: ignore[type-var]


@settings(max_examples=40)
@given(
    st.integers(0, 2**62),
    st.integers(1, 64),
    st.sampled_from(["quasi_random", "random"]),
    st.floats(1e-5, 1),
    st.floats(1.1, 9),
)
def test_samples_stay_within_their_bounds_and_never_repeat(
    seed: int, count: int, search: str, low: float, factor: float
) -> None:
    space = (
        f"space={{optimizer.lr: {{loguniform: [{low!r}, {low * factor!r}]}}, augment.shift_px: {{integer: [1, 64]}}}}"
    )
    found = sample(space, f"seed={seed}", f"num_trials={count}", f"search={search}")
    assert len({str(params) for params in found}) == count
    for params in found:
        assert low * 0.999 <= float(str(params["optimizer.lr"])) <= low * factor * 1.001  # four digits are kept
        assert 1 <= int(str(params["augment.shift_px"])) <= 64


def test_quasi_random_samples_spread_evenly() -> None:
    found = sample(MIXED, "num_trials=30")
    assert set(Counter(params["model.depth"] for params in found).values()) <= {9, 10, 11}
    decades = Counter(str(params["optimizer.lr"])[:4] < "0.10" for params in found)
    assert abs(decades[True] - 15) <= 2


@pytest.mark.parametrize("search", ["quasi_random", "random"])
def test_a_finite_space_is_exhausted_without_repeats(search: str) -> None:
    space = "space={model.depth: {choice: [8, 14, 20, 26]}, augment.shift_px: {integer: [0, 6]}}"
    found = sample(space, f"search={search}", "num_trials=28")
    assert len({str(params) for params in found}) == 28
    assert space_size(load(space).space) == 28
    assert space_size(load(MIXED).space) is None


def test_more_trials_than_points_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        sample("space={model.depth: {choice: [8, 14]}}", "num_trials=3")
    assert caught.value.what == "num_trials is 3, and space holds 2 different points"
    assert caught.value.mend == "set num_trials=2, or widen space"


def test_sampled_values_reach_the_training() -> None:
    config = load(MIXED, "num_trials=5", "train.epochs=7", "space.model.channels.choice=[[8, 16, 32], [4, 8, 16]]")
    trials = make_trials(config, image_size_px=32, num_classes=10)
    assert [trial.trial for trial in trials] == ["0001", "0002", "0003", "0004", "0005"]
    for trial in trials:
        assert trial.config is not None
        assert trial.config.epochs == 7
        assert trial.config.optimizer.lr == trial.params["optimizer.lr"]
        assert trial.config.model.depth == trial.params["model.depth"]
        assert list(trial.config.model.channels) == trial.params["model.channels"]


def test_an_impossible_depth_is_kept_with_its_reason() -> None:
    config = load("space={model.depth: {choice: [20, 21]}}", "num_trials=2")
    trials = {trial.params["model.depth"]: trial for trial in make_trials(config, image_size_px=32, num_classes=10)}
    assert trials[20].config is not None
    assert trials[21].config is None
    assert trials[21].refusal == (
        "model: depth is 21: 3 stages of basic blocks cannot have that many layers; "
        "the nearest that can be built: 20 or 26; or give depths=[...]"
    )


def test_a_value_that_the_schema_refuses_is_kept_with_its_reason() -> None:
    config = load("space={optimizer.lr: {uniform: [-1, 1]}}", "num_trials=8")
    refused = [trial for trial in make_trials(config, image_size_px=32, num_classes=10) if trial.config is None]
    assert refused
    assert all(trial.params["optimizer.lr"] < 0 for trial in refused)
    assert refused[0].refusal == "optimizer.lr: Input should be greater than 0"


def test_a_sweep_without_a_possible_trial_is_refused() -> None:
    config = load("space={model.depth: {choice: [21, 22]}}", "num_trials=2")
    with pytest.raises(ConfigError) as caught:
        make_trials(config, image_size_px=32, num_classes=10)
    assert caught.value.what.startswith("none of the 2 sampled trainings is possible: model: depth is 2")


@pytest.mark.parametrize(("side", "depths"), [(32, (8, 14, 20)), (224, (10, 18, 34))])
def test_the_default_space_fits_the_images(side: int, depths: tuple[int, ...]) -> None:
    space = default_space(ModelSpec(), side)
    assert space["model.depth"].choice == depths
    assert set(space) == {"model.depth", "model.width", "optimizer.lr"}
    trials = make_trials(TuneConfig(), image_size_px=side, num_classes=3)
    assert len(trials) == 8
    assert all(trial.config is not None for trial in trials)
