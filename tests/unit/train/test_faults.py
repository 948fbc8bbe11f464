"""Bad input and faults, item by item: each ends, or goes on, in exactly one way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.dataset.collect import purge
from pipelines.dataset.corrections import exclusions
from pipelines.dataset.patch import publish_patch
from pipelines.dataset.reader import open_dataset
from pipelines.errors import ConfigError, DataError, InputError
from pipelines.evaluate.predict import predict_split
from pipelines.evaluate.summary import summarize
from pipelines.storage import Storage
from pipelines.train import stage
from pipelines.train.checkpoint import committed_steps
from pipelines.train.feed import SplitRows
from pipelines.train.loop import fit_local
from pipelines.train.model import write_model
from pipelines.train.records import EpochRecord
from tests.unit.evaluate.small_world import description, read_stripes
from tests.unit.train import tiny
from tests.unit.train.starts import write_start
from tests.unit.train.tiny import make_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def refusal(config: Any, error: type[Exception], run: Path) -> Any:
    with pytest.raises(error) as caught:
        fit_local(config, Storage.open(run), device="cpu")
    return caught.value


def test_one_class_is_refused_before_anything_starts(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", counts={"train": {"a": 9}, "val": {"a": 3}})
    config = make_config(one)
    with pytest.raises(InputError) as caught:
        stage.check(config)
    assert str(caught.value) == (
        "InputError: the dataset has 1 class (a); telling classes apart takes at least two\n"
        "  mend:  ingest images of another class as well"
    )
    assert str(refusal(config, InputError, tmp_path / "run")) == str(caught.value)


def test_a_class_missing_in_train_is_warned_of_and_counts_on_val(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gap = write_dataset(tmp_path / "gap", counts={"train": {"a": 20, "c": 20}, "val": {"a": 5, "b": 10, "c": 5}})
    outcome = fit_local(make_config(gap, epochs=6), Storage.open(tmp_path / "run"), device="cpu")
    assert [record.message for record in caplog.records if "learnt" in record.message] == [
        "1 classes have no row in train and cannot be learnt: b"
    ]
    assert outcome.best.val_score == 0.5  # all of a and c, none of b


def test_weights_of_other_classes_get_a_new_head(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = write_start(tmp_path / "start", classes=("a", "b", "z"))
    caplog.set_level("INFO", logger="pipelines.train")
    config = make_config(dataset, init={"from": start}, epochs=1)
    outcome = fit_local(config, Storage.open(tmp_path / "run"), device="cpu")
    assert f"starting from {start}, head new: 3 classes there, other names here" in caplog.text
    assert outcome.epochs == 1


def test_a_batch_larger_than_the_dataset_is_one_short_batch_of_all_rows(dataset: str, tmp_path: Path) -> None:
    large = fit_local(make_config(dataset, global_batch_size=5000), Storage.open(tmp_path / "a"), device="cpu")
    assert [record.step for record in large.records] == [1, 2]
    assert all(np.isfinite(record.train_loss) for record in large.records)


def test_the_first_difference_to_a_checkpoints_network_is_named(dataset: str, tmp_path: Path) -> None:
    fit_local(make_config(dataset), Storage.open(tmp_path), device="cpu", on_epoch=lambda _: False)
    model = {"depths": [1, 2], "channels": [8, 16], "stem": "cifar"}
    error = refusal(make_config(dataset, model=model), DataError, tmp_path)
    assert error.what == "the checkpoint of step 4 is of network.depths [1, 1], and this run's is [1, 2]"
    assert error.mend == "choose another --out"


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_falls_back_and_the_end_is_the_same(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    config = make_config(dataset, epochs=3)
    whole = fit_local(config, Storage.open(tmp_path / "whole"), device="cpu")
    run = Storage.open(tmp_path / "run")
    fit_local(config, run, device="cpu", on_epoch=lambda record: record.epoch < 2)
    assert committed_steps(run) == [4, 8]
    path = tmp_path / "run" / "checkpoints" / "step-00000008" / "weights.safetensors"
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-7] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    again = fit_local(config, run, device="cpu")
    said = {"cut": f"has {len(data) - 7} bytes, not {len(data)}", "flipped": "the SHA-256 of", "gone": "is missing"}
    assert said[how] in caplog.text
    assert "going back to the one before it" in caplog.text
    assert [record.train_loss for record in again.records] == [record.train_loss for record in whole.records]


def test_sums_that_are_no_numbers_are_told_with_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tiny.make_row

    def damaged(key: str, pixels: Any) -> dict[str, Any]:
        row = real(key, pixels)
        return row | ({"channel_sum": [float("nan"), 1.0, 1.0]} if key == "train/b/3" else {})

    monkeypatch.setattr(tiny, "make_row", damaged)
    data = write_dataset(tmp_path / "data")
    image_id = real("train/b/3", np.zeros((8, 8, 3), np.uint8))["image_id"]
    error = refusal(make_config(data), DataError, tmp_path / "run")
    assert error.what == (
        f"the pixel sums of 1 rows in split 'train' of {data}@v1 are no numbers, first that of image {image_id}"
    )


def test_weights_that_are_no_numbers_are_refused_as_a_start(dataset: str, tmp_path: Path) -> None:
    from resnet_models.resnet import build
    from tests.unit.train.starts import SPEC

    network = build(SPEC, seed=0)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    start = write_start(tmp_path / "start", network=network)
    error = refusal(make_config(dataset, init={"from": start}), InputError, tmp_path / "run")
    assert error.what == "stem.conv.weight holds 216 values that are infinite or not a number, of 216"
    assert committed_steps(Storage.open(tmp_path / "run")) == []


def test_a_gpu_is_asked_for_where_there_is_none(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as on most machines that run this
    monkeypatch.setattr("os.path.exists", lambda path: False)
    with pytest.raises(ConfigError) as caught:
        stage.check(make_config(dataset, use_gpu=True))
    assert caught.value.what == "use_gpu is true and torch can use no GPU here"
    assert caught.value.mend == "set use_gpu=false, or run `resnet doctor` to see what is missing"


def test_a_gpu_that_torch_cannot_use_is_told(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.path.exists", lambda path: path == "/proc/driver/nvidia/version")
    with pytest.raises(ConfigError) as caught:
        stage.check(make_config(dataset, use_gpu=True))
    assert caught.value.what == (
        "use_gpu is true and torch can use no GPU here, although an NVIDIA driver is loaded (driver and torch build do"
        " not match)"
    )


def test_a_dataset_taken_away_while_it_is_read_ends_the_run_and_its_checkpoint_stands(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", num_units=6)
    run = Storage.open(tmp_path / "run")

    def take_away(record: EpochRecord) -> bool:
        shutil.rmtree(tmp_path / "data" / "data")
        return True

    def open_few(*arguments: Any, **how: Any) -> SplitRows:
        return SplitRows(*arguments, **how | {"window_groups": 0})  # as a large split, whose row groups come and go

    config = make_config(data, cache_limit_mb=0, epochs=3)
    with pytest.raises(DataError, match=rf"data/tiny-0/train/part-.* is gone, though {data}@v1 names it") as caught:
        fit_local(config, run, device="cpu", on_epoch=take_away, open_rows=open_few)
    assert f"resnet data verify {data}@v1" in caught.value.mend
    assert committed_steps(run) == [4]


def test_a_dataset_taken_away_once_it_is_in_memory_costs_the_package_until_it_is_back(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    run = Storage.open(tmp_path / "run")

    def take_away(record: EpochRecord) -> bool:
        if record.epoch == 1:
            (tmp_path / "data").rename(tmp_path / "elsewhere")
        return True

    config = make_config(data)
    outcome = fit_local(config, run, device="cpu", on_epoch=take_away)
    assert outcome.epochs == 2
    with pytest.raises(DataError) as caught:
        write_model(config, run, outcome.best)
    assert caught.value.what.startswith("training is done, and its dataset is no longer there: there is no dataset at")
    assert caught.value.where == run.uri
    (tmp_path / "elsewhere").rename(tmp_path / "data")
    assert write_model(config, run, outcome.best)["metrics"]["epoch"] == outcome.best.epoch


def test_a_version_purged_under_a_run_is_named(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    config = make_config(f"{data}@v1")
    run = Storage.open(tmp_path / "run")
    outcome = fit_local(config, run, device="cpu")
    publish_patch(data, exclusions(open_dataset(data), ["train/a/0"], "", "test"))
    purge(Storage.open(data), 1)
    with pytest.raises(DataError, match=r"training is done, and its dataset is no longer there: .*@v1 was purged"):
        write_model(config, run, outcome.best)
    assert json.loads((tmp_path / "run" / "records" / "epoch-000002.json").read_text())["epoch"] == 2


def test_labels_that_the_network_does_not_know_count_as_wrong(tmp_path: Path) -> None:
    counts = {"train": {"a": 2, "b": 2, "c": 2, "d": 2}, "test": {"a": 6, "b": 6, "d": 4}}
    opened = open_dataset(write_dataset(tmp_path, counts=counts))
    answers = predict_split(opened, "test", read_stripes, description(("a", "b", "c")), batch_size=5)
    assert answers.classes == ("a", "b", "c", "d")
    unknown = answers.targets == answers.classes.index("d")
    assert unknown.sum() == 4
    assert (answers.label_probability[unknown] == 0).all()
    assert (answers.ranks[unknown] > 1).all()
    assert summarize(answers, num_bins=5).metrics["correct_rows"] == 12
