"""Integrated gradients: how much each pixel adds to a class's logit on the way from a baseline to the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resnet_models.explain.scores import evaluation_mode, explained_images, explained_targets, target_scores


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: int | Tensor | None = None,
    *,
    baseline: Tensor | float = 0.0,
    steps: int = 64,
) -> Tensor:
    """Return signed heat maps (N, H, W), float32, in logits per pixel, summed over channels.

    Sundararajan et al. 2017, arXiv:1703.01365, eq. 1 and 3. Completeness: a map sums to the target's logit minus the
    logit of the baseline, up to the error of the steps, which falls as 1 / steps. Costs `steps` times one forward and
    backward. The model stays as it was: modes, gradients, hooks.

    Args:
        model: Gives logits (N, num_classes).
        images: (N, C, H, W), as the model takes them.
        target: Class to explain: one for all, one per image (N,), or None for each image's predicted class.
        baseline: The image that says nothing, broadcast to (N, C, H, W); 0 is the mean colour of normalised images.
        steps: Points of the path at which gradients are taken, in the middle of equal pieces.

    Raises:
        ValueError: Images, target, baseline or steps do not fit.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: it must be 1 or more")
    with evaluation_mode(model):
        batch = explained_images(images)
        start = torch.as_tensor(baseline, dtype=batch.dtype, device=batch.device).detach()
        try:
            path = batch - start.expand(batch.shape)
        except RuntimeError:
            raise ValueError(f"baseline has shape {list(start.shape)}: it must fit {list(batch.shape)}") from None
        with torch.no_grad():
            targets = explained_targets(model(batch.clone()), target)
        total = torch.zeros(batch.shape, dtype=torch.float64, device=batch.device)
        for step in range(steps):
            point = (start + path * ((step + 0.5) / steps)).requires_grad_()
            scores = target_scores(model(point.clone()), targets)  # a copy: a model may write into its input
            total += torch.autograd.grad(scores.sum(), point)[0]
    return (total / steps * path).sum(dim=1).float()
