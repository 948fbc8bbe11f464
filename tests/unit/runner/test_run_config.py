"""A run's config: sections connected by the runner, shared settings said once, faults named where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config.load import find_preset, load_config, preset_names
from pipelines.errors import ConfigError
from pipelines.runner.config import OURS, RunConfig
from pipelines.runner.graph import check_stage, make_graph
from pipelines.train.config import TrainConfig


def demo(*overrides: str) -> RunConfig:
    return load_config(RunConfig, find_preset("run", "demo"), overrides)


@pytest.mark.parametrize("name", preset_names("run"))
def test_every_preset_loads(name: str) -> None:
    config = load_config(RunConfig, find_preset("run", name))
    assert [node.stage for node in make_graph(config)][-1] == "report"


def test_the_sweep_starts_from_the_plain_training() -> None:
    config = demo("train.seed=7", "train.optimizer.lr=0.25", "tune.train.model.depth=14")
    assert config.tune is not None
    assert (config.tune.train.seed, config.tune.train.optimizer.lr) == (7, 0.25)
    assert (config.train.model.depth, config.tune.train.model.depth) == (8, 14)


def test_the_sweep_leaves_to_the_plain_training_what_only_that_can_do() -> None:
    config = demo("train.find_batch_size=true", "train.local=true")
    assert config.tune is not None
    assert (config.train.find_batch_size, config.train.local) == (True, True)
    assert (config.tune.train.find_batch_size, config.tune.train.local) == (False, False)
    with pytest.raises(ConfigError, match="find_batch_size is true, which only a training by itself can do"):
        demo("tune.train.find_batch_size=true")


def test_shared_settings_reach_every_section() -> None:
    config = demo("tracking.experiment=mine", "ray.num_cpus=3")
    assert config.tune is not None
    assert config.score is not None
    trackings = [config.train, config.tune, config.tune.train, config.evaluate, config.register, config.score]
    assert {section.tracking.experiment for section in trackings} == {"mine"}
    assert {section.ray.num_cpus for section in (config.ingest, config.train, config.tune, config.score)} == {3}


def test_the_model_is_named_like_the_run_unless_it_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: birds\nsource: birds.zip\n")
    assert load_config(RunConfig, path).register.name == "birds"
    assert demo().register.name == "digits"


def test_a_config_survives_json() -> None:
    config = demo("ingest.split.seed=3")
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", "unknown key train.epoch"),
        ("trian.epochs=5", "unknown key trian"),
        ("tune.train.model.dpth=20", "unknown key tune.train.model.dpth"),
        ("train.dataset=other", "train.dataset is 'other', but a run connects its stages itself"),
        ("ingest.source=photos", "ingest.source is 'photos', but a run connects its stages itself"),
        ("train=5", "train is 5; it must be an object"),
    ],
)
def test_a_fault_is_named_where_it_is(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        demo(override)
    assert raised.value.what.startswith(message)


@pytest.mark.parametrize(
    ("override", "what", "mend"),
    [
        ("evaluate.views.flip=true", "evaluate.views.flip is True, and a run registers", "leave evaluate.views out"),
        ("evaluate.views.shift_px=1", "evaluate.views.shift_px is 1, and a run registers", "leave evaluate.views out"),
        ("evaluate.split=val", "evaluate.split is 'val', by which", "leave evaluate.split out"),
    ],
)
def test_an_evaluation_that_is_no_ground_for_registering_is_refused_at_once(
    override: str, what: str, mend: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        demo(override)
    assert raised.value.what.startswith(what)
    assert raised.value.mend.startswith(mend)


def test_a_setting_that_the_runner_fills_in_says_what_to_set_instead() -> None:
    with pytest.raises(ConfigError) as raised:
        demo("ingest.source=photos")
    assert raised.value.mend == "leave ingest.source out and set source"


@pytest.mark.parametrize(("section", "key"), OURS)
def test_what_a_run_would_overwrite_is_refused(section: str, key: str) -> None:
    value = "a" * 64
    with pytest.raises(ConfigError) as raised:
        demo(f"{section}.{key}={value}")
    assert raised.value.what == f"{section}.{key} is '{value}', but a run connects its stages itself"
    assert raised.value.mend == f"leave {section}.{key} out" + (" and set out" if key.endswith("out") else "")


def test_the_graph_leaves_out_what_is_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: small\nsource: photos.zip\n")
    stages = [node.stage for node in make_graph(load_config(RunConfig, path))]
    assert stages == ["ingest", "train", "evaluate", "register", "report"]
    assert [node.stage for node in make_graph(demo())] == [
        "demo-data",
        "ingest",
        "train",
        "tune",
        "evaluate",
        "register",
        "score",
        "report",
    ]


def test_every_stage_comes_after_what_it_reads() -> None:
    seen: set[str] = set()
    for node in make_graph(demo()):
        assert set(node.after) <= seen
        seen.add(node.stage)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        check_stage(make_graph(demo()), "trian", "--from")
    assert raised.value.what == "--from trian: this run has no such stage"
    assert raised.value.mend == "one of: demo-data, ingest, train, tune, evaluate, register, score, report"


def test_the_cifar_run_trains_as_the_training_preset_does() -> None:
    run = load_config(RunConfig, find_preset("run", "cifar10"))
    preset = load_config(TrainConfig, find_preset("train", "cifar-fast"), (), {"dataset": "@ingest"})
    assert run.train == preset
