"""The loss of each row. Never averaged here: a worker does not know how many rows the global batch has."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.train.config import LossConfig

Targets: TypeAlias = npt.NDArray[np.integer[Any]]
"""Class numbers (N,), or of images with any number of labels 1 where a row has a class, else 0, (N, classes)."""


class RowLoss:
    """Logits (N, classes) and targets (N,) or (N, classes) to losses (N,), in the type of the logits.

    Args:
        config: which loss.
        smoothing: share of the target spread evenly over all classes.
        targets: targets of all training rows, from which class weights are counted.
        num_classes: number of classes.
        device: where the logits will be.
        dtype: type of the losses.
    """

    def __init__(
        self,
        config: LossConfig,
        *,
        smoothing: float,
        targets: Targets,
        num_classes: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._smoothing = smoothing
        self._dtype = dtype
        self._weights: Tensor | None = None
        if config.class_weights != "none":
            weights = class_weights(targets, num_classes, config)
            self._weights = torch.from_numpy(weights).to(device=device, dtype=dtype)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row."""
        losses = self._unweighted(logits.to(self._dtype), targets)
        return losses if self._weights is None else losses * self._weights[targets]

    def _unweighted(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self._config.name == "bce":
            if targets.ndim == 2:  # each class is a yes or no of its own, and smoothing leans to neither
                goal = targets.to(logits.dtype) * (1.0 - self._smoothing) + self._smoothing / 2
            else:
                goal = torch.full_like(logits, self._smoothing / logits.shape[1])
                goal.scatter_(1, targets[:, None], 1.0 - self._smoothing + self._smoothing / logits.shape[1])
            return F.binary_cross_entropy_with_logits(logits, goal, reduction="none").sum(1)
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self._smoothing)
        if self._config.name == "focal":
            right = torch.softmax(logits, 1).gather(1, targets[:, None])[:, 0]
            # Exponents below 1 have an infinite slope at 0, where a sure row gets; clamping passes none on.
            wrong = (1.0 - right).clamp_min(torch.finfo(right.dtype).tiny)
            losses = wrong**self._config.focal_gamma * losses
        return losses


def rows_right(logits: Tensor, targets: Tensor) -> Tensor:
    """Return which rows (N,) are answered rightly: the class, or every yes and no at a probability of 1/2."""
    if targets.ndim == 2:
        return ((logits >= 0) == (targets > 0)).all(1)
    return logits.argmax(1) == targets


def class_weights(targets: Targets, num_classes: int, config: LossConfig) -> npt.NDArray[np.float64]:
    """Return a weight per class (classes,), 1 on average over the training rows; a class without rows weighs 1.

    `balanced`: as the inverse of its rows. `effective`: as the inverse of (1 - beta^rows) / (1 - beta), the number of
    rows that bring something new (arXiv:1901.05555).
    """
    rows = np.bincount(targets, minlength=num_classes).astype(np.float64)
    amount = np.maximum(rows, 1)
    if config.class_weights == "effective":
        amount = (1.0 - config.effective_beta**amount) / (1.0 - config.effective_beta)
    weights = 1.0 / amount
    weights *= rows.sum() / (weights * rows).sum()
    weights[rows == 0] = 1.0
    return np.asarray(weights)


def classes_in(targets: Targets) -> npt.NDArray[np.int64]:
    """Return the numbers of the classes that have rows, ascending."""
    return np.flatnonzero(targets.any(0)) if targets.ndim == 2 else np.unique(targets)
