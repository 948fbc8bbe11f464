"""Tiny striped images, a network that reads the stripes, and packages; for evaluation and registry tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.evaluate.config import EvaluateConfig
from pipelines.image.preprocess import Preprocess
from pipelines.package.describe import PackageDescription, write_package
from pipelines.stage_output import publish_catalog
from pipelines.storage import Storage
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from tests.unit.train.tiny import write_dataset

CLASSES = ("a", "b", "c")
COUNTS = {"train": {"a": 6, "b": 6, "c": 6}, "val": {"a": 3, "b": 3, "c": 3}, "test": {"a": 11, "b": 9, "c": 7}}
SPEC = ModelSpec(stem="cifar", depths=(1,), channels=(8,), num_classes=3)


def make_dataset(root: Path, **changes: Any) -> Dataset:
    """Write and open a dataset of 27 test rows."""
    return open_dataset(write_dataset(root, **{"counts": COUNTS, **changes}))


def make_world(root: Path) -> Path:
    """Write a dataset `data` and a training `train` that fits it."""
    make_dataset(root / "data")
    make_training(root / "train")
    return root


def config(world: Path, **changes: Any) -> EvaluateConfig:
    """Return the config of an evaluation in such a world, untracked."""
    values = {"model": str(world / "train"), "dataset": str(world / "data"), "tracking": {"enabled": False}}
    return EvaluateConfig.model_validate(values | changes)


def read_stripes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return probabilities by the brightness of the columns that each class lights up: nearly always right."""
    columns = [pixels[:, :, 2 * label : 2 * label + 2, label % 3].mean(axis=(1, 2)) for label in range(3)]
    logits = np.stack(columns, axis=1) / 10
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def description(classes: tuple[str, ...] = CLASSES, preprocess: Preprocess | None = None) -> dict[str, Any]:
    """Return what evaluation reads of a `model.json`."""
    return {"classes": list(classes), "preprocess": (preprocess or Preprocess()).to_json()}


def make_training(
    root: Path, *, seed: int = 0, classes: tuple[str, ...] = CLASSES, val_top1: float = 0.5, **catalog: Any
) -> Path:
    """Write what a finished training leaves, with random weights: a package and a catalog; return its folder."""
    spec = ModelSpec(stem="cifar", depths=(1,), channels=(8,), num_classes=len(classes))
    values = PackageDescription(
        spec,
        classes,
        Preprocess().to_json(),
        (0.4, 0.4, 0.4),
        (0.3, 0.3, 0.3),
        dataset={"uri": "tiny", "version": 1, "fingerprint": "f" * 64},
        metrics={"val_top1": val_top1},
        train_key=f"{seed:032x}",
    )
    storage = Storage.open(root)
    written = write_package(storage, "model", build(spec, seed=seed).state_dict(), values)
    publish_catalog(
        storage,
        {
            "stage": "train",
            "key": f"{seed:032x}",
            "model": {"path": "model", "weights_sha256": written["weights_sha256"]},
            "best": {"epoch": 1, "val_top1": val_top1},
            "mlflow_run_id": "",
            **catalog,
        },
    )
    return root


def read_json(path: Path) -> Any:
    """Return the JSON in a file."""
    return json.loads(path.read_text(encoding="utf-8"))
