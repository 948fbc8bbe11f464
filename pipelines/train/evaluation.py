"""How good weights are on a split: every row exactly once, on any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.train.collectives import World
from pipelines.train.feed import Batch, SplitRows, evaluation_batches

_BATCH_PIXELS = 1 << 19
"""Pixels of a batch: 512 images of 32 pixels, 10 of 224."""


def evaluate(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    rows: SplitRows,
    prepare: Callable[[Batch], tuple[Tensor, Tensor]],
    *,
    world: World,
    device: torch.device,
    autocast: AbstractContextManager[object],
) -> tuple[float, float]:
    """Return mean cross-entropy and top-1 over a split.

    Args:
        network: the network; it is left in training mode, its own weights untouched.
        weights: the weights to evaluate in it.
        rows: the split.
        prepare: gives a batch's images (N, 3, H, W) and targets (N,) on the device.
        world: the workers that share the rows.
        device: where the network is.
        autocast: precision to run in.
    """
    height, width = rows.image_shape
    size = max(8, min(512, _BATCH_PIXELS // (height * width)))
    totals = torch.zeros(2, device=device)
    network.eval()
    with torch.no_grad(), autocast:
        for batch in evaluation_batches(rows, world, size):
            images, targets = prepare(batch)
            logits = torch.func.functional_call(network, dict(weights), (images,))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            right = (logits.argmax(1) == targets).sum()
            totals += torch.stack([F.cross_entropy(logits, targets, reduction="sum"), right])
    network.train()
    # Sums, not means: shares differ in size, and a worker may have no row at all.
    loss, right_rows = world.sum_values(totals.tolist(), device)
    return loss / rows.num_rows, right_rows / rows.num_rows
