"""Which stages are meant and which stand, on a dataset that was ingested without Ray."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipelines.config.load import load_config
from pipelines.dataset.collect import compact
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.reader import open_dataset
from pipelines.errors import ConfigError, InputError
from pipelines.ingest import stage
from pipelines.ingest.unit import ingest_unit
from pipelines.runner import execute
from pipelines.runner.config import RunConfig
from pipelines.runner.execute import Choice, explain, run
from tests.factories import make_jpeg, write_class_folder

SMALL = {"name": "small", "source": "photos"}


@pytest.fixture
def ingested(workspace: Path) -> RunConfig:
    write_class_folder(workspace / "photos", {"cat": 12, "dog": 12}, size=8)
    config = load_config(RunConfig, None, (), SMALL)
    ingest(config)
    return config


def ingest(config: RunConfig) -> None:
    """Ingest as the run would, without Ray."""
    out = explain(config, Choice(only_stage="ingest"))[0].out
    section = config.ingest.model_copy(update={"source": config.source, "out": out})
    stage.run(section, lambda job, units: (ingest_unit(unit, job) for unit in units))


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


def refuse(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> InputError:
    """Return what a run of a standing dataset says before its first stage would start."""
    monkeypatch.setattr(execute, "_run_stage", lambda *_: pytest.fail("a stage was started"))
    monkeypatch.setattr("pipelines.ray_runtime.ray_session", lambda *_: nullcontext())
    with pytest.raises(InputError) as raised:
        run(config, Choice(), say=lambda _: None, repeat="")
    return raised.value


def test_a_sweep_of_several_labels_is_refused_before_anything_is_trained(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "photos").mkdir()
    rows = []
    for number in range(24):
        (workspace / "photos" / f"{number:02d}.jpg").write_bytes(make_jpeg(number, 8, 8))
        rows.append({"key": f"{number:02d}.jpg", "labels": [["sea"], ["sea", "sky"]][number % 2]})
    (workspace / "labels.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    values = {"name": "small", "source": "photos", "ingest": {"labels": "labels.jsonl"}, "tune": {}}
    config = load_config(RunConfig, None, ("train.loss.name=bce",), values)
    ingest(config)
    refused = refuse(config, monkeypatch)
    assert "trials are compared by top-1" in refused.what
    assert "in a run leave tune out" in refused.mend


def test_a_dataset_without_rows_to_measure_on_is_refused_before_anything_is_trained(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folder(workspace / "photos", {"cat": 12, "dog": 12}, size=8)
    config = load_config(RunConfig, None, ("ingest.split={train: 0.5, val: 0.5, test: 0.0}",), SMALL)
    ingest(config)
    assert "has no rows in split 'test'; it has train, val" in refuse(config, monkeypatch).what


@pytest.mark.parametrize("choice", [Choice("register", "evaluate"), Choice("evaluate", "register")])
def test_two_stages_named_at_once_are_refused(choice: Choice) -> None:
    config = load_config(RunConfig, None, (), {"name": "small", "source": "photos"})
    with pytest.raises(ConfigError) as raised:
        explain(config, choice)
    assert raised.value.what == f"--from {choice.from_stage} and --only {choice.only_stage} name two stages"
    assert raised.value.mend == f"give one of them, or both as {choice.only_stage} to run it alone again"
    with pytest.raises(ConfigError, match="name two stages"):
        run(config, choice, say=lambda _: None, repeat="")
