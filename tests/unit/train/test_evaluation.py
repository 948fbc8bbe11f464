"""Figures on val: the same on any number of workers, so that ties and best epochs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.dataset.reader import open_dataset
from pipelines.train.batch import Batch
from pipelines.train.collectives import World
from pipelines.train.evaluation import evaluate, evaluation_batches
from pipelines.train.feed import SplitRows
from pipelines.train.precision import Precision
from tests.unit.train.tiny import write_dataset
from tests.unit.train.worlds import in_threads


class Brightness(nn.Module):
    """Logits that are each row's own business to the last bit: no kernel's choice by the size of a batch is in them."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 3, 2] * torch.tensor([0.11, 0.07, -0.13])


def test_the_loss_on_val_does_not_depend_on_how_rows_are_shared(tmp_path: Path) -> None:
    counts = {"train": {"a": 2, "b": 2, "c": 2}, "val": {"a": 331, "b": 340, "c": 401}}
    dataset = open_dataset(write_dataset(tmp_path, counts=counts))
    rows = SplitRows(dataset, "val", limit_bytes=1 << 20, threads=1)

    def prepare(batch: Batch) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float()
        return pixels, torch.from_numpy(batch.targets)

    def figures(world: World) -> Any:
        return evaluate(
            Brightness(),
            {},
            rows,
            prepare,
            world=world,
            device=torch.device("cpu"),
            precision=Precision("float32", "cpu"),
        )

    alone = figures(World())
    for size in (2, 3, 7):
        for shared in in_threads(size, figures):
            assert shared == alone
    batch = next(evaluation_batches(rows, World(), rows.num_rows))
    images, targets = prepare(batch)
    expected = torch.nn.functional.cross_entropy(Brightness()(images), targets)
    assert alone["val_loss"] == pytest.approx(float(expected), rel=1e-5)
