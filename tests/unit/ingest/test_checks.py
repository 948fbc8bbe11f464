"""Budgets and checks: what stops a dataset from being published, with which words, and what only warns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.cli.main import run_command
from pipelines.dataset.catalog import list_versions
from pipelines.dataset.reader import open_dataset
from pipelines.errors import ConfigError, DataError
from pipelines.ingest import stage
from pipelines.ingest.checks import run_checks
from pipelines.ingest.config import CheckConfig, DuplicatesConfig, IngestConfig
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources import units as source_units
from pipelines.sources.base import Unit
from pipelines.storage import Storage


def in_process(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for one in units:
        yield ingest_unit(one, job)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 30 cats and 20 dark dogs; of the cats one stands in test and in train; 5 dogs are broken."""
    root = tmp_path_factory.mktemp("checks") / "set"
    draw = np.random.default_rng(0)

    def save(key: str, low: int, high: int) -> None:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(low, high, (24, 24, 3)).astype(np.uint8)).save(root / key)

    for split, number in (("train", 20), ("val", 5), ("test", 5)):
        for index in range(number):
            save(f"{split}/cat/{index}.png", 100, 255)
        for index in range(number * 2 // 3):
            save(f"{split}/dog/{index}.png", 0, 90)
    (root / "train/cat/copy.png").write_bytes((root / "test/cat/0.png").read_bytes())
    for index in range(5):
        (root / f"train/dog/broken{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    return root


def ingest(source: Path, out: Path, **settings: Any) -> stage.IngestResult:
    settings = {"max_quarantined_fraction": 0.2, **settings}
    return stage.run(IngestConfig(source=str(source), out=str(out), **settings), in_process)


def rule(name: str, bound: float, **values: Any) -> CheckConfig:
    return CheckConfig(rule=name, bound=bound, **values)


FAILING = [
    (rule("min_images_per_class", 30), "min_images_per_class: class 'dog' has 19 images; at least 30 is wanted"),
    (rule("min_images_per_split", 9), "min_images_per_split: split test has 8 images; at least 9 is wanted"),
    (
        rule("max_class_imbalance", 1.5),
        "max_class_imbalance: class 'cat' has 31 images and 'dog' 19, 1.63 times as many; at most 1.5 is wanted",
    ),
    (
        rule("max_exact_leak_fraction", 0),
        "max_exact_leak_fraction: 6.25% of held-out images stand in train byte for byte (0 of val, 1 of test);"
        " at most 0 is wanted",
    ),
    (
        rule("max_near_leak_fraction", 0.05),
        "max_near_leak_fraction: 6.25% of held-out images look like one in train (0 of val, 1 of test);"
        " at most 0.05 is wanted",
    ),
    (
        rule("max_quarantined_fraction", 0.05),
        "max_quarantined_fraction: 5 of 55 members were refused (9.09%); at most 0.05 is wanted",
    ),
    (
        rule("max_predictive_property", 0.8, property="brightness"),
        "max_predictive_property brightness: brightness tells class 'cat' from all others by 1.00 of 1 (chance",
    ),
]


@pytest.mark.parametrize(("check", "words"), FAILING, ids=[check.rule for check, _ in FAILING])
def test_each_rule_holds_back_what_breaks_it(check: CheckConfig, words: str, source: Path, tmp_path: Path) -> None:
    copies = DuplicatesConfig(exact="keep")
    with pytest.raises(DataError) as caught:
        ingest(source, tmp_path / "out", checks=(check,), duplicates=copies)
    assert caught.value.what.startswith("1 check fails, so nothing was published:\n    ")
    assert words in caught.value.what
    assert caught.value.mend
    assert list_versions(Storage.open(str(tmp_path / "out"))) == []
    # at `warn` the same run is published, from the units that are done, and says so
    warned = ingest(source, tmp_path / "out", checks=(check.model_copy(update={"level": "warn"}),), duplicates=copies)
    catalog = open_dataset(warned.out).catalog
    assert any(words in warning for warning in catalog["warnings"])
    sheet = json.loads((tmp_path / "out" / catalog["sheet"]["numbers"]).read_text())
    assert sheet["warnings"] == catalog["warnings"]


def test_all_that_fails_is_named_and_what_holds_is_not(source: Path, tmp_path: Path) -> None:
    rules = (
        rule("min_images_per_class", 19),
        rule("max_class_imbalance", 1.1),
        rule("max_unlabelled_fraction", 0),
        rule("min_images_per_split", 1000),
        rule("max_exact_leak_fraction", 0),  # the default policy has taken the copy out
        rule("max_predictive_property", 0.3, property="source_width"),
    )
    with pytest.raises(DataError, match=r"2 checks fail, so nothing was published") as caught:
        ingest(source, tmp_path / "out", checks=rules)
    assert [line.split(":")[0].strip() for line in caught.value.what.splitlines()[1:]] == [
        "max_class_imbalance",
        "min_images_per_split",
    ]


def test_properties_without_a_name_are_each_checked(source: Path, tmp_path: Path) -> None:
    dataset = open_dataset(ingest(source, tmp_path / "out").out)
    findings = run_checks([rule("max_predictive_property", 0.8)], dataset)
    assert [finding.rule.split()[1] for finding in findings if not finding.is_kept] == [
        "brightness",
        "contrast",
        "sharpness",
        "source_bytes",  # dark noise compresses better
    ]
    assert len(findings) == 8
    with pytest.raises(ConfigError, match="a check names the property 'weather', and the dataset has brightness"):
        run_checks([rule("max_predictive_property", 0.8, property="weather")], dataset)


def test_checks_that_a_skipped_ingest_does_not_run_are_told(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = (rule("min_images_per_class", 5),)
    out = ingest(source, tmp_path / "out", checks=rules).out
    caplog.clear()
    assert ingest(source, tmp_path / "out", checks=rules).skipped
    assert caplog.messages == []
    assert ingest(source, tmp_path / "out", checks=(rule("min_images_per_class", 500),)).skipped
    assert caplog.messages == [f"the dataset stands, made with other checks: `resnet data check {out}` runs them on it"]


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bound is 3; max_quarantined_fraction is a share of 0 to 1"):
        rule("max_quarantined_fraction", 3)
    with pytest.raises(ValueError, match="property is 'brightness', and min_images_per_class has none"):
        rule("min_images_per_class", 3, property="brightness")


def test_a_class_that_loses_too_much_stops_the_ingest_as_soon_as_it_is_certain(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_units, "MAX_UNIT_ROWS", 16)
    done: list[int] = []

    def counted(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        # the broken ones first, so that the limit is passed before the last unit
        for unit in sorted(units, key=lambda unit: -sum("broken" in entry.key for entry in unit.entries)):
            done.append(unit.index)
            yield ingest_unit(unit, job)

    config = IngestConfig(
        source=str(source),
        out=str(tmp_path / "out"),
        max_quarantined_fraction=0.2,
        max_quarantined_fraction_per_class=0.05,
    )
    with pytest.raises(DataError) as caught:
        stage.run(config, counted)
    assert " of 24 images of class 'dog' cannot be used (TRUNCATED " in caught.value.what
    assert caught.value.what.endswith("; 5.0% of a class are allowed")
    assert "train/dog/broken" in str(caught.value.where)
    assert caught.value.mend == (
        "look at these images; max_quarantined_fraction_per_class=0.5 would allow half of each class"
    )
    assert len(done) < 4
    assert ingest(source, tmp_path / "out", max_quarantined_fraction_per_class=0.3).figures["quarantined"] == 5


def test_a_standing_dataset_is_checked_from_the_command_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ingest(source, tmp_path / "out", checks=(rule("min_images_per_class", 5),)).out
    assert run_command(["data", "check", out, "min_images_per_class=5", "max_predictive_property.aspect=0.5"]) == 0
    shown = capsys.readouterr().out
    assert "kept  min_images_per_class            19      5" in shown
    assert f"resnet data sheet {out}@v1" in shown
    assert run_command(["data", "check", out, "--json"]) == 0  # by the rules that it was made with
    assert [each["rule"] for each in json.loads(capsys.readouterr().out)["findings"]] == ["min_images_per_class"]
    assert run_command(["data", "check", out, "max_class_imbalance=1.1", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"] == "DataError"
    assert run_command(["data", "check", out, "max_class_imbalance=1.1"]) == 3
    assert "1 check fails:\n    max_class_imbalance: class" in capsys.readouterr().err
    for wrong, words in (
        ("min_images=3", "there is no rule 'min_images'"),
        ("min_images_per_class", "'min_images_per_class' is no rule=bound"),
        ("max_class_imbalance=few", "the bound 'few' of max_class_imbalance is no number"),
        ("max_class_imbalance=inf", "the bound inf of max_class_imbalance is no number from 0 on"),
        ("max_class_imbalance=nan", "the bound nan of max_class_imbalance is no number from 0 on"),
        ("max_class_imbalance=-1", "the bound -1.0 of max_class_imbalance is no number from 0 on"),
        ("max_unlabelled_fraction=7", "bound is 7; max_unlabelled_fraction is a share of 0 to 1"),
    ):
        assert run_command(["data", "check", out, wrong]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert ("rules are" if "no rule 'min" in words else "for example min_images_per_class=10") in told
