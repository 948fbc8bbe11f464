"""A unit's rows may come to several shards a split; nothing behind the writer sees how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset import collect, inspect
from pipelines.dataset import writer as writer_module
from pipelines.dataset.catalog import list_versions
from pipelines.dataset.order import EpochOrder
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources.base import Member, Unit
from pipelines.storage import Storage
from tests import factories


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    add(tmp_path / "photos", range(60))
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MAX_GROUP_ROWS", 3)


def add(folder: Path, numbers: Sequence[int]) -> None:
    for number in numbers:
        path = folder / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(factories.make_png(number, 20, 20))


def ingest(source: Path, out: Path, **more: Any) -> Dataset:
    config = IngestConfig(source=str(source), out=str(out), **more)
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(out))
    assert list(inspect.verify(dataset)) == []
    return dataset


def content(dataset: Dataset) -> dict[str, Any]:
    """Return all that must not depend on where parts end."""
    trained = EpochOrder([group.num_rows for group in dataset.row_groups("train")], seed=1, epoch=2, global_batch=8)
    return {
        "fingerprint": dataset.fingerprint,
        "rows": {split: dataset.table(split).to_pylist() for split in dataset.splits},
        "order": [[lane.tolist() for lane in trained.batch(t)] for t in range(trained.num_batches)],
        "labels": {name: part["labels"] for name, part in dataset.catalog["splits"].items()},
        "counts": dataset.catalog["counts"],
    }


def parts(dataset: Dataset) -> int:
    """Return the most shards that a unit has in one split."""
    names = [(file.split, file.unit, file.path.split("/")[1]) for file in dataset.shards()]
    assert len({file.path for file in dataset.shards()}) == len(names)
    return max(map(names.count, names))


def relabelled(dataset: Dataset) -> Dataset:
    """Return the dataset after a patch on every fifth row, and its compaction."""
    ids = [row["image_id"] for row in dataset.table("train", ["image_id"]).to_pylist()][::5]
    publish_patch(dataset.uri, [Change(image_id, "label", "c", "test") for image_id in ids])
    assert collect.compact(dataset.uri) is not None
    dataset = open_dataset(dataset.uri)
    assert list(inspect.verify(dataset)) == []
    return dataset


@pytest.mark.parametrize("leaks", [False, True])
def test_parts_change_neither_rows_nor_fingerprint_nor_order(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaks: bool
) -> None:
    if leaks:  # the same picture many times over: some of its copies are dropped, and their shards written anew
        for number in range(12):
            (photos / "a" / f"same-{number}.png").write_bytes(factories.make_png(999, 20, 20))
    limits = {"whole": 64 << 20, "parts": 1}
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in limits}
    for name, limit in limits.items():
        monkeypatch.setattr(writer_module, "MAX_SHARD_BYTES", limit)
        first = ingest(photos, tmp_path / name)
        assert (parts(first) > 3) == (name == "parts")
        assert bool(first.catalog["duplicates"]["dropped"]) == leaks
        steps[name].append(content(first))
    add(photos, range(100, 140))
    for name, limit in limits.items():
        monkeypatch.setattr(writer_module, "MAX_SHARD_BYTES", limit)
        appended = ingest(photos, tmp_path / name, append=True)
        assert appended.version == 2
        assert appended.num_rows("train") > len(steps[name][0]["rows"]["train"])
        steps[name] += [content(appended), content(relabelled(appended))]
    if leaks:  # a shard that loses rows gets new row groups, each within its shard, and with them another order
        for found in [*steps["whole"], *steps["parts"]]:
            del found["order"]
    assert steps["whole"] == steps["parts"]


def test_an_attempt_that_is_killed_leaves_invisible_parts_only(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_SHARD_BYTES", 1)

    def cut(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        whole = job.source.open

        def broken(unit: Unit) -> Iterator[Member]:
            yield from list(whole(unit))[:-1]
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(job.source, "open", broken)
            yield ingest_unit(units[0], job)

    with pytest.raises(KeyboardInterrupt):
        stage.run(IngestConfig(source=str(photos), out=str(tmp_path / "out")), cut)
    store = Storage.open(str(tmp_path / "out"))
    lost = {file.path for file in store.list("data")}
    assert lost
    assert list_versions(store) == []
    dataset = ingest(photos, tmp_path / "out")
    named = {file.path for file in dataset.shards()}
    assert not lost & named
    collect.gc(store)
    assert {file.path for file in store.list("data") if "/part-" in file.path} == named
    assert content(dataset) == content(ingest(photos, tmp_path / "again"))
