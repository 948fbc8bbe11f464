"""Images with any number of labels, from the rows to the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.dataset.reader import open_dataset
from pipelines.errors import ConfigError, InputError
from pipelines.metrics.multilabel import mean_average_precision
from pipelines.package.load import load_package
from pipelines.package.predictor import Predictor
from pipelines.storage import Storage
from pipelines.train.collectives import World
from pipelines.train.config import LossConfig
from pipelines.train.feed import SplitRows
from pipelines.train.loop import fit, fit_local
from pipelines.train.losses import RowLoss, rows_right
from pipelines.train.model import write_model
from pipelines.train.outcome import FitOutcome
from pipelines.train.pictures import draw_pictures
from pipelines.train.plan import plan
from pipelines.train.records import read_records
from pipelines.tune.config import TuneConfig
from pipelines.tune.plan import plan as plan_sweep
from tests.unit.train.labelled_stripes import NAMES, labels_of, make_label_config, write_dataset
from tests.unit.train.worlds import in_threads


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, FitOutcome]:
    run = Storage.open(tmp_path_factory.mktemp("run"))
    return run, fit_local(make_label_config(dataset, epochs=8), run, device="cpu")


def test_rows_of_classes_are_what_the_lists_say(dataset: str) -> None:
    opened = open_dataset(dataset)
    matrix, labelled = opened.class_matrix("val")
    assert matrix.shape == (40, 3)
    assert labelled.all()
    for number, row in enumerate(matrix):
        assert [NAMES[place] for place in np.flatnonzero(row)] == labels_of(number)
    with pytest.raises(InputError, match="has multi labels; a class number needs a single label per image"):
        opened.class_indices("val")


def test_it_learns_and_records_what_makes_sense(trained: tuple[Storage, FitOutcome]) -> None:
    run, outcome = trained
    records = read_records(run, 8)
    assert records == outcome.records
    best = max(records, key=lambda record: (record.val_score, -record.val_loss))
    assert (outcome.best.epoch, outcome.best.val_score) == (best.epoch, best.val_map)
    assert outcome.best.val_score > 0.95
    last = records[-1]
    assert last.train_loss < 0.6 * records[0].train_loss
    assert last.val_macro_f1 is not None
    assert last.val_macro_f1 > 0.8
    text = json.loads(run.read("records/epoch-000008.json"))
    assert {name for name in text if name.startswith("val_") or name.startswith("train_")} == {
        "train_loss", "train_exact", "val_loss", "val_map", "val_macro_f1", "val_micro_f1",
    }  # fmt: skip
    assert "val_top1" not in last.metrics()


def test_the_figures_are_those_of_the_package_on_val(dataset: str, trained: tuple[Storage, FitOutcome]) -> None:
    run, outcome = trained
    written = write_model(make_label_config(dataset, epochs=8), run, outcome.best)
    assert (written["task"], written["threshold"], written["format_version"]) == ("multi", 0.5, 2)
    rows = SplitRows(open_dataset(dataset), "val", limit_bytes=1 << 20, threads=1)
    predictor = Predictor(load_package(f"{run.uri}/model"), device="cpu")
    probabilities = predictor.predict(rows.pixels.take(np.arange(rows.num_rows)))
    assert probabilities.sum(1).max() > 1.5  # each a yes or no of its own, not shares of one
    found = mean_average_precision(probabilities, rows.targets.astype(bool))
    assert found == pytest.approx(written["metrics"]["val_map"], abs=1e-9)
    assert set(written["metrics"]) == {"epoch", "val_map", "val_macro_f1", "val_micro_f1", "val_loss"}


def test_pictures_name_all_labels(dataset: str, trained: tuple[Storage, FitOutcome]) -> None:
    run, outcome = trained
    pictures = draw_pictures(make_label_config(dataset, epochs=8), run, outcome.records)
    assert set(pictures) == {"figures/curves.png", "figures/mosaic.jpg"}


def test_patience_counts_epochs_without_a_better_map(dataset: str, tmp_path: Path) -> None:
    config = make_label_config(
        dataset, epochs=30, patience_epochs=2, optimizer={"lr": 0.5}, schedule={"name": "constant"}
    )
    outcome = fit_local(config, Storage.open(tmp_path), device="cpu")
    assert outcome.epochs < 30
    assert outcome.epochs == outcome.best.epoch + 2


def test_workers_agree_with_one(dataset: str, tmp_path: Path) -> None:
    config = make_label_config(dataset, epochs=2, precision="float64", augment={"mixup_alpha": 0.3, "flip": False})
    alone = fit_local(config, Storage.open(tmp_path / "one"), device="cpu")

    def train(world: World) -> FitOutcome:
        return fit(config, Storage.open(tmp_path / "three"), world=world, device=torch.device("cpu"))

    several = in_threads(3, train)[0]
    for ours, theirs in zip(alone.records, several.records, strict=True):
        assert ours.id_trace == theirs.id_trace
        for name in ("train_loss", "val_loss", "val_map", "val_macro_f1", "val_micro_f1"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-6), name  # summed in float32


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_bce_of_rows_of_classes_is_torchs(smoothing: float) -> None:
    targets = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8)
    loss = RowLoss(
        LossConfig(name="bce"),
        smoothing=smoothing,
        targets=targets,
        num_classes=3,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, -3.0, 4.0]])
    goal = torch.tensor([[1.0, 0, 1], [0, 0, 0]]).double() * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(logits.double(), goal, reduction="none").sum(1)
    assert torch.allclose(loss(logits, torch.from_numpy(targets)), expected)


def test_a_row_is_right_when_all_its_classes_are() -> None:
    logits = torch.tensor([[2.0, -1.0], [2.0, 1.0], [-1.0, -1.0]])
    targets = torch.tensor([[1, 0], [1, 0], [0, 0]], dtype=torch.uint8)
    assert rows_right(logits, targets).tolist() == [True, False, True]
    assert rows_right(logits, torch.tensor([0, 1, 0])).tolist() == [True, False, True]


def test_rows_without_a_list_are_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", unlabelled=4)
    with pytest.raises(InputError, match=r"4 of 96 rows in split 'train' of .* have no label"):
        fit_local(make_label_config(dataset), Storage.open(tmp_path / "run"), device="cpu")


@pytest.mark.parametrize(("changes", "what", "mend"), [
    ({"loss": {"name": "cross_entropy"}}, "loss.name is cross_entropy, and images of {} have any number of labels;"
     " cross_entropy takes exactly one class to be right", "loss.name=bce"),
    ({"loss": {"name": "bce", "class_weights": "balanced"}}, "loss.class_weights is balanced, and images of {} have any"
     " number of labels, so that a row has no class to be weighed by", "loss.class_weights=none"),
    ({"sampling": "balanced"}, "sampling is balanced, and images of {} have any number of labels, so that a row has no"
     " class to be weighed by", "sampling=all"),
])  # fmt: skip
def test_what_has_no_sense_is_refused_before_anything_starts(
    dataset: str, changes: dict[str, Any], what: str, mend: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(make_label_config(dataset, **changes))
    assert (caught.value.what, caught.value.mend) == (what.format(dataset), mend)


def test_a_sweep_over_several_labels_is_refused(dataset: str) -> None:
    config = TuneConfig(train=make_label_config(dataset))
    with pytest.raises(InputError, match="have any number of labels; trials are compared by top-1"):
        plan_sweep(config)
