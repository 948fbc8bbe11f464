"""Exporting: live rows as plain files, names that stay inside, nothing overwritten."""

from __future__ import annotations

import csv
import io

import pytest

from pipelines.dataset import export as export_module
from pipelines.dataset.export import export
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.reader import open_dataset
from pipelines.errors import InputError
from pipelines.storage import Storage
from tests.unit.dataset.rows import image_id, ingest, label_of, make_png, split_of


@pytest.fixture
def storage(tmp_path) -> Storage:
    storage = Storage.open(tmp_path / "data")
    ingest(storage, {0: range(20)})
    return storage


def test_live_rows_become_files_in_split_and_class_folders(storage, tmp_path):
    publish_patch(storage.uri, [Change(image_id(3), "live", False, "x"), Change(image_id(4), "label", None, "x")])
    target = Storage.open(tmp_path / "out")
    assert export(open_dataset(storage.uri), target) == 19
    expected = {
        f"{split_of(n)}/{label_of(n)}/{image_id(n)}.png" if n != 4 else f"test/{image_id(4)}.png": make_png(n)
        for n in range(20)
        if n != 3
    }
    found = {file.path: target.read(file.path) for file in target.list() if file.path != "images.csv"}
    assert found == expected
    rows = list(csv.DictReader(io.StringIO(target.read("images.csv").decode())))
    assert {row["file"] for row in rows} == set(expected)
    assert next(row for row in rows if row["image_id"] == image_id(5)) == {
        "file": f"train/{label_of(5)}/{image_id(5)}.png",
        "split": "train",
        "label": label_of(5),
        "image_id": image_id(5),
        "source": "photos",
        "key": "5.png",
    }


def test_one_split_alone(storage, tmp_path):
    target = Storage.open(tmp_path / "out")
    assert export(open_dataset(storage.uri), target, ["test"]) == 4
    assert all(file.path.startswith(("test/", "images.csv")) for file in target.list())


def test_a_place_that_holds_something_is_refused(storage, tmp_path):
    target = Storage.open(tmp_path / "out")
    target.put("notes.txt", b"mine")
    with pytest.raises(InputError, match=r"holds something already \(for example notes.txt\)"):
        export(open_dataset(storage.uri), target)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cat", "cat"),
        ("..", "%2E."),
        ("../../etc", "%2E.%2F..%2Fetc"),
        (".hidden", "%2Ehidden"),
        ("a/b\\c", "a%2Fb%5Cc"),
        ("café au lait", "caf%C3%A9 au lait"),
        ("", "%"),
        ("nul\0", "nul%00"),
    ],
)
def test_class_names_stay_inside_their_folder(label, name):
    assert export_module._folder_name(label) == name


def test_cells_that_a_spreadsheet_would_run_are_defused():
    lines = [{"file": "f", "split": "s", "label": "=cmd|' /C calc'!A0", "image_id": "i", "source": "@x", "key": "-k"}]
    text = export_module._as_csv(lines).decode()
    assert next(csv.reader(io.StringIO(text.splitlines()[1]))) == ["f", "s", "'=cmd|' /C calc'!A0", "i", "'@x", "'-k"]
