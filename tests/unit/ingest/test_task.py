"""Task types: lists of labels reach the rows and everything that reads them; so do images without any."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.load import load_config
from pipelines.dataset import inspect
from pipelines.dataset.compare import difference, label_shift
from pipelines.dataset.corrections import read_relabels
from pipelines.dataset.duplicates import find_alike
from pipelines.dataset.export import export
from pipelines.dataset.label_text import label_text, names_in
from pipelines.dataset.patch import publish_patch
from pipelines.dataset.profile import make_profile
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import ConfigError, InputError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.plan import plan
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources.base import Unit
from pipelines.storage import Storage
from pipelines.train.config import TrainConfig
from pipelines.train.plan import plan as train_plan
from tests import factories

LABELS: list[list[str] | None] = [["sea"], ["sea", "sky"], ["sky", "sea"], [], None, ["town"]]
"""Of picture n, the n-th modulo their number."""
WANTED = [["sea"], ["sea", "sky"], ["sea", "sky"], [], None, ["town"]]


def in_process(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for unit in units:
        yield ingest_unit(unit, job)


def config_of(source: Path, out: Path, **values: Any) -> IngestConfig:
    return load_config(IngestConfig, inputs={"source": str(source), "out": str(out), **values})


def ingest(source: Path, out: Path, **values: Any) -> Dataset:
    dataset = open_dataset(stage.run(config_of(source, out, **values), in_process).out)
    assert list(inspect.verify(dataset)) == []
    return dataset


def labels_of(dataset: Dataset) -> dict[str, Any]:
    return {
        row["key"]: row["label"]
        for split in dataset.splits
        for row in dataset.table(split, ["key", "label"]).to_pylist()
    }


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(36):
        (folder / f"{number:02d}.jpg").write_bytes(factories.make_jpeg(number, 32, 32))
    return folder


@pytest.fixture
def multi(flat: Path, tmp_path: Path) -> Dataset:
    table = tmp_path / "labels.jsonl"
    rows = [{"key": f"{n:02d}.jpg", "labels": LABELS[n % len(LABELS)], "site": "x"} for n in range(36)]
    table.write_text("\n".join(map(json.dumps, rows)))
    return ingest(flat, tmp_path / "multi", labels=str(table))


def expected() -> dict[str, Any]:
    return {f"{n:02d}.jpg": WANTED[n % len(WANTED)] for n in range(36)}


def test_lists_in_a_table_make_a_multi_label_dataset(multi: Dataset) -> None:
    assert multi.task == "multi"
    assert labels_of(multi) == expected()
    assert multi.classes == ["sea", "sky", "town"]
    assert multi.catalog["split"]["by"] == "hash"
    parts = multi.catalog["splits"].values()
    assert sum(part["unlabelled"] for part in parts) == 6
    assert {name: sum(part["labels"].get(name, 0) for part in parts) for name in multi.classes} == {
        "sea": 18,
        "sky": 12,
        "town": 6,
    }
    schema = pq.read_schema(multi.files("train")[0])
    assert schema.field("label").type == pa.list_(pa.string())


def test_what_reads_a_dataset_reads_lists(multi: Dataset, tmp_path: Path) -> None:
    facts = inspect.show(multi.uri, samples=3)
    assert (facts["task"], facts["classes"]) == ("multi", ["sea", "sky", "town"])
    assert facts["splits"]["train"]["labels"]["sea"] > 0
    assert {label for sample in json.loads(_sheet(multi))["samples"] for label in [sample["label"]]} >= {"sea", "sky"}
    assert make_profile(multi).formats == {"JPEG": 36}
    assert find_alike(multi).counts()["images"] == 36
    export(multi, Storage.open(tmp_path / "plain"))
    with open(tmp_path / "plain" / "images.csv") as file:
        lines = {row["key"]: row["label"] for row in csv.DictReader(file)}
    assert (lines["01.jpg"], lines["03.jpg"], lines["04.jpg"]) == ('["sea", "sky"]', "[]", "")


def test_an_exported_folder_is_ingested_again(multi: Dataset, tmp_path: Path) -> None:
    export(multi, Storage.open(tmp_path / "plain"))
    table = str(tmp_path / "plain" / "labels.jsonl")
    again = ingest(tmp_path / "plain", tmp_path / "again", labels=table, split={"val": 0.0})
    assert _by_bytes(again) == _by_bytes(multi)


def _by_bytes(dataset: Dataset) -> dict[str, tuple[str, Any]]:
    return {
        row["stored_sha256"]: (split, row["label"])
        for split in dataset.splits
        for row in dataset.table(split, ["stored_sha256", "label"]).to_pylist()
    }


def _sheet(dataset: Dataset) -> bytes:
    return dataset.storage.read(dataset.catalog["sheet"]["numbers"])


def test_rows_of_lists_are_relabelled(multi: Dataset, tmp_path: Path) -> None:
    table = tmp_path / "corrections.csv"
    table.write_text("key,label,old_label\n00.jpg,town|sea,sea\n01.jpg,,\n02.jpg,forest,sky|sea\n")
    assert publish_patch(multi.uri, read_relabels(multi, str(table))) == 2
    dataset = open_dataset(multi.uri)
    assert labels_of(dataset) == expected() | {"00.jpg": ["sea", "town"], "01.jpg": None, "02.jpg": ["forest"]}
    assert dataset.classes == ["sea", "sky", "town", "forest"]
    assert list(inspect.verify(dataset)) == []
    found = difference(multi.ref, dataset.ref)
    assert found.counts()["relabelled"] == 3
    assert ("['sea']", "['sea', 'town']", 1) in label_shift(found)


@pytest.mark.parametrize(
    ("column", "mark", "settings"),
    [
        ("labels", "|", {}),
        ("label", ";", {"label_separator": ";"}),
        ("tags", " ", {"label_column": "tags", "label_separator": " "}),
    ],
    ids=["a column labels", "a separator", "a named column"],
)
def test_text_with_a_separator(flat: Path, tmp_path: Path, column: str, mark: str, settings: dict[str, str]) -> None:
    rows = "\n".join(f"{n:02d}.jpg,{mark.join(LABELS[n % 6] or [])}" for n in range(36))
    (tmp_path / "labels.csv").write_text(f"key,{column}\n{rows}\n")
    dataset = ingest(flat, tmp_path / "out", labels=str(tmp_path / "labels.csv"), **settings)
    text_cannot_say_none = {key: label or None for key, label in expected().items()}
    assert labels_of(dataset) == text_cannot_say_none


def test_lists_in_parquet(tmp_path: Path) -> None:
    features = {"info": {"features": {"tags": {"feature": {"names": ["sea", "sky", "town"]}}}}}
    numbers = [None if label is None else [["sea", "sky", "town"].index(name) for name in label] for label in LABELS]
    table = pa.table(
        {
            "image": [factories.make_jpeg(n, 32, 32) for n in range(36)],
            "tags": pa.array([numbers[n % 6] for n in range(36)], pa.list_(pa.int64())),
        }
    ).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "x.parquet")
    dataset = ingest(tmp_path / "x.parquet", tmp_path / "out", label_column="tags")
    assert list(labels_of(dataset).values()).count(["sea", "sky"]) == 12
    assert dataset.classes == ["sea", "sky", "town"]


def test_a_refused_image_keeps_its_labels(flat: Path, tmp_path: Path) -> None:
    (flat / "01.jpg").write_bytes(b"text")
    rows = [{"key": f"{n:02d}.jpg", "labels": ["b", "a"]} for n in range(36)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = ingest(flat, tmp_path / "out", labels=str(tmp_path / "labels.jsonl"))
    assert [row["label"] for row in inspect.quarantined(dataset)] == ["a|b"]


def test_no_name_of_several_holds_what_stands_between_them(flat: Path, tmp_path: Path) -> None:
    keys = sorted(path.name for path in flat.iterdir())
    lines = [json.dumps({"key": key, "labels": ["a|b", "c"]}) for key in keys]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"has a class 'a\|b', and \| stands between the labels of one image"):
        ingest(flat, tmp_path / "out", labels=str(tmp_path / "t.jsonl"))
    assert label_text(()) == ""
    assert names_in("", "multi") == []


def test_a_task_that_is_asked_for(tmp_path: Path, flat: Path) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 6, "dog": 6})
    multi = ingest(folder, tmp_path / "multi", task="multi")
    assert (multi.task, labels_of(multi)["cat/0000.jpg"]) == ("multi", ["cat"])
    none = ingest(folder, tmp_path / "none", task="unlabelled")
    assert (none.task, none.classes, set(labels_of(none).values())) == ("single", [], {None})
    (tmp_path / "labels.jsonl").write_text(json.dumps({"key": "00.jpg", "labels": ["a", "b"]}))
    with pytest.raises(InputError) as caught:
        ingest(flat, tmp_path / "one", labels=str(tmp_path / "labels.jsonl"), task="single")
    assert "has lists of labels, for example ['a', 'b']; a dataset of single labels takes one" in caught.value.what
    (tmp_path / "labels.jsonl").write_text(json.dumps({"key": "00.jpg", "labels": {"a": 1}}))
    with pytest.raises(InputError, match=r"label \{'a': 1\} is no name"):
        ingest(flat, tmp_path / "one", labels=str(tmp_path / "labels.jsonl"))


def test_the_next_commands_are_those_that_work(flat: Path, tmp_path: Path) -> None:
    bare = stage.run(config_of(flat, tmp_path / "bare"), in_process)
    assert bare.next_commands[0] == f"resnet data relabel {bare.out} LABELS.csv"
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 6})
    multi = stage.run(config_of(folder, tmp_path / "multi", task="multi"), in_process)
    assert not [command for command in bare.next_commands if "train" in command]
    assert multi.next_commands[-1] == f"resnet train {multi.out} loss.name=bce"


def test_tasks_leave_earlier_keys_as_they_were(tmp_path: Path) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 2})
    assert plan(config_of(folder, tmp_path)).key == plan(config_of(folder, tmp_path, task="auto")).key
    assert plan(config_of(folder, tmp_path)).key != plan(config_of(folder, tmp_path, task="multi")).key


def test_what_is_appended_has_the_datasets_task(multi: Dataset, tmp_path: Path) -> None:
    folder = factories.write_class_folder(tmp_path / "more", {"cat": 6}, seed=60)
    config = config_of(folder, Path(multi.uri), append=True, labels=_table(tmp_path / "more.csv", folder))
    stage.run(config, in_process)
    dataset = open_dataset(multi.uri)
    assert list(inspect.verify(dataset)) == []
    assert labels_of(dataset)["cat/0000.jpg"] == ["cat"]
    single = ingest(folder, tmp_path / "single")
    rows = [{"key": f"cat/{n:04d}.jpg", "label": ["a", "b"]} for n in range(6)]
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = factories.write_class_folder(tmp_path / "other", {"cat": 6}, seed=90)
    with pytest.raises(InputError, match="has lists of labels"):
        stage.run(config_of(other, Path(single.uri), append=True, labels=str(tmp_path / "lists.jsonl")), in_process)
    with pytest.raises(ConfigError, match='task is "multi", and the dataset has "auto"'):
        stage.run(config_of(other, Path(single.uri), append=True, task="multi"), in_process)


def _table(path: Path, folder: Path) -> str:
    lines = [f"{file.relative_to(folder)},cat,y" for file in sorted(folder.rglob("*.jpg"))]
    path.write_text("\n".join(["key,label,site", *lines]) + "\n")
    return str(path)


def test_training_says_what_labels_it_needs(multi: Dataset, flat: Path, tmp_path: Path) -> None:
    def refusal(dataset: Dataset) -> InputError:
        with pytest.raises(InputError) as caught:
            train_plan(load_config(TrainConfig, inputs={"dataset": dataset.uri}))
        return caught.value

    with pytest.raises(ConfigError, match=r"loss\.name is cross_entropy, and images of .* have any number") as caught:
        train_plan(load_config(TrainConfig, inputs={"dataset": multi.uri}))
    assert caught.value.mend == "loss.name=bce"
    assert train_plan(load_config(TrainConfig, None, ["loss.name=bce"], inputs={"dataset": multi.uri})).task == "multi"
    bare = ingest(flat, tmp_path / "bare")
    error = refusal(bare)
    assert error.what.startswith(f"none of the 36 images of {bare.uri} has a label")
    assert error.mend == f"write a table with the columns key and label: resnet data relabel {bare.uri} TABLE.csv"
    (tmp_path / "table.csv").write_text("key,label\n" + "\n".join(f"{n:02d}.jpg,{'ab'[n % 2]}" for n in range(36)))
    publish_patch(bare.uri, read_relabels(bare, str(tmp_path / "table.csv")))
    assert train_plan(load_config(TrainConfig, inputs={"dataset": bare.uri})).classes == ("a", "b")
