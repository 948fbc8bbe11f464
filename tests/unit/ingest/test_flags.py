"""How many images have a flag is said of the images that live, whatever became of others."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.corrections import exclusions
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.profile import make_profile
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.ingest import append, finish
from tests import factories
from tests.unit.ingest.test_append import SMALL_SPLIT, by_key, grow, ingest


def live_flags(dataset: Dataset) -> dict[str, int]:
    found = Counter[str]()
    for split in dataset.splits:
        for names in dataset.table(split, ["flags"]).column("flags").to_pylist():
            found.update(names)
    return dict(found)


def check(dataset: Dataset) -> dict[str, int]:
    """Return the flags, having seen that catalog, data sheet and the sheet of the ingest agree."""
    flags = live_flags(dataset)
    assert dataset.catalog["flags"] == flags == make_profile(dataset).flags
    if dataset.catalog["stage"] == "ingest":
        (path,) = [path for path in dataset.catalog["sheet"].values() if path.endswith("sheet.json")]
        assert json.loads(dataset.storage.read(path))["flags"] == flags
    return flags


def grey(value: int) -> bytes:
    return factories.encode(np.full((32, 32, 3), value, np.uint8), "PNG")


@pytest.mark.parametrize("is_patched", [False, True], ids=["rewritten", "patched"])
def test_flags_count_the_images_that_live(tmp_path: Path, is_patched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_patched:
        monkeypatch.setattr(finish, "MAX_REWRITE_BYTES", 0)
        monkeypatch.setattr(append, "MAX_REWRITE_BYTES", 0)
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 24, "dog": 16})
    for number in range(8):
        for name in ("dark", "copy"):
            (folder / "cat" / f"{name}{number}.png").write_bytes(grey(number))
    dataset, _ = ingest(folder, tmp_path / "out", **SMALL_SPLIT)
    first = check(dataset)
    dropped = dataset.catalog["counts"]["dropped"]
    assert dropped > 0
    assert first["dark"] == 16 - dropped

    changed = next(key for key in by_key(dataset) if key.endswith(".png"))
    (folder / changed).write_bytes(factories.make_png(300))
    dataset, _ = grow(folder, tmp_path / "out")
    assert dataset.catalog["difference"]["changed"] == 1
    assert check(dataset)["dark"] == first["dark"] - 1

    more = factories.write_class_folder(tmp_path / "more", {"cat": 6}, seed=100)
    for number in range(8):
        shutil.copy(folder / "cat" / f"dark{number}.png", more / "cat" / f"again{number}.png")
    (more / "cat" / "new.png").write_bytes(grey(9))
    dataset, _ = grow(more, tmp_path / "out", max_quarantined_fraction=1.0)
    assert dataset.catalog["difference"]["leaks"] > 0
    flags = check(dataset)

    (image_id, *_) = [change.image_id for change in exclusions(dataset, ["cat/new.png"], "", "x")]
    publish_patch(dataset.uri, exclusions(dataset, ["cat/new.png"], "", "x"))
    assert check(open_dataset(dataset.uri))["dark"] == flags["dark"] - 1
    publish_patch(dataset.uri, [Change(image_id, "live", True, "x"), Change(image_id, "flags", ["odd"], "x")])
    assert check(open_dataset(dataset.uri)) == {**flags, "dark": flags["dark"] - 1, "flat": flags["flat"] - 1, "odd": 1}
