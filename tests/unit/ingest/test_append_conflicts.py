"""A conflict of labels stands until somebody resolves it: neither touching a file nor a third copy does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipelines.dataset.quarantine import accept, read_quarantine
from tests import factories
from tests.unit.ingest.test_append import SMALL_SPLIT, by_key, grow, ingest

CONFLICTS = {"duplicates": {"conflicts": "quarantine"}, "max_quarantined_fraction": 1.0}


def make(tmp_path: Path) -> tuple[Path, Path]:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 12, "dog": 8})
    shutil.copy(folder / "cat/0000.jpg", folder / "dog/copy.jpg")
    dataset, _ = ingest(folder, tmp_path / "out", **CONFLICTS, **SMALL_SPLIT)
    assert dataset.catalog["counts"]["quarantined.LABEL_CONFLICT"] == 2
    return folder, tmp_path / "out"


def test_a_conflict_does_not_resolve_itself(tmp_path: Path) -> None:
    folder, out = make(tmp_path)
    os.utime(folder / "cat/0000.jpg", (1, 1))
    dataset, read = grow(folder, out)
    assert (dataset.version, read) == (1, ["cat/0000.jpg"])
    for label in ("cat", "dog", "owl"):
        (folder / label).mkdir(exist_ok=True)
        shutil.copy(folder / "dog/copy.jpg", folder / label / "third.jpg")
        dataset, read = grow(folder, out, max_quarantined_fraction=1.0)
        assert f"{label}/third.jpg" in read
        assert dataset.catalog["rows"] == 19
    messages = {row["key"]: row["message"] for row in read_quarantine(dataset)}
    assert set(messages) == {"cat/0000.jpg", "dog/copy.jpg", "cat/third.jpg", "dog/third.jpg", "owl/third.jpg"}
    assert messages["cat/third.jpg"] == (
        "it has the bytes of dog/copy.jpg, which was refused since it stands under another label"
    )


def test_a_conflict_is_resolved_by_accepting_one_as_lost_and_reading_the_other_again(tmp_path: Path) -> None:
    folder, out = make(tmp_path)
    accept(str(out), "it is a cat", wanted=lambda row: row["key"] == "dog/copy.jpg")
    dataset, read = ingest(folder, out, retry_failed=True)
    assert read == ["cat/0000.jpg"]
    assert by_key(dataset)["cat/0000.jpg"][1] == "cat"


def test_a_conflict_with_a_copy_that_is_gone_waits_for_a_decision(tmp_path: Path) -> None:
    folder, out = make(tmp_path)
    (folder / "dog/copy.jpg").unlink()
    dataset, _ = ingest(folder, out, retry_failed=True)
    assert "cat/0000.jpg" not in by_key(dataset)
    accept(str(out), "it was a slip", wanted=lambda row: row["key"] == "dog/copy.jpg")
    dataset, _ = ingest(folder, out, retry_failed=True)
    assert by_key(dataset)["cat/0000.jpg"][1] == "cat"


def test_a_table_that_gives_two_labels_decides_for_neither(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(20):
        (flat / f"{number:02d}.jpg").write_bytes(factories.make_jpeg(number, 32, 32))
    rows = [f"{number:02d}.jpg,{'cat' if number % 2 else 'dog'}" for number in range(20)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file,label", *rows, "03.jpg,dog"]) + "\n")
    dataset, _ = ingest(flat, tmp_path / "out", labels=str(table), **CONFLICTS, **SMALL_SPLIT)
    assert "03.jpg" not in by_key(dataset)
    for label in ("cat", "dog"):
        (tmp_path / "more" / label).mkdir(parents=True)
        shutil.copy(flat / "03.jpg", tmp_path / "more" / label / "again.jpg")
    shutil.copy(flat / "04.jpg", tmp_path / "more/dog/other.jpg")
    dataset, _ = grow(tmp_path / "more", tmp_path / "out", max_quarantined_fraction=1.0)
    assert {"cat/again.jpg", "dog/again.jpg"}.isdisjoint(by_key(dataset))
    messages = {row["key"]: row["message"] for row in read_quarantine(dataset)}
    assert {"cat/again.jpg", "dog/again.jpg"} <= set(messages)
