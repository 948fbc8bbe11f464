"""What a package says of itself (`model.json`), and how one is written: weights first, description last."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.errors import InputError
from pipelines.metrics.deciding import THRESHOLD
from pipelines.storage import Storage
from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE_FORMAT = "resnet-pipelines/package"
PACKAGE_FORMAT_VERSION = 2
"""2: networks with any number of labels an image; others are still written as 1, so that earlier releases read them."""
WEIGHTS_FILE = "weights.safetensors"
DESCRIPTION_FILE = "model.json"

WEIGHTS_TAG = "resnet.weights_sha256"
"""Tag of a registered version: SHA-256 of its weights, checked on loading."""
DESCRIPTION_TAG = "resnet.description_sha256"
"""Tag of a registered version: SHA-256 of its `model.json`, checked on loading."""


@dataclass(frozen=True)
class PackageDescription:
    """Everything about a trained network but its weights."""

    spec: ModelSpec
    """The network, settled (`ModelSpec.for_images`)."""
    classes: tuple[str, ...]
    """Class names in the order of the network's outputs."""
    preprocess: Mapping[str, Any]
    """`Preprocess.to_json()`: from file bytes to the network's pixels."""
    mean: tuple[float, float, float]
    """Mean of pixel / 255 per channel, as subtracted in training."""
    std: tuple[float, float, float]
    """Standard deviation of pixel / 255 per channel, as divided by in training."""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """uri, version and fingerprint of the training data."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Figures by name, e.g. val_top1."""
    train_key: str = ""
    """Key of the training stage."""
    task: str = "single"
    """single: one class an image, probabilities by softmax; multi: each class a yes or no of its own, by sigmoid."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where weights from elsewhere come from, licence and source named; kept by what is trained from them."""
    weights_sha256: str = ""
    """SHA-256 of the weights file; `write_package` fills it in."""

    def to_json(self) -> dict[str, Any]:
        """Return the contents of `model.json`."""
        return {
            "format": PACKAGE_FORMAT,
            "format_version": 1 if self.task == "single" else 2,
            "spec": self.spec.to_json(),
            "classes": list(self.classes),
            "preprocess": dict(self.preprocess),
            "mean": list(self.mean),
            "std": list(self.std),
            "dataset": dict(self.dataset),
            "metrics": {name: _finite(value) for name, value in self.metrics.items()},
            "weights_sha256": self.weights_sha256,
            "train_key": self.train_key,
            **({"origin": dict(self.origin)} if self.origin else {}),
            **({} if self.task == "single" else {"task": self.task, "threshold": THRESHOLD}),
        }


def _finite(value: Any) -> Any:
    """Return null for a figure that JSON has no number for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_package(
    storage: Storage, prefix: str, state: Mapping[str, Tensor], description: PackageDescription
) -> dict[str, Any]:
    """Write weights and description under `prefix`; return the description as written, `weights_sha256` included.

    The description comes last: a package without one is not a package. Writing again replaces it.

    Raises:
        InputError: the description is not one that could be loaded again.
    """
    from resnet_models.state_dict import pack_weights  # torch: not for readers of descriptions

    weights = pack_weights(state)
    values = {**description.to_json(), "weights_sha256": hashlib.sha256(weights).hexdigest()}
    check_description(values, storage.address(f"{prefix}/{DESCRIPTION_FILE}".lstrip("/")))
    storage.put(f"{prefix}/{WEIGHTS_FILE}".lstrip("/"), weights)
    data = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False).encode()
    storage.put(f"{prefix}/{DESCRIPTION_FILE}".lstrip("/"), data)
    return values


def parse_description(data: bytes, where: str) -> dict[str, Any]:
    """Return the contents of a `model.json`, checked.

    Raises:
        InputError: the bytes are no description, or one of a newer format; names the place and the fault.
    """
    try:
        values = json.loads(data)
    except ValueError as error:
        raise InputError(f"the description is no JSON: {error}", where=where, mend=_MEND) from error
    return check_description(values, where)


_MEND = "the file was damaged or edited: take the package from its training run, or register the model again"


def check_description(values: Any, where: str) -> dict[str, Any]:
    """Return the values when they describe a package that this release can load.

    Raises:
        InputError: they do not; names the first fault.
    """
    if not isinstance(values, dict) or values.get("format") != PACKAGE_FORMAT:
        raise InputError(f"the description is not of the format {PACKAGE_FORMAT}", where=where, mend=_MEND)
    version = values.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"format_version is {version!r}; it must be a whole number", where=where, mend=_MEND)
    if version > PACKAGE_FORMAT_VERSION:
        raise InputError(
            f"the package has format version {version}; this release reads up to {PACKAGE_FORMAT_VERSION}",
            where=where,
            mend="pip install --upgrade resnet-pipelines",
        )
    if fault := _first_fault(values):
        raise InputError(fault, where=where, mend=_MEND)
    return values


def _first_fault(values: dict[str, Any]) -> str:
    """Return what is wrong with a description of the current format, or nothing."""
    kinds: dict[str, type] = {
        "spec": dict, "classes": list, "preprocess": dict, "mean": list, "std": list, "dataset": dict,
        "metrics": dict, "weights_sha256": str, "train_key": str,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind):
            return f"{name} is {values.get(name)!r}; it must be a {kind.__name__}"
    try:
        spec = ModelSpec.from_json(values["spec"])
    except SpecError as error:
        return f"spec.{error}"
    if not isinstance(values.get("origin", {}), dict):
        return f"origin is {values['origin']!r}; it must be a dict"
    if (task := values.get("task", "single")) not in ("single", "multi"):
        return f"task is {task!r}; it must be single or multi"
    if task == "multi" and not (isinstance(values.get("threshold"), float) and 0 < values["threshold"] < 1):
        return f"threshold is {values.get('threshold')!r}; it must be a number between 0 and 1"
    classes = values["classes"]
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        return "classes must be texts, each once"
    if spec.stem == "auto" or spec.num_classes != len(classes):
        return f"spec has stem {spec.stem} and {spec.num_classes} outputs; there are {len(classes)} classes"
    if spec.in_channels != 3:
        return f"spec.in_channels is {spec.in_channels}; the image path gives 3"
    for name in ("mean", "std"):
        numbers = values[name]
        if len(numbers) != 3 or not all(isinstance(number, (int, float)) and 0 <= number <= 1 for number in numbers):
            return f"{name} is {numbers}; it must be three numbers of 0 to 1"
    return ""
