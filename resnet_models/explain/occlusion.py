"""Occlusion: how far a class's logit falls when a square of the image is covered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resnet_models.explain.scores import evaluation_mode, explained_images, explained_targets, target_scores


def occlusion(
    model: nn.Module,
    images: Tensor,
    target: int | Tensor | None = None,
    *,
    size_px: int = 0,
    stride_px: int = 0,
    fill: Tensor | float = 0.0,
) -> Tensor:
    """Return signed heat maps (N, H, W), float32, in logits: the mean fall over the squares that cover a pixel.

    Zeiler & Fergus 2013, arXiv:1311.2901, sec. 4.2. Needs no gradients, so it also tells whether methods that do can be
    believed. Costs one forward of the batch for every position. The model stays as it was: modes, gradients, hooks.

    Args:
        model: Gives logits (N, num_classes).
        images: (N, C, H, W), as the model takes them.
        target: Class to explain: one for all, one per image (N,), or None for each image's predicted class.
        size_px: Side of the square; 0: an eighth of the image's shorter side, rounded up.
        stride_px: Step between positions, `size_px` at most, so that every pixel is covered; 0: half the square.
        fill: What covers the pixels: a number, or a colour (C, 1, 1).

    Raises:
        ValueError: Images, target, size, stride or fill do not fit.
    """
    height, width = images.shape[-2:] if images.ndim == 4 else (0, 0)
    size = size_px or max(1, -(-min(height, width) // 8))
    stride = stride_px or -(-size // 2)
    with evaluation_mode(model), torch.no_grad():
        batch = explained_images(images)
        if not 1 <= size <= min(height, width):
            raise ValueError(f"size_px is {size}: it must be 1 to {min(height, width)}, the image's shorter side")
        if not 1 <= stride <= size:
            raise ValueError(f"stride_px is {stride}: it must be 1 to size_px ({size}), or pixels are never covered")
        try:
            cover = torch.as_tensor(fill, dtype=batch.dtype, device=batch.device).expand(*batch.shape[:2], size, size)
        except RuntimeError:
            raise ValueError(
                f"fill has shape {list(torch.as_tensor(fill).shape)}: give a number, or a colour "
                f"[{batch.shape[1]}, 1, 1]"
            ) from None
        logits = model(batch.clone())
        targets = explained_targets(logits, target)
        before = target_scores(logits, targets).double()
        fall = torch.zeros(len(batch), height, width, dtype=torch.float64, device=batch.device)
        covered = torch.zeros(height, width, dtype=torch.float64, device=batch.device)
        for top in _positions(height, size, stride):
            for left in _positions(width, size, stride):
                square = (..., slice(top, top + size), slice(left, left + size))
                hidden = batch.clone()
                hidden[square] = cover
                after = target_scores(model(hidden), targets).double()
                fall[square] += (before - after)[:, None, None]
                covered[square] += 1.0
    return (fall / covered).float()


def _positions(side: int, size: int, stride: int) -> list[int]:
    """Return where squares start; the last one ends at the edge."""
    return [*range(0, side - size, stride), side - size]
