"""A retry places members by what the source says now, and gives no image a second row or one that was taken out."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset import collect
from pipelines.dataset.corrections import exclusions
from pipelines.dataset.patch import publish_patch
from pipelines.dataset.quarantine import read_quarantine
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.taken import RULED_OUT
from pipelines.ingest import append, dedupe, newcomers, stage
from pipelines.ingest.unit import IngestJob
from pipelines.sources.base import Unit
from tests import factories
from tests.unit.ingest.test_append import SMALL_SPLIT, Reader, by_key, config_of, grow, ingest, rows

ALL_MAY_GO = {"max_quarantined_fraction": 1.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return factories.write_class_folder(tmp_path / "set", {"cat": 18, "dog": 12})


@pytest.fixture
def out(folder: Path, tmp_path: Path) -> Path:
    ingest(folder, tmp_path / "out", **SMALL_SPLIT)
    return tmp_path / "out"


def retry(source: Path, out: Path, **values: Any) -> tuple[Dataset, list[str]]:
    return ingest(source, out, retry_failed=True, **values)


def write_table(path: Path, keys: list[str], left_out: set[str], **columns: list[str]) -> str:
    """Write a table of labels by folder with further columns, one value a key."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "label", *columns])
        for key, *values in zip(keys, *columns.values(), strict=True):
            if key not in left_out:
                writer.writerow([key, key.split("/")[0], *values])
    return str(path)


def test_members_that_get_a_group_later_go_where_their_group_is(folder: Path, tmp_path: Path) -> None:
    keys = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    left_out = set(keys[::4])
    patients = [f"p{number % 10}" for number in range(len(keys))]
    out, split = tmp_path / "out", {"by": "group", "group": "patient", "val": 0.2, "test": 0.2}
    table = write_table(tmp_path / "t.csv", keys, left_out, patient=patients)
    first, _ = ingest(folder, out, labels=table, split=split, **ALL_MAY_GO)
    assert first.catalog["counts"]["quarantined"] == len(left_out)
    write_table(tmp_path / "t.csv", keys, set(), patient=patients)
    dataset, read = retry(folder, out)
    assert set(read) == left_out
    splits_of: dict[str, set[str]] = {}
    for name in dataset.splits:
        for patient in dataset.table(name, ["patient"]).column("patient").to_pylist():
            splits_of.setdefault(patient, set()).add(name)
    assert all(len(found) == 1 for found in splits_of.values())
    assert len(splits_of) == 10


def test_members_that_get_a_given_split_later_go_there(folder: Path, tmp_path: Path) -> None:
    keys = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    left_out = set(keys[::4])
    given = ["test" if number % 4 == 0 else "train" for number in range(len(keys))]
    out = tmp_path / "out"
    table = write_table(tmp_path / "t.csv", keys, left_out, split=given)
    ingest(folder, out, labels=table, **ALL_MAY_GO)
    write_table(tmp_path / "t.csv", keys, set(), split=given)
    places = by_key(retry(folder, out)[0])
    assert {places[key][0] for key in left_out} == {"test"}


def test_a_changed_member_that_was_refused_takes_the_place_of_its_row(folder: Path, out: Path) -> None:
    before = open_dataset(str(out))
    key = next(key for key, (split, _) in by_key(before).items() if split == "test")
    data = factories.make_jpeg(900, 32, 32)
    (folder / key).write_bytes(data[: len(data) // 2])
    damaged, _ = grow(folder, out, **ALL_MAY_GO)
    assert rows(damaged) == rows(before)  # the old row stays where the new one does not come in
    (folder / key).write_bytes(data)
    dataset, read = retry(folder, out)
    assert read == [key]
    assert by_key(dataset) == by_key(before)
    assert len(dict(rows(dataset).items() - rows(before).items())) == 1
    assert dataset.catalog["difference"]["changed"] == 1
    assert read_quarantine(dataset) == []


def test_a_member_that_came_back_as_it_was_leaves_the_quarantine_and_adds_no_row(folder: Path, out: Path) -> None:
    before = open_dataset(str(out))
    data = (folder / "cat/0000.jpg").read_bytes()
    (folder / "cat/0000.jpg").write_bytes(data[:300])
    grow(folder, out, **ALL_MAY_GO)
    (folder / "cat/0000.jpg").write_bytes(data)
    dataset, _ = retry(folder, out)
    assert rows(dataset) == rows(before)
    assert read_quarantine(dataset) == []


@pytest.mark.parametrize("is_compacted", [False, True])
def test_an_image_that_was_taken_out_is_not_brought_back(
    folder: Path, out: Path, caplog: pytest.LogCaptureFixture, is_compacted: bool
) -> None:
    data = (folder / "cat/0000.jpg").read_bytes()
    (folder / "cat/0000.jpg").write_bytes(data[:300])
    damaged, _ = grow(folder, out, **ALL_MAY_GO)
    publish_patch(str(out), exclusions(damaged, ["cat/0000.jpg"], "", "consent withdrawn"))
    if is_compacted:
        collect.compact(str(out))
    (folder / "cat/0000.jpg").write_bytes(data)
    dataset, read = retry(folder, out)
    assert read == []
    assert "cat/0000.jpg" not in by_key(dataset)
    assert "refused members whose images were taken out before stay refused: 1" in caplog.text


@pytest.mark.parametrize("is_compacted", [False, True])
def test_what_a_rule_left_out_of_a_large_shard_is_tried_again(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_compacted: bool
) -> None:
    """A patch takes it out, as if a person had; but nobody did, and with its twin gone it is no leak any more."""
    monkeypatch.setattr(append, "MAX_REWRITE_BYTES", -1)
    more = factories.write_class_folder(tmp_path / "more", {"cat": 2}, seed=100)
    places = by_key(open_dataset(str(out)))
    copies = {f"cat/copy{number:02d}.jpg": key for number, key in enumerate(sorted(places))}
    for copy, key in copies.items():
        (more / copy).write_bytes((folder / key).read_bytes())
    leaking, _ = grow(more, out)
    assert len(leaking.catalog["patches"]) == 1
    refused = {row["key"] for row in read_quarantine(leaking)}
    one = min(refused)
    publish_patch(str(out), exclusions(leaking, [copies[one]], "", "the copy shall stay"))
    if is_compacted:
        collect.compact(str(out))
    dataset, read = retry(more, out)
    assert set(read) == refused
    assert set(by_key(dataset)) - set(by_key(leaking)) == {one}


def test_a_retry_that_was_killed_after_its_last_unit_reads_nothing_again(folder: Path, out: Path) -> None:
    new = factories.make_jpeg(900, 32, 32)
    (folder / "cat/new.jpg").write_bytes(new[:300])
    grow(folder, out, **ALL_MAY_GO)
    (folder / "cat/new.jpg").write_bytes(new)

    def killed(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        yield from Reader()(job, units)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(config_of(folder, out, retry_failed=True), killed)
    dataset, read = retry(folder, out)
    assert read == []
    assert "cat/new.jpg" in by_key(dataset)


def test_a_retry_after_one_that_ended_without_success_reads_again(folder: Path, out: Path) -> None:
    (folder / "cat/new.jpg").write_bytes(factories.make_jpeg(900, 32, 32)[:300])
    grow(folder, out, **ALL_MAY_GO)
    for _ in range(3):
        dataset, read = retry(folder, out)
        assert (dataset.version, read) == (2, ["cat/new.jpg"])


def test_rules_have_the_names_that_patches_know() -> None:
    rules = {dedupe.LEAK, dedupe.NEAR_LEAK, dedupe.DUPLICATE, dedupe.NEAR_DUPLICATE, dedupe.LABEL_CONFLICT}
    assert {*rules, newcomers.UNCHANGED, newcomers.WITHHELD} == set(RULED_OUT)
