"""Skip or run, where and why: from catalogs alone."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.runner import cache
from pipelines.runner.cache import Decision
from pipelines.stage_output import Plan, publish_catalog, stage_key
from pipelines.storage import Storage


class ToyConfig(StrictModel):
    """A stage of two settings."""

    lr: float = 0.1
    """Rate."""
    epochs: int = 3
    """Passes."""
    out: str = runtime_field("")
    """Folder."""


INPUTS = {"dataset": "aaaa"}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("toy_plan")

    def plan(config: ToyConfig) -> Plan:
        return Plan("toy", stage_key("toy", config, INPUTS, 1), dict(INPUTS), config.out)

    module.plan = plan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_plan", module)
    monkeypatch.setitem(cache._PLANS, "toy", "toy_plan")


def decide(root: Path, config: ToyConfig, *, force: bool = False) -> Decision:
    before = cache.read_summary(str(root)).get("toy", {})
    decision, plan = cache.decide("toy", config, str(root), force=force, before=before)
    entry = cache.summary_entry(decision, config, plan.inputs)
    cache.write_summary(str(root), "test", [entry])
    return decision


def publish(decision: Decision) -> None:
    publish_catalog(Storage.open(decision.out), {"stage": "toy", "key": decision.key})


def test_a_stage_without_output_runs_and_one_with_it_is_skipped(tmp_path: Path) -> None:
    first = decide(tmp_path, ToyConfig())
    assert (first.verdict, first.reason) == ("run", "no earlier output")
    assert first.out == f"{tmp_path}/toy/{first.key[:12]}"
    publish(first)
    again = decide(tmp_path, ToyConfig())
    assert (again.verdict, again.reason, again.out) == ("skip", "its output stands", first.out)


def test_a_killed_stage_runs_again_in_the_same_folder(tmp_path: Path) -> None:
    first = decide(tmp_path, ToyConfig())
    again = decide(tmp_path, ToyConfig())
    assert (again.verdict, again.out) == ("run", first.out)
    assert again.reason == "its earlier output is gone or unfinished"


def test_a_changed_setting_is_named_and_goes_to_another_folder(tmp_path: Path) -> None:
    first = decide(tmp_path, ToyConfig())
    publish(first)
    changed = decide(tmp_path, ToyConfig(lr=0.2))
    assert (changed.verdict, changed.reason) == ("run", "lr was 0.1, is 0.2")
    assert changed.out != first.out
    back = decide(tmp_path, ToyConfig())
    assert (back.verdict, back.out) == ("skip", first.out)


def test_a_changed_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(decide(tmp_path, ToyConfig()))
    monkeypatch.setitem(INPUTS, "dataset", "bbbb")
    assert decide(tmp_path, ToyConfig()).reason == "dataset changed"


def test_the_folder_is_no_reason(tmp_path: Path) -> None:
    publish(decide(tmp_path, ToyConfig()))
    assert decide(tmp_path, ToyConfig(out="elsewhere")).verdict == "skip"


def test_force_writes_beside_what_stands_and_the_newest_is_used_after(tmp_path: Path) -> None:
    first = decide(tmp_path, ToyConfig())
    publish(first)
    forced = decide(tmp_path, ToyConfig(), force=True)
    assert (forced.verdict, forced.reason, forced.out) == ("run", "asked for by --from", f"{first.out}-2")
    # Killed here: without --from the standing output is good, with it the same folder is resumed.
    assert decide(tmp_path, ToyConfig()).out == first.out
    assert decide(tmp_path, ToyConfig(), force=True).out == f"{first.out}-2"
    publish(forced)
    assert decide(tmp_path, ToyConfig()).out == f"{first.out}-2"


def test_a_damaged_summary_only_loses_reasons(tmp_path: Path) -> None:
    (tmp_path / cache.SUMMARY).write_text("{not json")
    assert decide(tmp_path, ToyConfig()).reason == "no earlier output"


def test_only_without_its_inputs_is_refused() -> None:
    error = cache.refuse_missing("train", ["ingest"])
    assert error.what == "--only train: ingest is not done"
    assert error.mend == "leave --only out, or run --only ingest first"
