"""Which stages are meant and which stand, on a dataset that was ingested without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config.load import load_config
from pipelines.dataset.collect import compact
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.reader import open_dataset
from pipelines.errors import ConfigError
from pipelines.ingest import stage
from pipelines.ingest.unit import ingest_unit
from pipelines.runner import execute
from pipelines.runner.config import RunConfig
from pipelines.runner.execute import Choice, explain, run
from tests.factories import write_class_folder


@pytest.fixture
def ingested(workspace: Path) -> RunConfig:
    write_class_folder(workspace / "photos", {"cat": 12, "dog": 12}, size=8)
    config = load_config(RunConfig, None, (), {"name": "small", "source": "photos"})
    out = explain(config, Choice())[0].out
    section = config.ingest.model_copy(update={"source": config.source, "out": out})
    stage.run(section, lambda job, units: (ingest_unit(unit, job) for unit in units))
    return config


def test_a_dataset_that_was_patched_or_compacted_still_stands(ingested: RunConfig) -> None:
    out = explain(ingested, Choice())[0].out
    image_id = open_dataset(out).table("train", ["image_id"])["image_id"][0].as_py()

    def check(version: int | None) -> None:
        assert version == open_dataset(out).version
        first, second, *_ = explain(ingested, Choice())
        assert (first.verdict, first.reason, first.out) == ("skip", "its output stands", out)
        assert (second.stage, second.reason) == ("train", "no earlier output")
        assert execute._made(first).catalog["version"] == version  # what training would read
        said: list[str] = []
        run(ingested, Choice(only_stage="ingest"), say=said.append, repeat="")
        assert said == ["ingest: skipped, its output stands"]

    check(publish_patch(out, [Change(image_id, "live", False, "blurred")]))
    check(compact(out))


def test_one_stage_can_be_run_alone_again(ingested: RunConfig) -> None:
    standing = explain(ingested, Choice())[0].out
    (step,) = explain(ingested, Choice(from_stage="ingest", only_stage="ingest"))
    assert (step.verdict, step.reason, step.out) == ("run", "asked for by --from", f"{standing}-2")


@pytest.mark.parametrize("choice", [Choice("register", "evaluate"), Choice("evaluate", "register")])
def test_two_stages_named_at_once_are_refused(choice: Choice) -> None:
    config = load_config(RunConfig, None, (), {"name": "small", "source": "photos"})
    with pytest.raises(ConfigError) as raised:
        explain(config, choice)
    assert raised.value.what == f"--from {choice.from_stage} and --only {choice.only_stage} name two stages"
    assert raised.value.mend == f"give one of them, or both as {choice.only_stage} to run it alone again"
    with pytest.raises(ConfigError, match="name two stages"):
        run(config, choice, say=lambda _: None, repeat="")
