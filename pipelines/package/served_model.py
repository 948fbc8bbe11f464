"""The model that MLflow serves: encoded images or pixels in, class names and probabilities out.

This file, with everything of ours that it imports, is what `bundle.py` joins into the package's one Python file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.pyfunc import PythonModel
from torch import nn

from pipelines.image.header import RefusedImage
from pipelines.image.preprocess import Preprocess, prepare_pixels, prepare_raw
from pipelines.image.resize import apply_geometry
from pipelines.package.predictor import Predictor, labels_above, top_classes
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import load_strict, unpack_weights

SERVED_BATCH = 64


@dataclass(frozen=True)
class ServedPackage:
    """A network and its description, as they lie in the package."""

    network: nn.Module
    description: dict[str, Any]


class ServedModel(PythonModel):  # type: ignore[misc]  # mlflow has no complete types
    """Answers a table with one column `image` whose cells are encoded files (bytes) or uint8 (H, W, 3) RGB pixels."""

    def load_context(self, context: Any) -> None:
        """Build the network from the package's artifacts; no pickle is read.

        Raises:
            ValueError: the weights are not those that the description names.
        """
        paths = {Path(path).name: Path(path) for path in context.artifacts.values()}
        description = json.loads(paths["model.json"].read_text(encoding="utf-8"))
        weights = paths["weights.safetensors"].read_bytes()
        found = hashlib.sha256(weights).hexdigest()
        if found != description["weights_sha256"]:
            raise ValueError(f"the weights have the hash {found}; model.json names {description['weights_sha256']}")
        network = ResNet(ModelSpec.from_json(description["spec"]))
        load_strict(network, unpack_weights(weights))
        self._preprocess = Preprocess.from_json(description["preprocess"])
        self._predictor = Predictor(ServedPackage(network, description))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row per image: `names` and `probabilities` of the `top_k` best classes, best first.

        An image that cannot be decoded has empty lists, and its reason in the column `reason` (else null). Where images
        have any number of labels, a column `labels` lists the classes whose probability is the package's threshold.

        Raises:
            ValueError: a cell is neither bytes nor uint8 pixels, or `top_k` is below 1.
        """
        top_k = int((params or {}).get("top_k", 5))
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be 1 or more")
        cells = list(pd.DataFrame(model_input)["image"])
        rows: list[dict[str, Any]] = []
        for start in range(0, len(cells), SERVED_BATCH):
            rows.extend(self._answer(cells[start : start + SERVED_BATCH], top_k))
        columns = ["names", "probabilities", "reason"]
        return pd.DataFrame(rows, columns=columns if self._predictor.threshold is None else [*columns, "labels"])

    def _answer(self, cells: list[Any], top_k: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"names": [], "probabilities": [], "reason": None, "labels": []} for _ in cells]
        by_shape: dict[tuple[int, ...], list[tuple[int, npt.NDArray[np.uint8]]]] = {}
        for index, cell in enumerate(cells):
            try:
                pixels = self._prepare(cell)
            except RefusedImage as refused:
                rows[index]["reason"] = f"{refused.reason}: {refused.message}"
            else:
                by_shape.setdefault(pixels.shape, []).append((index, pixels))
        for members in by_shape.values():  # one shape, unless the evaluation geometry leaves sizes as they are
            probabilities = self._predictor.predict(np.stack([pixels for _, pixels in members]))
            best = top_classes(probabilities, top_k)
            for (index, _), row, chosen in zip(members, probabilities, best, strict=True):
                rows[index]["names"] = [self._predictor.classes[number] for number in chosen]
                rows[index]["probabilities"] = [float(row[number]) for number in chosen]
                if self._predictor.threshold is not None:
                    rows[index]["labels"] = labels_above(row, self._predictor.classes, self._predictor.threshold)
        return rows

    def _prepare(self, cell: Any) -> npt.NDArray[np.uint8]:
        """Return the network's input for one cell."""
        if isinstance(cell, (bytes, bytearray, memoryview)):
            return prepare_raw(bytes(cell), self._preprocess)
        if isinstance(cell, np.ndarray) and cell.dtype == np.uint8 and cell.ndim == 3 and cell.shape[2] == 3:
            stored = apply_geometry(cell, self._preprocess.stored, self._preprocess.background)
            return prepare_pixels(stored, self._preprocess)
        kind = f"{cell.dtype} array of shape {cell.shape}" if isinstance(cell, np.ndarray) else type(cell).__name__
        raise ValueError(f"a cell of `image` holds a {kind}; give the bytes of a file or uint8 (H, W, 3) RGB pixels")
