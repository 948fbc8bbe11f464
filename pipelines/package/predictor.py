"""From uint8 pixels to class probabilities, the same arithmetic wherever a package is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

FloatArray: TypeAlias = npt.NDArray[np.float32]

PREDICTOR_DTYPES: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> autocast type; None runs in float32 as trained."""


class PackagedNetwork(Protocol):
    """What a predictor needs of a package."""

    @property
    def network(self) -> nn.Module:
        """The network with its trained weights."""

    @property
    def description(self) -> Mapping[str, Any]:
        """The contents of `model.json`."""


class Predictor:
    """A packaged network ready to answer: normalisation, forward pass, softmax or, for several labels, sigmoid.

    Args:
        package: network and description; the network is switched to evaluation and moved to the device.
        precision: float32, bf16 or fp16.
        device: torch's name of a device, or "auto": a GPU when torch can use one, else the CPU.

    Raises:
        ValueError: the precision is unknown.
    """

    def __init__(self, package: PackagedNetwork, precision: str = "float32", device: str = "auto") -> None:
        if precision not in PREDICTOR_DTYPES:
            raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PREDICTOR_DTYPES)}")
        self.device = torch.device(best_device() if device == "auto" else device)
        self.classes: tuple[str, ...] = tuple(package.description["classes"])
        self.threshold: float | None = package.description.get("threshold")
        """Probability from which an image has a label; None where it has exactly one class."""
        self._dtype = PREDICTOR_DTYPES[precision]
        scale, offset = normalisation_of(package.description["mean"], package.description["std"])
        self._scale, self._offset = scale.to(self.device), offset.to(self.device)
        # (N, H, W, 3) seen as (N, 3, H, W) is channels-last already, and convolutions are faster in it.
        network = package.network.to(self.device).to(memory_format=torch.channels_last)
        self._network: nn.Module = network.eval()

    def predict(self, pixels: npt.NDArray[np.uint8]) -> FloatArray:
        """Return float32 probabilities (N, classes) of uint8 RGB pixels (N, H, W, 3)."""
        if len(pixels) == 0:
            return np.zeros((0, len(self.classes)), dtype=np.float32)
        batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self.device)
        with torch.inference_mode(), self._arithmetic():
            logits: Tensor = self._network((batch.float() * self._scale - self._offset).permute(0, 3, 1, 2))
        is_multi = self.threshold is not None
        probabilities = torch.sigmoid(logits.float()) if is_multi else torch.softmax(logits.float(), dim=1)
        answer: FloatArray = probabilities.cpu().numpy()
        return answer

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self._dtype is not None:
            return torch.autocast(self.device.type, dtype=self._dtype)
        if self.device.type == "cuda":  # cuDNN rounds float32 to 10 bits of mantissa unless told otherwise
            flags: AbstractContextManager[object] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
            return flags
        return nullcontext()


def normalisation_of(mean: list[float], std: list[float]) -> tuple[Tensor, Tensor]:
    """Return scale and offset with pixel * scale - offset = (pixel / 255 - mean) / std, float32 (3,).

    A channel that never varies counts as having a deviation of 1.
    """
    safe = [value if value > 1e-6 else 1.0 for value in std]
    scale = torch.tensor([1.0 / (255.0 * value) for value in safe])
    offset = torch.tensor([middle / value for middle, value in zip(mean, safe, strict=True)])
    return scale, offset


def best_device() -> str:
    """Return the fastest device that torch can use here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def labels_above(probabilities: FloatArray, classes: Sequence[str], threshold: float) -> list[str]:
    """Return the classes whose probability, one of (classes,), is the threshold or more, most probable first."""
    order = np.argsort(-probabilities, kind="stable")
    return [classes[number] for number in order if probabilities[number] >= threshold]


def top_classes(probabilities: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Return the indices (N, min(k, classes)) of the most probable classes, best first; ties go to the lower index."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
