"""The whole stage in one process, without Ray: counts, duplicates, messages, and every kill between two writes."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset import inspect
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import DataError, InputError
from pipelines.image.header import RefusedImage
from pipelines.ingest import finish, stage, unit
from pipelines.ingest.config import ImageConfig, IngestConfig, SplitConfig
from pipelines.ingest.finish import check_counts
from pipelines.ingest.privacy import Box
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources import units as source_units
from pipelines.sources.base import Unit
from pipelines.sources.resolve import open_source
from pipelines.storage import LocalStorage, Storage
from tests import factories


def in_process(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for one in units:
        yield ingest_unit(one, job)


def ingest(source: Path, out: Path, **settings: Any) -> Dataset:
    result = stage.run(IngestConfig(source=str(source), out=str(out), **settings), in_process)
    dataset = open_dataset(result.out)
    assert dataset.version == result.version
    assert list(inspect.verify(dataset)) == []
    return dataset


def rows(dataset: Dataset) -> dict[str, tuple[str, str | None]]:
    """Return key -> (split, label) of all live rows."""
    found = {}
    for split in dataset.splits:
        for row in dataset.table(split, ["key", "label"]).to_pylist():
            found[row["key"]] = (split, row["label"])
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return factories.write_class_folder(tmp_path / "set", {"cat": 30, "dog": 20, "007": 10, "no": 10})


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_units, "MAX_UNIT_ROWS", 32)


def test_a_folder_becomes_a_dataset(folder: Path, tmp_path: Path) -> None:
    dataset = ingest(folder, tmp_path / "out")
    assert dataset.classes == ["007", "cat", "dog", "no"]
    assert {split: dataset.num_rows(split) for split in dataset.splits} == {"train": 56, "val": 7, "test": 7}
    assert dataset.catalog["counts"] == {"members": 70, "written": 70, "quarantined": 0, "dropped": 0, "ignored": 0}
    assert dataset.catalog["sources"] == {"set": dataset.catalog["key"]}
    assert dataset.catalog["locations"] == {"set": str(folder)}
    assert dataset.preprocess["evaluation"]["size_px"] == 32
    row = dataset.table("train").to_pylist()[0]
    assert row["image"]["bytes"] == (folder / row["key"]).read_bytes()
    assert row["image"]["path"] == row["key"]
    assert (row["width"], row["height"], row["source_format"], row["flags"]) == (32, 32, "JPEG", [])
    assert (tmp_path / "out" / dataset.catalog["sheet"]["samples"]).read_bytes().startswith(b"\xff\xd8")


def test_zip_tar_and_folder_hold_the_same_images(folder: Path, tmp_path: Path) -> None:
    files = sorted((str(path.relative_to(folder)), path.read_bytes()) for path in folder.rglob("*.jpg"))
    (tmp_path / "x.zip").write_bytes(factories.make_zip(files))
    (tmp_path / "x.tar").write_bytes(factories.make_tar(files))
    datasets = [
        ingest(path, tmp_path / f"out{i}", source_name="same")
        for i, path in enumerate([folder, tmp_path / "x.zip", tmp_path / "x.tar"])
    ]
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    assert rows(datasets[0]) == rows(datasets[1]) == rows(datasets[2])


def test_same_again_is_skipped_without_heavy_imports(folder: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    ingest(folder, tmp_path / "out")
    program = (
        "import sys\n"
        "from pipelines.ingest.config import IngestConfig\n"
        "from pipelines.ingest import stage\n"
        f"result = stage.run(IngestConfig(source={str(folder)!r}, out={str(tmp_path / 'out')!r}))\n"
        "assert result.skipped\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'pyarrow', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


def test_unreadable_images_are_quarantined_with_reasons(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "empty.jpg").write_bytes(b"")
    (folder / "cat" / "page.jpg").write_bytes(b"<html>404</html>")
    (folder / "dog" / "cut.jpg").write_bytes(factories.make_jpeg(5)[:900])
    dataset = ingest(folder, tmp_path / "out")
    refused = {row["key"]: row for row in inspect.quarantined(dataset)}
    assert {key: row["reason"] for key, row in refused.items()} == {
        "cat/empty.jpg": "EMPTY",
        "cat/page.jpg": "NOT_IMAGE",
        "dog/cut.jpg": "TRUNCATED",
    }
    assert refused["cat/page.jpg"]["message"] == "the first bytes are of no image format"
    assert refused["cat/page.jpg"]["size_bytes"] == 16
    assert len(refused["cat/page.jpg"]["bytes_sha256"]) == 64
    assert refused["dog/cut.jpg"]["label"] == "dog"
    counts = dataset.catalog["counts"]
    assert (counts["members"], counts["written"], counts["quarantined"]) == (73, 70, 3)
    assert counts["quarantined.TRUNCATED"] == 1


def test_every_bad_input_ends_as_stated(tmp_path: Path) -> None:
    cases = factories.image_cases()
    source = tmp_path / "set" / "mixed"
    source.mkdir(parents=True)
    for case in cases:
        (source / case.name).write_bytes(case.data)
    dataset = ingest(tmp_path / "set", tmp_path / "out", max_quarantined_fraction=0.9)
    found = {f"mixed/{case.name}": case.reason for case in cases if case.reason}
    # an SVG keeps its name, and the source takes every name: all cases are members
    assert {row["key"]: row["reason"] for row in inspect.quarantined(dataset)} == found
    assert len(rows(dataset)) == len(cases) - len(found) - dataset.catalog["counts"]["dropped"]


def test_too_many_bad_images_stop_the_ingest(folder: Path, tmp_path: Path) -> None:
    for i in range(10):
        (folder / "cat" / f"bad{i}.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        ingest(folder, tmp_path / "out")
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "DataError: 10 of 80 images cannot be used (NOT_IMAGE 10); 10.0% are allowed" in message
    assert "cat/bad" in message
    assert "max_quarantined_fraction=0.5" in message
    # the units stand: with a wider budget only the publishing is left to do
    dataset = ingest(folder, tmp_path / "out", max_quarantined_fraction=0.2)
    assert dataset.catalog["counts"]["quarantined"] == 10


def test_a_spent_budget_stops_early(folder: Path, tmp_path: Path, small_units: None) -> None:
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"text")
    done: list[int] = []

    def counting(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        for one in units:
            done.append(one.index)
            yield ingest_unit(one, job)

    with pytest.raises(DataError, match=r"32 of 70 images cannot be used \(NOT_IMAGE 32\)"):
        stage.run(IngestConfig(source=str(folder), out=str(tmp_path / "out")), counting)
    assert done == [0]


def test_not_one_readable_image(tmp_path: Path) -> None:
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "1.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match="1 of 1 images cannot be used"):
        ingest(tmp_path / "set", tmp_path / "out", max_quarantined_fraction=1.0)


def test_copies_across_splits_are_dropped_as_leaks(folder: Path, tmp_path: Path, small_units: None) -> None:
    plan = rows(ingest(folder, tmp_path / "before"))
    in_train = [key for key, (split, label) in plan.items() if split == "train" and label == "cat"]
    for i, key in enumerate(in_train[:12]):
        shutil.copy(folder / key, folder / "cat" / f"copy{i:02d}.jpg")
    dataset = ingest(folder, tmp_path / "out")
    after = rows(dataset)
    duplicates = dataset.catalog["duplicates"]
    dropped = [leak["dropped"] for leak in duplicates["leaks"]]
    assert duplicates["leaks_dropped"] == len(dropped) == dataset.catalog["counts"]["dropped"] > 0
    assert not set(dropped) & set(after)
    assert len(after) == 82 - len(dropped)
    for leak in duplicates["leaks"]:
        assert after[leak["kept"]][0] == leak["in"] != leak["from"]
        assert ("test", "val", "train").index(leak["in"]) < ("test", "val", "train").index(leak["from"])
    hashes: dict[str, set[str]] = {}
    for split in dataset.splits:
        for row in dataset.table(split, ["source_sha256"]).to_pylist():
            hashes.setdefault(row["source_sha256"], set()).add(split)
    assert all(len(splits) == 1 for splits in hashes.values())
    assert dataset.catalog["patches"] == []  # a first ingest writes touched shards anew
    assert dataset.files("train")


def test_large_shards_get_a_patch_instead(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in list((folder / "cat").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    rewritten = ingest(folder, tmp_path / "out")
    monkeypatch.setattr(finish, "MAX_REWRITE_BYTES", 0)
    patched = ingest(folder, tmp_path / "patched")
    assert patched.catalog["patches"][0]["rows"] == patched.catalog["counts"]["dropped"] > 0
    assert patched.fingerprint == rewritten.fingerprint
    assert rows(patched) == rows(rewritten)


def test_labels_that_contradict_are_reported(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "cat" / "0000.jpg", folder / "dog" / "twin.jpg")
    dataset = ingest(folder, tmp_path / "out")
    (group,) = dataset.catalog["duplicates"]["conflicts"]
    assert {copy["label"] for copy in group} == {"cat", "dog"}
    assert "1 picture stands under different labels" in dataset.catalog["warnings"]


def test_a_class_with_one_image_warns(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    factories.write_class_folder(folder, {"rare": 1}, seed=9)
    dataset = ingest(folder, tmp_path / "out")
    assert rows(dataset)["rare/0000.jpg"] == ("train", "rare")
    warning = "1 class has one image only (rare): it can be learned from but not measured"
    assert dataset.catalog["warnings"] == [warning]
    assert warning in caplog.messages


def test_one_stray_image_undoes_the_sources_own_splits_and_is_named(tmp_path: Path) -> None:
    for split, number in (("train", 20), ("test", 10)):
        factories.write_class_folder(tmp_path / "set" / split, {"cat": number, "dog": number}, seed=number)
    kept = ingest(tmp_path / "set", tmp_path / "kept")
    assert kept.catalog["split"]["by"] == "given"
    assert kept.catalog["warnings"] == []
    factories.write_class_folder(tmp_path / "set", {"fox": 2}, seed=5)
    divided = ingest(tmp_path / "set", tmp_path / "divided")
    assert divided.catalog["split"]["by"] == "stratified"
    (warning,) = divided.catalog["warnings"]
    assert warning.startswith(
        "the source has folders of splits, and fox/0000.jpg lies in none of them: the images were"
    )


def test_flat_archives_have_no_labels(tmp_path: Path) -> None:
    files = [(f"{i}.JPEG", factories.make_jpeg(i, 80, 60)) for i in range(30)]
    (tmp_path / "x.tar").write_bytes(factories.make_tar(files))
    dataset = ingest(tmp_path / "x.tar", tmp_path / "out")
    assert dataset.classes == []
    assert (
        "30 images have no label: they are in no class folder, and no table was given (labels=)"
        in dataset.catalog["warnings"]
    )
    assert dataset.preprocess["evaluation"]["size_px"] == 224


def test_out_that_holds_something_else(folder: Path, tmp_path: Path) -> None:
    ingest(folder, tmp_path / "out")
    with pytest.raises(
        InputError, match=r"a dataset of set made with other settings: split\.train=0\.8, split\.test=0"
    ):
        ingest(folder, tmp_path / "out", split=SplitConfig(test=0.2))
    with pytest.raises(InputError, match="holds a dataset of set, not of other"):
        ingest(folder, tmp_path / "out", source_name="other")
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds something else \(for example thesis.txt\)"):
        ingest(folder, tmp_path / "busy")


def test_broken_archives_are_refused_unless_allowed(tmp_path: Path) -> None:
    files = [(f"cat/{i}.jpg", factories.make_jpeg(i, 32, 32)) for i in range(30)]
    (tmp_path / "x.tar").write_bytes(factories.make_tar(files)[:20_000])
    with pytest.raises(InputError) as caught:
        ingest(tmp_path / "x.tar", tmp_path / "out")
    assert "x.tar is damaged: the archive ends inside this member" in str(caught.value)
    assert "allow_broken_archive=true" in str(caught.value)
    assert not (tmp_path / "out").exists()
    dataset = ingest(tmp_path / "x.tar", tmp_path / "out", allow_broken_archive=True)
    assert dataset.catalog["counts"]["quarantined.ARCHIVE_TRUNCATED"] == 1


def test_counts_law() -> None:
    good = {"members": 10, "written": 7, "quarantined": 2, "dropped": 1}
    check_counts(good, 7)
    with pytest.raises(DataError, match="10 members were listed, and 6 written"):
        check_counts({**good, "written": 6}, 6)
    with pytest.raises(DataError, match="with 8 live rows"):
        check_counts(good, 8)


def test_settings_of_images_reach_the_rows(folder: Path, tmp_path: Path) -> None:
    dataset = ingest(folder, tmp_path / "out", image=ImageConfig(size_px=16, evaluation_size_px=12))
    row = dataset.table("train", ["width", "height", "source_width", "image"]).to_pylist()[0]
    assert (row["width"], row["height"], row["source_width"]) == (16, 16, 32)
    assert row["image"]["bytes"].startswith(b"\x89PNG")
    assert dataset.preprocess["stored"]["size_px"] == 16
    assert dataset.preprocess["evaluation"]["size_px"] == 12


def test_a_unit_that_kills_twice_is_tried_image_by_image(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    (whole,) = source.units()
    plan = stage.make_plan(IngestConfig(source=str(folder)), source)
    from pipelines.ingest.split import make_split_plan

    job = IngestJob(
        source, str(tmp_path / "out"), f"{plan.key}-0", ImageConfig(), make_split_plan(whole.entries, SplitConfig())
    )
    tried: list[bytes] = []

    def alone(data: bytes, regions: tuple[Box, ...]) -> RefusedImage | None:
        tried.append(data)
        return RefusedImage("KILLED_WORKER", "it died") if len(tried) == 3 else None

    for _ in range(unit.KILLS_BEFORE_CARE):
        with pytest.raises(KeyboardInterrupt), _killed_when_closing():
            ingest_unit(whole, job, alone)
    assert tried == []
    receipt = ingest_unit(whole, job, alone)
    assert len(tried) == 70
    assert receipt["counts"] == {"written": 69, "quarantined": 1, "quarantined.KILLED_WORKER": 1}


@contextlib.contextmanager
def _killed_when_closing() -> Iterator[None]:
    def die(self: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit.ShardWriter, "close", die)
        yield


class Killed(BaseException):
    """Stands for kill -9 at one write: nothing after it happens."""


class Switch:
    """Counts writes and kills at the n-th, before it takes place; that is also after the one before."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.number, self.kill_at = 0, 0
        patch.setattr(LocalStorage, "put_all", Storage.put_all)  # threads would make their order a matter of luck
        for name in ("put", "create", "delete"):
            patch.setattr(LocalStorage, name, self._wrap(getattr(LocalStorage, name)))

    def _wrap(self, method: Any) -> Any:
        def write(storage: LocalStorage, *args: Any, **options: Any) -> None:
            for call in [(path,) for path in args] if method.__name__ == "delete" else [args]:
                self.number += 1
                if self.number == self.kill_at:
                    raise Killed
                method(storage, *call, **options)

        return write


def test_killed_at_any_write_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_units, "MAX_UNIT_ROWS", 24)
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 16, "dog": 14})
    (folder / "cat" / "bad.jpg").write_bytes(b"text")
    for i in range(12):
        shutil.copy(folder / "dog" / f"{i:04d}.jpg", folder / "dog" / f"copy{i:02d}.jpg")
    golden = ingest(folder, tmp_path / "golden")
    assert golden.catalog["counts"]["dropped"] > 0
    switch = Switch(monkeypatch)
    ingest(folder, tmp_path / "counted")
    writes = switch.number
    assert writes > 15
    for kill_at in range(1, writes + 1):
        out = tmp_path / str(kill_at)
        config = IngestConfig(source=str(folder), out=str(out))
        switch.number, switch.kill_at = 0, kill_at
        with pytest.raises(Killed):
            stage.run(config, in_process)
        switch.kill_at = 0
        dataset = open_dataset(stage.run(config, in_process).out)
        assert dataset.fingerprint == golden.fingerprint, f"killed at write {kill_at}"
        assert rows(dataset) == rows(golden)
        assert dataset.catalog["counts"] == golden.catalog["counts"]
        assert dataset.version == 1
        assert Counter(row["reason"] for row in inspect.quarantined(dataset)) == {"NOT_IMAGE": 1}


def test_a_second_attempt_never_counts_twice(folder: Path, tmp_path: Path) -> None:
    def twice(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        for one in units:
            first, second = ingest_unit(one, job), ingest_unit(one, job)
            assert first == second  # the loser goes on with the winner's receipt
            yield second

    config = IngestConfig(source=str(folder), out=str(tmp_path / "out"))
    dataset = open_dataset(stage.run(config, twice).out)
    assert dataset.catalog["rows"] == 70
    shards = [path for path in (tmp_path / "out" / "data").rglob("part-*.parquet")]
    assert len(shards) == 3  # the loser's files are gone after publishing


def test_an_output_inside_the_source_is_refused(folder: Path) -> None:
    with pytest.raises(InputError) as raised:
        ingest(folder, folder / "runs" / "x")
    assert "lies inside the source" in str(raised.value)
    assert "choose an --out outside" in raised.value.mend


@pytest.mark.parametrize(
    ("pattern", "out", "is_refused"),
    [
        ("2024-*", "2024-ds", True),
        ("2024-*", "2024-a/ds", True),
        ("2024-*", "datasets/2024-ds", False),
        ("*/*", "datasets", True),
        ("**/*.jpg", "datasets", True),
        ("*/cat", "datasets", False),
        ("*", ".", True),
    ],
)
def test_an_output_that_the_sources_pattern_takes_is_refused(
    tmp_path: Path, pattern: str, out: str, is_refused: bool
) -> None:
    photos = tmp_path / "photos"
    factories.write_class_folder(photos / "2024-a", {"cat": 3, "dog": 3})
    with pytest.raises(InputError, match="the output") if is_refused else contextlib.nullcontext():
        dataset = ingest(photos / pattern, photos / out)
        assert dataset.catalog["rows"] == (3 if pattern == "*/cat" else 6)


def test_a_driver_that_is_overtaken_ends_with_what_the_other_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 16, "dog": 14})
    for i in range(12):
        shutil.copy(folder / "dog" / f"{i:04d}.jpg", folder / "dog" / f"copy{i:02d}.jpg")  # leaks: shards are rewritten
    config = IngestConfig(source=str(folder), out=str(tmp_path / "out"))
    slow, fast = finish.find_duplicates, []

    def overtaken(*args: Any) -> Any:
        if not fast:
            fast.append(None)
            fast[0] = stage.run(config, in_process)
        return slow(*args)

    monkeypatch.setattr(finish, "find_duplicates", overtaken)
    late = stage.run(config, in_process)
    assert late.skipped
    assert late.version == fast[0].version == 1
    assert late.figures["fingerprint"] == fast[0].figures["fingerprint"]
