"""Appending: only news are read, what stands never moves, newcomers that leak are refused, and killed runs go on."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config.load import load_config
from pipelines.dataset import collect, inspect
from pipelines.dataset.catalog import PublishConflict, list_versions
from pipelines.dataset.corrections import exclusions
from pipelines.dataset.fingerprint import merge
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import ConfigError, DataError, InputError
from pipelines.image.decode import decode_image
from pipelines.ingest import append, newcomers, stage, twins
from pipelines.ingest import plan as ingest_plan
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources import units as source_units
from pipelines.sources.base import Unit
from pipelines.storage import LocalStorage, Storage
from tests import factories

SMALL_SPLIT = {"split": {"val": 0.2, "test": 0.2, "seed": 3}}


class Reader:
    """Does units in this process and notes which members were read."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        for unit in units:
            self.keys += [entry.key for entry in unit.entries]
            yield ingest_unit(unit, job)


def config_of(source: Path, out: Path, **values: Any) -> IngestConfig:
    return load_config(IngestConfig, inputs={"source": str(source), "out": str(out), **values})


def ingest(source: Path, out: Path, **values: Any) -> tuple[Dataset, list[str]]:
    """Return the newest version and the keys that were read."""
    reader = Reader()
    result = stage.run(config_of(source, out, **values), reader)
    dataset = open_dataset(result.out)
    assert dataset.version == result.version
    assert list(inspect.verify(dataset)) == []
    counts = dataset.catalog["counts"]
    assert counts["members"] == counts["written"] + counts["quarantined"] + counts["dropped"]
    return dataset, reader.keys


def grow(source: Path, out: Path, **values: Any) -> tuple[Dataset, list[str]]:
    return ingest(source, out, append=True, **values)


def rows(dataset: Dataset) -> dict[str, tuple[str, str | None, str]]:
    """Return image_id -> (split, label, source hash) of all live rows."""
    found: dict[str, tuple[str, str | None, str]] = {}
    for split in dataset.splits:
        for row in dataset.table(split, ["image_id", "label", "source_sha256"]).to_pylist():
            assert row["image_id"] not in found
            found[row["image_id"]] = (split, row["label"], row["source_sha256"])
    return found


def by_key(dataset: Dataset) -> dict[str, tuple[str, str | None]]:
    return {
        row["key"]: (split, row["label"])
        for split in dataset.splits
        for row in dataset.table(split, ["key", "label"]).to_pylist()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return factories.write_class_folder(tmp_path / "set", {"cat": 24, "dog": 16})


@pytest.fixture
def more(tmp_path: Path) -> Path:
    return factories.write_class_folder(tmp_path / "more", {"cat": 10, "fox": 20}, seed=100)


@pytest.fixture
def out(folder: Path, tmp_path: Path) -> Path:
    ingest(folder, tmp_path / "out", **SMALL_SPLIT)
    return tmp_path / "out"


def test_a_new_source_joins_and_nothing_that_stands_moves(out: Path, more: Path) -> None:
    before = open_dataset(str(out))
    dataset, read = grow(more, out)
    assert (dataset.version, len(read)) == (2, 30)
    assert dataset.classes == ["cat", "dog", "fox"]  # numbers of standing classes stay
    assert rows(before).items() <= rows(dataset).items()
    assert dataset.catalog["rows"] == 70
    assert set(dataset.catalog["sources"]) == {"set", "more"}
    assert dataset.catalog["split"] == before.catalog["split"]
    assert dataset.preprocess == before.preprocess
    foxes = Counter(split for split, label in by_key(dataset).values() if label == "fox")
    assert foxes["train"] > foxes["test"] > 0  # by the nominal cut-offs
    difference = dataset.catalog["difference"]
    assert (difference["parent"], difference["added"], difference["new_classes"]) == (1, 30, ["fox"])
    assert rows(open_dataset(f"{out}@v1")) == rows(before)


def test_the_same_rows_whatever_the_units_and_the_order(
    folder: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(folder, tmp_path / "a", **SMALL_SPLIT)
    ingest(more, tmp_path / "alone", **SMALL_SPLIT)
    whole, _ = grow(more, tmp_path / "a")
    monkeypatch.setattr(source_units, "MAX_UNIT_ROWS", 7)
    ingest(folder, tmp_path / "b", **SMALL_SPLIT)
    cut, _ = grow(more, tmp_path / "b")
    assert len(cut.shards()) > len(whole.shards())
    assert cut.fingerprint == whole.fingerprint
    assert rows(cut) == rows(whole)
    parts = [open_dataset(f"{tmp_path / 'a'}@v1").fingerprint, _fingerprint_of(whole, "more")]
    assert whole.fingerprint == merge(parts)


def _fingerprint_of(dataset: Dataset, source: str) -> str:
    from pipelines.dataset.fingerprint import add, to_hex
    from pipelines.dataset.writer import row_fingerprint

    columns = ["image_id", "source_sha256", "stored_sha256", "label", "source"]
    return to_hex(
        add(
            row_fingerprint(row, split, [])
            for split in dataset.splits
            for row in dataset.table(split, columns).to_pylist()
            if row["source"] == source
        )
    )


def test_of_a_grown_source_only_news_are_read(folder: Path, out: Path) -> None:
    before = rows(open_dataset(str(out)))
    factories.write_class_folder(folder / "cat", {"new": 3}, seed=500)
    dataset, read = grow(folder, out)
    assert sorted(read) == ["cat/new/0000.jpg", "cat/new/0001.jpg", "cat/new/0002.jpg"]
    assert before.items() <= rows(dataset).items()
    assert dataset.catalog["rows"] == 43
    assert dataset.catalog["patches"] == []
    again, read = grow(folder, out)
    assert (again.version, read) == (2, [])


def test_a_changed_member_takes_the_place_of_its_row(folder: Path, out: Path) -> None:
    before = open_dataset(str(out))
    places = by_key(before)
    changed = [key for key, (split, _) in places.items() if split == "test"][:2]
    for number, key in enumerate(changed):
        (folder / key).write_bytes(factories.make_jpeg(900 + number, 32, 32))
    dataset, read = grow(folder, out)
    assert sorted(read) == sorted(changed)
    assert by_key(dataset) == places  # the same images in the same splits
    after, stood = rows(dataset), rows(before)
    differ = [image_id for image_id in after if after[image_id] != stood[image_id]]
    assert len(differ) == 2
    assert [entry["rows"] for entry in dataset.catalog["patches"]] == [2]
    assert dataset.catalog["rows"] == 40
    assert dataset.catalog["difference"]["changed"] == 2
    assert rows(open_dataset(f"{out}@v1")) == stood
    # later patches mean the row that lives, and compacting drops the other one
    publish_patch(str(out), exclusions(dataset, [changed[0]], "", "blurred"))
    assert open_dataset(str(out)).catalog["rows"] == 39
    assert collect.compact(str(out)) == 4
    compacted = open_dataset(str(out))
    assert list(inspect.verify(compacted)) == []
    assert changed[0] not in by_key(compacted)


def test_a_touched_member_that_did_not_change_adds_no_row(folder: Path, out: Path) -> None:
    before = open_dataset(str(out))
    key = next(iter(by_key(before)))
    os.utime(folder / key, (1, 1))
    dataset, read = grow(folder, out)
    assert (dataset.version, read) == (1, [key])  # nothing differs, so nothing is published
    assert grow(folder, out)[1] == []
    factories.write_class_folder(folder / "cat", {"new": 1}, seed=500)
    dataset, read = grow(folder, out)
    assert sorted(read) == sorted([key, "cat/new/0000.jpg"])
    assert rows(before).items() <= rows(dataset).items()
    assert dataset.catalog["difference"]["unchanged"] == 1
    assert dataset.catalog["patches"] == []
    assert dataset.catalog["counts"]["members"] == dataset.catalog["counts"]["written"] == 41
    assert grow(folder, out)[1] == []


def test_each_member_counts_once_however_often_it_is_read(folder: Path, out: Path) -> None:
    for number, name in enumerate(("0001.jpg", "0002.jpg")):
        (folder / "cat" / name).write_bytes(b"no image, but enough to be read as one")
        dataset, _ = grow(folder, out, max_quarantined_fraction=1.0)
        assert dataset.catalog["counts"]["quarantined"] == number + 1
    counts, version = dataset.catalog["counts"], dataset.version
    for time in (10, 20):
        for path in folder.rglob("*.jpg"):
            os.utime(path, (time, time))
        dataset, read = grow(folder, out, max_quarantined_fraction=1.0)
        assert (len(read), dataset.version, dataset.catalog["counts"]) == (40, version, counts)
    (folder / "cat/0003.jpg").write_bytes(factories.make_jpeg(900, 32, 32))
    dataset, _ = grow(folder, out, max_quarantined_fraction=1.0)
    assert dataset.version == version + 1
    assert dataset.catalog["counts"] == counts
    assert dataset.catalog["counts"]["written"] == dataset.catalog["rows"] == 40


def test_content_that_comes_back_is_read_again(folder: Path, out: Path) -> None:
    key = "cat/0000.jpg"
    first, second = (folder / key).read_bytes(), factories.make_jpeg(900, 32, 32)
    hashes = []
    for version, (data, time) in enumerate([(second, 10), (first, 20), (second, 10), (first, 20)], start=2):
        (folder / key).write_bytes(data)
        os.utime(folder / key, (time, time))
        dataset, read = grow(folder, out)
        assert (dataset.version, read) == (version, [key])
        assert dataset.catalog["rows"] == 40
        hashes.append(dataset.fingerprint)
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]


def test_gone_members_are_reported_and_stay(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = rows(open_dataset(str(out)))
    for number in range(3):
        (folder / "cat" / f"000{number}.jpg").unlink()
    result = stage.run(config_of(folder, out, append=True), Reader())
    dataset = open_dataset(str(out))
    assert rows(dataset) == before
    assert result.figures["gone"] == 3
    assert dataset.catalog["difference"]["gone_keys"] == ["cat/0000.jpg", "cat/0001.jpg", "cat/0002.jpg"]
    command = result.next_commands[0]
    assert command.startswith(f"resnet data exclude {out} --from {out}/sheet/")
    with open(out / dataset.catalog["sheet"]["gone"]) as file:
        assert [row["key"] for row in csv.DictReader(file)] == dataset.catalog["difference"]["gone_keys"]
    publish_patch(str(out), exclusions(dataset, [], str(out / dataset.catalog["sheet"]["gone"]), "gone"))
    shutil.copy(folder / "cat" / "0005.jpg", folder / "cat" / "0000.jpg")  # another picture under an excluded key
    dataset, read = grow(folder, out)
    assert dataset.catalog["rows"] == 37
    assert (read, dataset.catalog["difference"]["withheld"]) == ([], 1)
    assert dataset.catalog["difference"]["gone"] == 0
    assert "1 changed image was taken out of the dataset before, to stay out" in dataset.catalog["warnings"]
    collect.gc(Storage.open(out), dead_after_s=0)
    assert list(inspect.verify(open_dataset(str(out)))) == []


def test_what_another_pattern_covers_is_not_gone(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number, year in enumerate(("2024", "2025")):
        factories.write_class_folder(photos / f"{year}-01", {"cat": 12, "dog": 12}, seed=100 * number)
    ingest(photos / "2024-*", tmp_path / "out", **SMALL_SPLIT)
    dataset, read = grow(photos / "2025-*", tmp_path / "out")
    assert (len(read), dataset.catalog["rows"]) == (24, 48)
    assert dataset.catalog["difference"]["gone"] == 0
    assert "gone" not in dataset.catalog["sheet"]
    for year in ("2024", "2025"):
        (photos / f"{year}-01" / "cat" / "0000.jpg").unlink()
    dataset, read = grow(photos / "2025-*", tmp_path / "out")
    assert (read, dataset.catalog["difference"]["gone_keys"]) == ([], ["2025-01/cat/0000.jpg"])
    dataset, read = grow(photos, tmp_path / "out")
    assert read == []
    assert sorted(dataset.catalog["difference"]["gone_keys"]) == ["2024-01/cat/0000.jpg", "2025-01/cat/0000.jpg"]


def test_next_commands_can_be_pasted_where_a_folder_has_a_space(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "my out"
    ingest(folder, out)
    (folder / "cat" / "0000.jpg").unlink()
    result = stage.run(config_of(folder, out, append=True), Reader())
    assert len(result.next_commands) == 4
    for command in result.next_commands:
        assert any(word.startswith(str(out)) for word in shlex.split(command)), command
    with pytest.raises(InputError) as caught:
        stage.run(config_of(folder, tmp_path / "no out", retry_failed=True), Reader())
    assert caught.value.mend == f"resnet ingest {folder} --out '{tmp_path}/no out'"


def test_a_member_that_comes_back_as_it_was_is_not_read(folder: Path, out: Path) -> None:
    path = folder / "cat" / "0000.jpg"
    path.rename(folder.parent / "aside.jpg")
    grow(folder, out)
    (folder.parent / "aside.jpg").rename(path)
    dataset, read = grow(folder, out)
    assert read == []
    assert dataset.catalog["rows"] == 40


def test_exact_copies_in_another_split_are_leaks(folder: Path, more: Path, out: Path) -> None:
    places = by_key(open_dataset(str(out)))
    for number, key in enumerate(sorted(places)):
        shutil.copy(folder / key, more / "cat" / f"copy{number:02d}.jpg")
    dataset, _ = grow(more, out)
    refused = [row for row in inspect.quarantined(dataset) if row["reason"] == "LEAK"]
    stand = {key: split for key, (split, _) in by_key(dataset).items()}
    splits: dict[str, set[str]] = {}
    for split, _, sha256 in rows(dataset).values():
        splits.setdefault(sha256, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(refused) + sum(key.startswith("cat/copy") for key in stand) == 40
    assert dataset.catalog["counts"]["quarantined.LEAK"] == len(refused) == dataset.catalog["difference"]["leaks"]
    assert 0 < len(refused) < 40
    assert all(decode_image(row["thumbnail"]).pixels.shape == (32, 32, 3) for row in refused)
    for row in refused:
        twin = sorted(places)[int(row["key"][8:10])]
        assert row["message"] == (
            f"it has the bytes of {twin}, which stands in {places[twin][0]}; it would have gone to {row['split']}"
        )
        assert row["split"] != places[twin][0]
        assert row["bytes_sha256"] is not None
        assert row["size_bytes"] == (folder / twin).stat().st_size
    assert grow(more, out)[0].version == 2


def test_look_alikes_in_another_split_are_leaks(folder: Path, more: Path, out: Path) -> None:
    from PIL import Image

    places = by_key(open_dataset(str(out)))
    for number, key in enumerate(sorted(places)):
        pixels = np.asarray(Image.open(folder / key)).copy()
        pixels[0, 0] ^= 1  # another file, the same picture
        Image.fromarray(pixels).save(more / "cat" / f"like{number:02d}.png")
    dataset, _ = grow(more, out)
    refused = {row["key"] for row in inspect.quarantined(dataset) if row["reason"] == "LEAK"}
    expected = set()
    for key, (split, _) in by_key(dataset).items():
        if key.startswith("cat/like"):
            assert split == places[sorted(places)[int(key[8:10])]][0]
            expected.add(key)
    assert len(refused) + len(expected) == 40
    assert refused
    messages = [row["message"] for row in inspect.quarantined(dataset)]
    assert all("bits of the hash away from" in message for message in messages)


def test_where_the_hash_says_nothing_only_the_same_bytes_leak(
    folder: Path, more: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr(twins, "MAX_ACCIDENTS", -1.0)  # of no pictures are there fewer accidents
    for number, key in enumerate(sorted(by_key(open_dataset(str(out))))):
        Image.open(folder / key).save(more / "cat" / f"like{number:02d}.png")
        shutil.copy(folder / key, more / "cat" / f"copy{number:02d}.jpg")
    dataset, _ = grow(more, out)
    refused = [row["key"] for row in inspect.quarantined(dataset)]
    assert refused
    assert all(key.startswith("cat/copy") for key in refused)


def test_large_shards_get_a_patch_instead(
    folder: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        shutil.copy(folder / "cat" / f"{number:04d}.jpg", more / "cat" / f"copy{number:02d}.jpg")
    ingest(folder, tmp_path / "rewritten", **SMALL_SPLIT)
    ingest(folder, tmp_path / "patched", **SMALL_SPLIT)
    rewritten, _ = grow(more, tmp_path / "rewritten")
    monkeypatch.setattr(append, "MAX_REWRITE_BYTES", -1)
    patched, _ = grow(more, tmp_path / "patched")
    assert len(patched.catalog["patches"]) == 1
    assert patched.fingerprint == rewritten.fingerprint
    assert rows(patched) == rows(rewritten)
    assert patched.catalog["counts"] == rewritten.catalog["counts"]


def test_settings_are_the_datasets(folder: Path, more: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    ingest(folder, out, image={"size_px": 16}, **SMALL_SPLIT)
    with pytest.raises(ConfigError) as caught:
        grow(more, out, image={"size_px": 24})
    assert "image.size_px is 24, and the dataset has 16; a dataset has one setting" in caught.value.what
    assert caught.value.mend == "leave image.size_px out, or ingest into a new --out"
    with pytest.raises(ConfigError, match=r"split\.seed is 4, and the dataset has 3"):
        grow(more, out, split={"seed": 4})
    with caplog.at_level("INFO"):
        dataset, _ = grow(more, out, split={"seed": 3, "by": "stratified"})
    assert f"image.size_px=16, split.train=0.6, split.val=0.2, split.test=0.2 hold, as in {out}@v1" in caplog.text
    assert {row["width"] for row in dataset.table("train", ["width"]).to_pylist()} == {16}
    assert dataset.catalog["config"]["image"]["size_px"] == 16


def test_an_unlabelled_dataset_takes_no_labels(folder: Path, more: Path, tmp_path: Path) -> None:
    ingest(folder, tmp_path / "out", task="unlabelled", **SMALL_SPLIT)
    with pytest.raises(ConfigError, match=r'task is "single", and the dataset has "unlabelled"'):
        grow(more, tmp_path / "out", task="single")
    dataset, _ = grow(more, tmp_path / "out")
    assert {label for _, label in by_key(dataset).values()} == {None}


def test_a_run_with_another_task_is_not_joined(out: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.jpg").write_bytes(factories.make_jpeg(700, 32, 32))

    def as_multi(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        job.source.task = "multi"
        yield from Reader()(job, units)

    with pytest.raises(InputError, match="the dataset has task 'single' and this run 'multi'"):
        stage.run(config_of(flat, out, append=True), as_multi)
    assert open_dataset(str(out)).version == 1


def test_an_append_needs_a_place(more: Path) -> None:
    with pytest.raises(ConfigError, match="append=true, and no dataset is named"):
        stage.run(load_config(IngestConfig, inputs={"source": str(more), "append": True}), Reader())


def test_an_append_to_nothing_is_a_first_ingest(more: Path, tmp_path: Path) -> None:
    dataset, read = grow(more, tmp_path / "fresh")
    assert (dataset.version, len(read)) == (1, 30)
    assert "difference" not in dataset.catalog


def test_without_append_the_way_on_is_said(folder: Path, more: Path, out: Path) -> None:
    with pytest.raises(InputError) as caught:
        ingest(more, out)
    assert "add --append to add it to that dataset" in caught.value.mend
    factories.write_class_folder(folder, {"new": 1}, seed=7)
    with pytest.raises(InputError) as caught:
        ingest(folder, out, **SMALL_SPLIT)
    assert "add --append to read what is new or changed" in caught.value.mend


def test_a_known_name_elsewhere_is_refused_unless_it_moved(folder: Path, out: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "set")
    (moved / "cat" / "0000.jpg").write_bytes(factories.make_jpeg(901, 32, 32))
    with pytest.raises(InputError) as caught:
        grow(moved, out)
    assert f"the dataset knows a source set from {folder}, and this one is {moved}" in caught.value.what
    assert caught.value.mend == "if it was moved: moved=true; if it is another one: source_name=set-2"
    dataset, read = grow(moved, out, moved=True)
    assert read == ["cat/0000.jpg"]  # copytree keeps times
    assert dataset.catalog["locations"] == {"set": str(moved)}
    assert dataset.catalog["rows"] == 40


def as_the_first_release(catalog: dict[str, Any]) -> dict[str, Any]:
    """Return a catalog without what later releases added to it."""
    config = catalog["config"]
    first = {name: config[name] for name in ("source", "source_name", "out", "image", "split")}
    later = ("scaled_decoding", "value_range")
    first["image"] = {name: value for name, value in config["image"].items() if name not in later}
    first["split"] = {name: value for name, value in config["split"].items() if name not in ("group", "time")}
    return {**{name: value for name, value in catalog.items() if name != "origins"}, "config": first}


def test_what_an_earlier_release_made_stands(
    folder: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, publish = tmp_path / "out", stage.publish_version
    with monkeypatch.context() as patch:
        patch.setattr(ingest_plan, "OUTPUT_VERSION", 1)
        patch.setattr(
            stage,
            "publish_version",
            lambda store, run_id, catalog, **more: publish(store, run_id, as_the_first_release(catalog), **more),
        )
        ingest(folder, out, **{"image.scaled_decoding": False})
    assert stage.run(config_of(folder, out)).skipped
    with pytest.raises(InputError, match=r"made with other settings: image\.scaled_decoding=false\n") as caught:
        stage.run(config_of(folder, out, **{"image.scaled_decoding": True}))
    assert caught.value.mend.startswith("leave these settings out and add --append")
    with pytest.raises(InputError, match=r"made by an earlier release with other settings: image\.size_px=256\n"):
        stage.run(config_of(folder, out, **{"image.size_px": 16}))
    grow(folder, out)
    grow(more, out)
    assert stage.run(config_of(folder, out)).skipped
    factories.write_class_folder(folder, {"new": 1}, seed=7)
    with pytest.raises(InputError, match="made by an earlier release from other content"):
        stage.run(config_of(folder, out))


def test_what_the_release_before_made_with_the_same_settings_stands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ingest_plan, "OUTPUT_VERSION", 2)
        ingest(folder, tmp_path / "out", **{"image.size_px": 16})
    assert stage.run(config_of(folder, tmp_path / "out", **{"image.size_px": 16})).skipped
    with pytest.raises(InputError):
        stage.run(config_of(folder, tmp_path / "out", **{"image.size_px": 17}))


def test_a_dataset_without_a_listing_is_compared_by_keys(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cat" / "bad.jpg").write_bytes(b"text")
    out = tmp_path / "out"
    publish = stage.publish_version
    with monkeypatch.context() as patch:
        patch.setattr(
            stage,
            "publish_version",
            lambda store, run_id, catalog, **more: publish(
                store, run_id, {name: value for name, value in catalog.items() if name != "origins"}, **more
            ),
        )
        ingest(folder, out, **SMALL_SPLIT)
    factories.write_class_folder(folder, {"new": 2}, seed=7)
    (folder / "cat" / "0000.jpg").write_bytes(factories.make_jpeg(901, 32, 32))
    dataset, read = grow(folder, out)
    assert sorted(read) == ["new/0000.jpg", "new/0001.jpg"]
    assert "the dataset has no listing of set" in dataset.catalog["warnings"][-1]
    (folder / "cat" / "0000.jpg").write_bytes(factories.make_jpeg(902, 32, 32))
    assert grow(folder, out)[1] == ["cat/0000.jpg"]


def test_refused_newcomers_within_the_budget_do_not_stop_an_append(folder: Path, out: Path) -> None:
    (folder / "cat" / "bad.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be used \(NOT_IMAGE 1\); 10.0% are allowed"):
        grow(folder, out)
    assert open_dataset(str(out)).version == 1
    factories.write_class_folder(folder / "cat", {"new": 9}, seed=500)
    dataset, read = grow(folder, out)
    assert len(read) == 10
    assert dataset.catalog["rows"] == 49
    assert dataset.catalog["counts"]["quarantined.NOT_IMAGE"] == 1
    assert grow(folder, out)[1] == []
    (folder / "cat" / "bad.jpg").write_bytes(factories.make_jpeg(77, 32, 32))
    dataset, read = grow(folder, out)
    assert read == ["cat/bad.jpg"]
    assert dataset.catalog["rows"] == 50


def test_columns_are_the_datasets(folder: Path, tmp_path: Path) -> None:
    def table(path: Path, source: Path, **columns: str) -> str:
        lines = [
            ",".join([str(file.relative_to(source)), "x", *columns.values()]) for file in sorted(source.rglob("*.jpg"))
        ]
        path.write_text("\n".join([",".join(["key", "label", *columns]), *lines]) + "\n")
        return str(path)

    out = tmp_path / "out"
    ingest(folder, out, labels=table(tmp_path / "a.csv", folder, site="north", camera="c1"), **SMALL_SPLIT)
    more = factories.write_class_folder(tmp_path / "more", {"q": 5}, seed=40)
    with pytest.raises(InputError, match="the source has a column 'lens', and the dataset carries site, camera"):
        grow(more, out, labels=table(tmp_path / "b.csv", more, lens="l"))
    dataset, _ = grow(more, out, labels=table(tmp_path / "c.csv", more, camera="c2"))
    found = {
        (row["source"], row["site"], row["camera"])
        for split in dataset.splits
        for row in dataset.table(split, ["source", "site", "camera"]).to_pylist()
    }
    assert found == {("set", "north", "c1"), ("more", None, "c2")}
    assert any("has no column site: it is empty in its rows" in text for text in dataset.catalog["warnings"])
    # the table of labels that a source was read with is kept, and a new word in it is a change
    text = (tmp_path / "a.csv").read_text().replace("cat/0000.jpg,x", "cat/0000.jpg,y")
    (tmp_path / "a.csv").write_text(text)
    dataset, read = grow(folder, out)
    assert read == ["cat/0000.jpg"]
    assert by_key(dataset)["cat/0000.jpg"][1] == "y"


def test_two_appends_at_once_are_joined(folder: Path, more: Path, out: Path, tmp_path: Path) -> None:
    other = factories.write_class_folder(tmp_path / "other", {"dog": 12, "owl": 6}, seed=300)
    for number in range(10):  # the same pictures in both: the second to publish finds the first one's
        shutil.copy(more / "cat" / f"{number:04d}.jpg", other / "dog" / f"copy{number:02d}.jpg")

    def with_another_between(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        grow(other, out)
        yield from Reader()(job, units)

    stage.run(config_of(more, out, append=True), with_another_between)
    dataset = open_dataset(str(out))
    assert dataset.version == 3
    assert set(dataset.catalog["sources"]) == {"set", "other", "more"}
    assert dataset.classes == ["cat", "dog", "owl", "fox"]
    assert list(inspect.verify(dataset)) == []
    splits: dict[str, set[str]] = {}
    for split, _, sha256 in rows(dataset).values():
        splits.setdefault(sha256, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert dataset.catalog["difference"]["parent"] == 2
    assert dataset.catalog["difference"]["leaks"] > 0


def test_what_was_refused_beside_one_version_is_not_overwritten_beside_the_next(
    folder: Path, more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version is published between joining and publishing: the newcomer is refused for another twin."""
    out = tmp_path / "out"
    for number in range(8):  # newcomers' own split is not known: some go to another one than these
        shutil.copy(folder / "cat" / f"{number:04d}.jpg", more / "cat" / f"copy{number}.jpg")
        shutil.copy(folder / "cat" / f"{number:04d}.jpg", folder / "cat" / f"twin{number}.jpg")
    ingest(folder, out, **SMALL_SPLIT)
    publish = stage.publish_version
    seen: list[tuple[Dataset, Dataset]] = []

    def with_an_exclusion_between(store: Storage, run_id: str, catalog: dict[str, Any], **values: Any) -> int:
        def rebase(standing: dict[str, Any], version: int) -> dict[str, Any]:
            joined: dict[str, Any] = values["rebase"](standing, version)
            seen.append((Dataset(store.uri, 0, {**catalog, "version": 0}), Dataset(store.uri, 0, joined)))
            assert list(inspect.verify(seen[0][0])) == []
            return joined

        twins = [row["message"].split()[5].rstrip(",") for row in inspect.quarantined(Dataset(store.uri, 0, catalog))]
        publish_patch(str(out), exclusions(open_dataset(str(out)), sorted(set(twins)), "", "seen"))
        return publish(store, run_id, catalog, **{**values, "rebase": rebase})

    monkeypatch.setattr(stage, "publish_version", with_an_exclusion_between)
    stage.run(config_of(more, out, append=True), Reader())
    dataset = open_dataset(str(out))
    assert dataset.version == 3
    assert list(inspect.verify(dataset)) == []
    ((before, after),) = seen
    assert before.quarantine_files()[-1].path != after.quarantine_files()[-1].path


def test_two_appends_of_the_same_source_do_not_mix(folder: Path, out: Path) -> None:
    factories.write_class_folder(folder, {"new": 2}, seed=7)

    def with_another_between(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        (folder / "new" / "0002.jpg").write_bytes(factories.make_jpeg(8, 32, 32))
        grow(folder, out)
        yield from Reader()(job, units)

    with pytest.raises(PublishConflict, match=r"out@v2 holds set as another run"):
        stage.run(config_of(folder, out, append=True), with_another_between)
    assert open_dataset(str(out)).catalog["rows"] == 43


def test_a_patch_between_is_kept(folder: Path, out: Path) -> None:
    factories.write_class_folder(folder, {"new": 2}, seed=7)
    image_id = next(iter(rows(open_dataset(str(out)))))

    def with_a_patch_between(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        publish_patch(str(out), [Change(image_id, "label", "owl", "seen")])
        yield from Reader()(job, units)

    stage.run(config_of(folder, out, append=True), with_a_patch_between)
    dataset = open_dataset(str(out))
    assert (dataset.version, dataset.catalog["rows"]) == (3, 42)
    assert rows(dataset)[image_id][1] == "owl"


def test_an_image_that_is_taken_out_between_stays_out(folder: Path, out: Path) -> None:
    keys = ["cat/0000.jpg", "cat/0001.jpg"]
    for number, key in enumerate(keys):
        (folder / key).write_bytes(factories.make_jpeg(910 + number, 32, 32))

    def with_a_patch_between(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        publish_patch(str(out), exclusions(open_dataset(str(out)), keys[:1], "", "consent withdrawn"))
        yield from Reader()(job, units)

    stage.run(config_of(folder, out, append=True), with_a_patch_between)
    dataset = open_dataset(str(out))
    assert (dataset.version, dataset.catalog["rows"]) == (3, 39)
    assert keys[0] not in by_key(dataset)
    difference = dataset.catalog["difference"]
    assert (difference["changed"], difference["withheld"]) == (1, 1)
    assert list(inspect.verify(dataset)) == []


class Killed(BaseException):
    """Stands for kill -9 at one write."""


def kill_switch(patch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """Return a function that sets the write at which to die (0: none) and returns how many there were so far."""
    state = {"number": 0, "kill_at": 0}

    def wrap(method: Callable[..., None]) -> Callable[..., None]:
        def write(storage: LocalStorage, *args: Any, **options: Any) -> None:
            for call in [(path,) for path in args] if method.__name__ == "delete" else [args]:
                state["number"] += 1
                if state["number"] == state["kill_at"]:
                    raise Killed
                method(storage, *call, **options)

        return write

    patch.setattr(LocalStorage, "put_all", Storage.put_all)  # threads would make their order a matter of luck
    for name in ("put", "create", "delete"):
        patch.setattr(LocalStorage, name, wrap(getattr(LocalStorage, name)))

    def arm(kill_at: int) -> int:
        done, state["number"], state["kill_at"] = state["number"], 0, kill_at
        return done

    return arm


def test_killed_at_any_write_and_run_again(folder: Path, out: Path, tmp_path: Path) -> None:
    for number in range(6):
        shutil.copy(folder / "cat" / f"{number:04d}.jpg", folder / "dog" / f"copy{number:02d}.jpg")
    (folder / "cat" / "0007.jpg").write_bytes(factories.make_jpeg(905, 32, 32))
    (folder / "cat" / "0008.jpg").unlink()
    os.utime(folder / "cat" / "0009.jpg", (1, 1))
    golden, _ = grow(folder, shutil.copytree(out, tmp_path / "golden"))
    assert golden.catalog["difference"]["leaks"] > 0
    with pytest.MonkeyPatch.context() as patch:
        arm = kill_switch(patch)
        config = config_of(folder, shutil.copytree(out, tmp_path / "counted"), append=True)
        arm(0)
        stage.run(config, Reader())
        writes = arm(0)
        assert writes > 15
        for kill_at in range(1, writes + 1):
            place = shutil.copytree(out, tmp_path / f"killed{kill_at}")
            config = config_of(folder, place, append=True)
            arm(kill_at)
            with pytest.raises(Killed):
                stage.run(config, Reader())
            arm(0)
            dataset = open_dataset(stage.run(config, Reader()).out)
            assert dataset.fingerprint == golden.fingerprint, f"killed at write {kill_at}"
            assert dataset.catalog["counts"] == golden.catalog["counts"]
            assert rows(dataset) == rows(golden)
            assert list_versions(Storage.open(place)) == [1, 2]


def test_a_rerun_skips_without_heavy_imports(more: Path, out: Path) -> None:
    import subprocess
    import sys

    grow(more, out)
    program = (
        "import sys\n"
        "from pipelines.ingest.config import IngestConfig\n"
        "from pipelines.ingest import stage\n"
        f"result = stage.run(IngestConfig(source={str(more)!r}, out={str(out)!r}, append=True))\n"
        "assert result.skipped\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'pyarrow', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


def copied(folder: Path, more: Path, *, label: str = "cat") -> dict[str, str]:
    """Copy every standing image into a new source; return new key -> the key it was copied from."""
    keys = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    for number, key in enumerate(keys):
        (more / label).mkdir(exist_ok=True)
        shutil.copy(folder / key, more / label / f"copy{number:02d}.jpg")
    return {f"{label}/copy{number:02d}.jpg": key for number, key in enumerate(keys)}


@pytest.mark.parametrize(
    ("policy", "kept", "leaks", "dropped"),
    [
        ({}, "own split", True, False),
        ({"exact": "drop"}, "none", True, True),
        ({"exact": "keep"}, "all", False, False),
    ],
    ids=["one side", "drop", "keep"],
)
def test_newcomers_go_by_the_policy_for_duplicates(
    folder: Path, more: Path, out: Path, policy: dict[str, str], kept: str, leaks: bool, dropped: bool
) -> None:
    places = by_key(open_dataset(str(out)))
    copies = copied(folder, more)
    dataset, _ = grow(more, out, duplicates=policy)
    stand = {key: split for key, (split, _) in by_key(dataset).items() if key in copies}
    if kept == "own split":
        assert 0 < len(stand) < len(copies)
        assert all(split == places[copies[key]][0] for key, split in stand.items())
    assert {"none": 0, "all": 40}.get(kept, len(stand)) == len(stand)
    assert bool(dataset.catalog["difference"]["leaks"]) == leaks
    assert bool(dataset.catalog["counts"]["dropped"]) == dropped
    assert dataset.catalog["duplicates"]["dropped"].get("DUPLICATE", 0) == dataset.catalog["counts"]["dropped"]


def test_labels_that_contradict_what_stands(folder: Path, more: Path, out: Path) -> None:
    places = by_key(open_dataset(str(out)))
    copies = copied(folder, more, label="owl")
    reported, _ = grow(more, shutil.copytree(out, out.parent / "reported"))
    stand = [key for key in by_key(reported) if key in copies]
    assert stand
    assert reported.catalog["duplicates"]["label_conflicts"] == 40
    assert "40 pictures stand under different labels" in reported.catalog["warnings"]
    refused, _ = grow(more, out, duplicates={"conflicts": "quarantine"})
    assert not [key for key in by_key(refused) if key in copies]
    assert refused.catalog["counts"]["quarantined.LABEL_CONFLICT"] == 40
    messages = {row["key"]: row["message"] for row in inspect.quarantined(refused)}
    twin = copies["owl/copy03.jpg"]
    assert messages["owl/copy03.jpg"] == (
        f"it has the bytes of {twin}, which stands in {places[twin][0]} under another label"
    )


def test_a_picture_that_changes_places_is_no_leak(folder: Path, out: Path) -> None:
    """Of two images of different splits each takes the other's content: nothing of the old rows stands any more."""
    places = by_key(open_dataset(str(out)))
    one = next(key for key, (split, _) in places.items() if split == "train")
    other = next(key for key, (split, _) in places.items() if split == "test")
    first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
    (folder / one).write_bytes(second)
    (folder / other).write_bytes(first)
    dataset, read = grow(folder, out)
    assert sorted(read) == sorted([one, other])
    assert dataset.catalog["difference"]["leaks"] == 0
    assert dataset.catalog["difference"]["changed"] == 2
    assert by_key(dataset) == places


def test_where_a_changed_image_is_refused_its_row_counts_for_others(folder: Path, out: Path) -> None:
    """One takes the content of a test image and leaks; another takes that one's old content, which therefore stays."""
    before = open_dataset(str(out))
    places = by_key(before)
    one = next(key for key, (split, _) in places.items() if split == "train")
    twin, other = [key for key, (split, _) in places.items() if split == "test"][:2]
    first, second = (folder / one).read_bytes(), (folder / twin).read_bytes()
    (folder / one).write_bytes(second)
    (folder / other).write_bytes(first)
    dataset, read = grow(folder, out)
    assert sorted(read) == sorted([one, other])
    assert {row["key"] for row in inspect.quarantined(dataset)} == {one, other}
    assert rows(dataset) == rows(before)


def test_the_row_that_stands_is_the_live_one_wherever_it_lies(folder: Path, out: Path) -> None:
    key = "cat/0000.jpg"
    (folder / key).write_bytes(factories.make_jpeg(900, 32, 32))
    dataset, _ = grow(folder, out)
    (image_id,) = dict(rows(dataset).items() - rows(open_dataset(f"{out}@v1")).items())
    lists = dataset.catalog["shard_lists"]
    turned = Dataset(dataset.uri, dataset.version, {**dataset.catalog, "shard_lists": lists[::-1]})
    found = [newcomers.standing_rows(each, {image_id})[image_id] for each in (dataset, turned)]
    assert [row.is_live for row in found] == [True, True]
    assert json.loads(found[0].values[0]) == rows(dataset)[image_id][2]
    assert found[0] == found[1]


def test_only_some_refused_newcomers_get_a_picture(
    folder: Path, more: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append, "MAX_THUMBNAILS", 3)
    copied(folder, more)
    pictures = [row["thumbnail"] for row in inspect.quarantined(grow(more, out)[0])]
    assert len(pictures) > 3
    assert sum(picture is not None for picture in pictures) == 3
