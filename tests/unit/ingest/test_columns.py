"""Columns of a table at work: splits by group and by time, also for newcomers; sheets and checks of several labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.cli.main import run_command
from pipelines.dataset.duplicates import find_alike
from pipelines.dataset.profile import make_profile
from pipelines.dataset.profile_page import make_sheet
from pipelines.dataset.quarantine import bias_of
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import ConfigError, DataError
from pipelines.ingest import stage
from pipelines.ingest.checks import run_checks
from pipelines.ingest.config import CheckConfig, IngestConfig, SplitConfig
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources.base import Unit


def in_process(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for one in units:
        yield ingest_unit(one, job)


def make_source(root: Path, numbers: Sequence[int], *, several: bool = False) -> Path:
    """Write images and a table that names label, patient (four images each), site and day."""
    (root / "set").mkdir(parents=True)
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "label", "patient", "site", "day"])
        for number in numbers:
            draw = np.random.default_rng(number)
            low = 120 if number % 2 else 0  # one class is dark
            Image.fromarray(draw.integers(low, low + 120, (16, 16, 3)).astype(np.uint8)).save(
                root / "set" / f"{number:03d}.png"
            )
            label = ("cat", "dog")[number % 2] + ("|pet" if several and number % 3 == 0 else "")
            patient = f"p{number // 4}" if number % 40 != 7 else ""
            table.writerow([f"{number:03d}.png", label, patient, "north", f"2024-{1 + number % 12:02d}-01"])
    return root / "set"


def ingest(root: Path, out: Path, **settings: Any) -> Dataset:
    values = {"source": str(root / "set"), "labels": str(root / "labels.csv"), "out": str(out)} | settings
    stage.run(IngestConfig(**values), in_process)
    return open_dataset(str(out))


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [
        {**row, "split": split}
        for split in dataset.splits
        for row in dataset.table(split, ["key", "source", *dataset.catalog["carried"]]).to_pylist()
    ]


def test_groups_stay_whole_in_the_dataset_and_in_what_is_appended(tmp_path: Path) -> None:
    make_source(tmp_path / "one", range(120))
    first = ingest(tmp_path / "one", tmp_path / "out", split=SplitConfig(group="patient"))
    assert first.catalog["split"]["by"] == "group"
    make_source(tmp_path / "two", range(60, 180))
    second = ingest(tmp_path / "two", tmp_path / "out", append=True, source_name="two", duplicates={"exact": "keep"})
    of_patient: dict[str, set[str]] = {}
    for row in rows(second):
        if row["patient"]:
            of_patient.setdefault(row["patient"], set()).add(row["split"])
    assert len(of_patient) == 45
    assert all(len(splits) == 1 for splits in of_patient.values())
    before = {row["key"]: row["split"] for row in rows(first)}
    assert {row["key"]: row["split"] for row in rows(second) if row["source"] == "set"} == before
    assert {split: first.num_rows(split) for split in first.splits} == pytest.approx(
        {"test": 12, "train": 96, "val": 12}, abs=4
    )


def test_the_newest_images_are_test_also_of_what_is_appended(tmp_path: Path) -> None:
    make_source(tmp_path / "one", range(120))
    first = ingest(tmp_path / "one", tmp_path / "out", split=SplitConfig(by="time", time="day"))
    days = {split: sorted({row["day"] for row in rows(first) if row["split"] == split}) for split in first.splits}
    assert days["train"][-1] < days["val"][0] <= days["val"][-1] < days["test"][0]
    assert first.catalog["split"]["clock"] == "date"
    make_source(tmp_path / "two", range(200, 240))
    second = ingest(tmp_path / "two", tmp_path / "out", append=True, source_name="two")
    for row in rows(second):
        assert row["day"] in days[row["split"]]
    table = (tmp_path / "two/labels.csv").read_text()
    (tmp_path / "two/labels.csv").write_text(table.replace("2024-03-01", "in March"))
    with pytest.raises(ConfigError, match=r"split.time is day, and 206.png has 'in March' there, which is no time"):
        ingest(tmp_path / "two", tmp_path / "out", append=True, source_name="three")


def test_sheets_and_checks_take_several_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "one"
    make_source(root, range(120), several=True)
    copy = (root / "set/001.png").read_bytes()
    (root / "set/000.png").write_bytes(copy)  # the same picture, as cat and pet and as dog
    dataset = ingest(root, tmp_path / "out", task="multi", label_separator="|", duplicates={"exact": "keep"})
    assert dataset.task == "multi"
    assert dataset.catalog["duplicates"]["label_conflicts"] == 1
    profile, alike = make_profile(dataset), find_alike(dataset)
    assert profile.telling["brightness"].label in ("cat", "dog")
    assert profile.telling["brightness"].excess > 0.8
    assert "site" in profile.telling
    html = make_sheet(dataset, profile, alike).decode()
    for name in ("cat", "dog", "pet"):
        assert f"training images of class {name}" in html
    findings = run_checks([CheckConfig(rule="min_images_per_class", bound=50)], dataset)
    assert findings[0].figure == 40  # pets
    assert run_command(["data", "sheet", dataset.ref, "--page", str(tmp_path / "sheet.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["telling"]["brightness"]["share"] > 0.8


def test_a_refused_image_counts_for_each_of_its_labels(tmp_path: Path) -> None:
    root = tmp_path / "one"
    make_source(root, range(120), several=True)
    for number in range(0, 72, 6):  # cats and pets
        (root / f"set/{number:03d}.png").write_bytes(b"no image, but long enough to be one")
    settings = {"task": "multi", "label_separator": "|"}
    with pytest.raises(DataError) as caught:
        ingest(root, tmp_path / "out", **settings, max_quarantined_fraction_per_class=0.25)
    assert caught.value.what.startswith("12 of 40 images of class 'pet' cannot be used (NOT_IMAGE 12); 25.0% of")
    dataset = ingest(root, tmp_path / "out", **settings, max_quarantined_fraction_per_class=0.5)
    bias = bias_of(dataset)
    assert bias is not None
    assert [name for name, _, _ in bias.classes] == ["pet"]
    assert ("NOT_IMAGE", "cat|pet", 12) in make_profile(dataset).refused_classes


def test_the_sheet_of_a_version_says_what_it_has_over_its_parent(tmp_path: Path) -> None:
    make_source(tmp_path / "one", range(60))
    first = ingest(tmp_path / "one", tmp_path / "out")
    assert make_profile(first).difference == {}
    make_source(tmp_path / "two", range(60, 80))
    (tmp_path / "two/set/060.png").write_bytes(b"no image, but long enough to be one")
    second = ingest(tmp_path / "two", tmp_path / "out", append=True, source_name="two", max_quarantined_fraction=0.5)
    found = make_profile(second).difference
    assert found["parent"] == 1
    assert found["rows"] == (60, 79)
    assert sum(now - before for before, now in found["splits"].values()) == 19
    assert found["classes"] == {"dog": (30, 40), "cat": (30, 39)}
    assert found["append"]["added"] == 19
    html = make_sheet(second, make_profile(second), find_alike(second)).decode()
    assert "Against v1" in html
    assert "60 before" in html
    assert run_command(["data", "quarantine", "accept", second.uri, "--all", "--reason", "x"]) == 0
    third = open_dataset(second.uri)
    assert make_profile(third).difference["counts"] == {"accepted": (0, 1)}
    assert "1 more is accepted as lost" in make_sheet(third, make_profile(third), find_alike(third)).decode()
