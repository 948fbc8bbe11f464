"""What every explanation shares: a model that is left as it was, and the score that is explained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from resnet_models.modes import modes_kept


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run the body with the whole model in eval mode; every module's own mode is put back, come what may.

    Explanations work inside `torch.no_grad` and `torch.inference_mode` blocks too.
    """
    with modes_kept(model), torch.inference_mode(False), torch.enable_grad():
        model.eval()
        yield


def explained_images(images: Tensor) -> Tensor:
    """Return a detached copy of the batch, checked.

    Raises:
        ValueError: Not a floating (N, C, H, W) with at least one image.
    """
    if images.ndim != 4 or not images.is_floating_point() or not images.numel():
        raise ValueError(
            f"images are {str(images.dtype).removeprefix('torch.')} {list(images.shape)}: "
            "give the batch (N, C, H, W) of normalised floats that the model takes"
        )
    return images.detach().clone()


def explained_targets(logits: Tensor, target: int | Tensor | None) -> Tensor:
    """Return the class to explain for each image, int64 (N,): the predicted one where none is given.

    Args:
        logits: (N, num_classes).
        target: One class for all, one per image (N,), or None.

    Raises:
        ValueError: The model gives no (N, num_classes), or a class is out of range.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shown = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model's output is {shown}: explanations need logits (N, num_classes)")
    if target is None:
        return logits.detach().argmax(dim=1)
    count, classes = logits.shape
    targets = torch.as_tensor(target, device=logits.device)
    if targets.is_floating_point() or targets.shape not in ((), (count,)):
        raise ValueError(f"target is {target}: give one class, or one per image ({count})")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise ValueError(f"target is {target}: the model's classes are 0 to {classes - 1}")
    return targets.long().expand(count)


def target_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logit of each image's class, (N,): before the softmax, so that no other class has a say."""
    return logits.gather(1, targets[:, None])[:, 0]
