"""Packages to start a training from, written in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipelines.image.preprocess import Preprocess
from pipelines.package.describe import PackageDescription, write_package
from pipelines.storage import Storage
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec

SPEC = ModelSpec(stem="cifar", depths=(1, 1), channels=(8, 16), num_classes=3)
CLASSES = ("a", "b", "c")


def write_start(
    folder: Path,
    spec: ModelSpec = SPEC,
    classes: tuple[str, ...] = CLASSES,
    *,
    network: ResNet | None = None,
    origin: dict[str, Any] | None = None,
) -> str:
    """Write a package whose weights and norm statistics are all unlike a fresh network's; return its address."""
    network = network or build(spec, seed=11)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.01)
    description = PackageDescription(
        spec, classes, Preprocess().to_json(), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), origin=origin or {}
    )
    write_package(Storage.open(folder), "", network.state_dict(), description)
    return str(folder)
