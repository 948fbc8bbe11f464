"""How good weights are on a split: every row exactly once, on any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.metrics.accuracy import macro_f1
from pipelines.metrics.multilabel import label_scores, mean_average_precision, micro_f1
from pipelines.train.batch import Batch
from pipelines.train.collectives import World
from pipelines.train.feed import SplitRows
from pipelines.train.memory import memory_for
from pipelines.train.precision import Precision
from pipelines.train.records import TrainFigures, ValFigures
from pipelines.train.state import add_exactly

_BATCH_PIXELS = 1 << 19
"""Pixels of a batch: 512 images of 32 pixels, 10 of 224."""


@memory_for("the evaluation on val")
def evaluate(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    rows: SplitRows,
    prepare: Callable[[Batch], tuple[Tensor, Tensor]],
    *,
    world: World,
    device: torch.device,
    precision: Precision,
) -> ValFigures:
    """Return the figures of weights on a split: cross-entropy and top-1, or mean average precision and F1.

    Of several labels an image the cross-entropy is summed over classes, as in training.

    Args:
        network: the network; it is left in training mode, its own weights untouched.
        weights: the weights to evaluate in it.
        rows: the split.
        prepare: gives a batch's images (N, 3, H, W) and targets on the device.
        world: the workers that share the rows.
        device: where the network is.
        precision: type of the products.

    Raises:
        MemoryShortage: it does not fit into memory.
    """
    height, width = rows.image_shape
    size = max(8, min(512, _BATCH_PIXELS // (height * width)))
    by_row: list[Tensor] = []  # loss of each row, and whether it is right
    answers: list[Tensor] = []
    network.eval()
    with torch.no_grad(), precision.products(), precision.autocast():
        for batch in evaluation_batches(rows, world, size):
            images, targets = prepare(batch)
            logits = torch.func.functional_call(network, dict(weights), (images,))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if targets.ndim == 2:
                losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(1)
                answers.append(logits)
                right = torch.zeros_like(losses)
            else:
                losses = F.cross_entropy(logits, targets, reduction="none")
                right = (logits.argmax(1) == targets).to(losses.dtype)
            by_row.append(torch.stack([losses, right], dim=1))
    network.train()
    # Sums, not means: shares differ in size, and a worker may have no row at all. Exact ones, as a tie in top-1 is
    # decided by the loss, and which epoch is the best must not depend on how rows are shared.
    totals = add_exactly(torch.cat(by_row).cpu()) if by_row else [0.0, 0.0]
    loss_sum, right_rows = world.sum_values(totals, device)
    figures: ValFigures = {
        "val_loss": loss_sum / rows.num_rows,
        "val_top1": None,
        "val_map": None,
        "val_macro_f1": None,
        "val_micro_f1": None,
    }
    if rows.targets.ndim == 1:
        figures["val_top1"] = right_rows / rows.num_rows
        return figures
    probabilities = _of_all_rows(answers, rows, world, device).sigmoid().cpu().numpy()
    targets_of_all = rows.targets.astype(bool)
    scores = label_scores(probabilities, targets_of_all)
    figures["val_map"] = mean_average_precision(probabilities, targets_of_all)
    figures["val_macro_f1"], figures["val_micro_f1"] = macro_f1(scores), micro_f1(scores)
    return figures


def evaluation_batches(rows: SplitRows, world: World, batch_size: int) -> Iterator[Batch]:
    """Yield one worker's share of a split, unchanged: over all workers every row comes exactly once.

    Args:
        rows: the split.
        world: shares are contiguous and differ by one row at most, so some may be empty.
        batch_size: rows of a batch.
    """
    first = rows.num_rows * world.rank // world.size
    last = rows.num_rows * (world.rank + 1) // world.size
    for start in range(first, last, batch_size):
        positions = np.arange(start, min(start + batch_size, last))
        hashes = rows.hashes[positions]
        yield Batch(rows.pixels.take(positions), rows.targets[positions], hashes, global_rows=len(positions))


def train_figures(share: float, *, is_multi: bool, pieces: int) -> TrainFigures:
    """Return the share of training rows that were right under its name, and pieces where they are more than asked."""
    return {
        "train_top1": None if is_multi else share,
        "train_exact": share if is_multi else None,
        "pieces": pieces if pieces > 1 else None,
    }


def _of_all_rows(answers: list[Tensor], rows: SplitRows, world: World, device: torch.device) -> Tensor:
    """Return the logits of all workers in row order, (N, classes): a class is ranked over all rows, so each needs them.

    A worker's rows lie where `evaluation_batches` takes them from; to the others it adds zeros.
    """
    if device.type == "mps":  # which has no float64, nor a second worker to send anything to
        device = torch.device("cpu")
    own = torch.cat(answers).to(device) if answers else torch.zeros(0, rows.targets.shape[1], device=device)
    everything = torch.zeros(rows.targets.shape, device=device, dtype=torch.float64)
    first = rows.num_rows * world.rank // world.size
    everything[first : first + len(own)] = own.double()
    return world.sum(everything)
