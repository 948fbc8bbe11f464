"""Datasets of a few tiny images, written by the dataset room's writer, and configs that train on them in a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.catalog import publish_version
from pipelines.dataset.content import make_catalog
from pipelines.dataset.receipt import ShardFile
from pipelines.dataset.shards import write_shard_list
from pipelines.dataset.writer import ShardWriter
from pipelines.image.preprocess import Preprocess
from pipelines.storage import Storage
from pipelines.train.config import TrainConfig
from tests.factories import encode

MODEL = {"depths": [1, 1], "channels": [8, 16], "stem": "cifar"}


def make_image(label: int, seed: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise with a bright stripe whose place tells the class; classes are learnt in a few epochs."""
    rng = np.random.default_rng((label, seed))
    pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
    pixels[:, 2 * label : 2 * label + 2, label % 3] += 130
    return pixels


def write_dataset(
    root: Path | str,
    *,
    counts: dict[str, dict[str, int]] | None = None,
    size: int = 8,
    num_units: int = 2,
    odd_size: int = 0,
    labelled: bool = True,
    preprocess: Preprocess | None = None,
) -> str:
    """Write a dataset and return its address; `counts[split][class]` images, the classes learnable."""
    counts = counts or {"train": {"a": 24, "b": 24, "c": 24}, "val": {"a": 7, "b": 7, "c": 7}}
    storage = Storage.open(root)
    names = sorted({name for split in counts.values() for name in split})
    files = []
    for unit in range(num_units):
        writer = ShardWriter(storage, "tiny-0", unit, "once")
        for split, labels in counts.items():
            for name, count in labels.items():
                for index in range(unit, count, num_units):
                    seed = index + 1000 * (split == "val")
                    side = odd_size if odd_size and (split, index) == ("train", 1) else size
                    row = make_row(f"{split}/{name}/{index}", make_image(names.index(name), seed, side))
                    writer.append(split, row | {"label": name if labelled else None})
        files += writer.close().files
    return publish_tiny(storage, files, names, preprocess=preprocess)


def publish_tiny(
    storage: Storage,
    files: Sequence[ShardFile],
    classes: Sequence[str],
    *,
    task: str = "single",
    preprocess: Preprocess | None = None,
) -> str:
    """Publish shards of a run `tiny-0` as a dataset's first version; return its address."""
    catalog = make_catalog(
        stage="ingest",
        key="0" * 32,
        run_id="tiny-0",
        files=files,
        shard_list=write_shard_list(storage, "tiny-0", files),
        sources={"tiny": "0" * 32},
        locations={"tiny": "nowhere"},
        task=task,
        preprocess=(preprocess or Preprocess()).to_json(),
        split={"seed": 0},
        counts={"members": sum(file.rows for file in files)},
        config={},
        classes=list(classes),
    )
    publish_version(storage, "tiny-0", catalog)
    return storage.uri


def make_config(dataset: str, **changes: Any) -> TrainConfig:
    """A small network, two epochs, batches that do not divide the rows, float32."""
    values: dict[str, Any] = {
        "dataset": dataset,
        "model": MODEL,
        "epochs": 2,
        "global_batch_size": 20,
        "precision": "float32",
        "augment": {"shift_px": 1, "flip": False},
        "schedule": {"name": "one_cycle", "warmup_epochs": 0.5},
        "optimizer": {"lr": 0.1},
        "tracking": {"enabled": False},
        "use_gpu": False,
    }
    return TrainConfig.model_validate_json(json.dumps(values | changes))


def make_row(key: str, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    """Return a row of a shard without its label."""
    data = encode(pixels, "PNG")
    digest = hashlib.sha256(data).hexdigest()
    scaled = pixels.astype(np.float64) / 255
    height, width = pixels.shape[:2]
    return {
        "image": {"bytes": data, "path": key},
        "image_id": hashlib.sha256(b"tiny\0" + key.encode() + b"\x000").hexdigest()[:32],
        "source": "tiny",
        "key": key,
        "occurrence": 0,
        "width": width,
        "height": height,
        "source_format": "PNG",
        "source_width": width,
        "source_height": height,
        "source_sha256": digest,
        "stored_sha256": digest,
        "phash": 0,
        "brightness": 0.5,
        "contrast": 0.1,
        "sharpness": 0.5,
        "channel_sum": scaled.sum((0, 1)).tolist(),
        "channel_square_sum": (scaled**2).sum((0, 1)).tolist(),
        "flags": [],
    }
