"""Grad-CAM and Grad-CAM++: which places of a layer's feature maps raise a class's logit."""

from __future__ import annotations

from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.explain.scores import evaluation_mode, explained_images, explained_targets, target_scores


def grad_cam(
    model: nn.Module, images: Tensor, target: int | Tensor | None = None, *, layer: str | None = None
) -> Tensor:
    """Return heat maps (N, H, W), float32, 0 or above: the layer's maps weighted by their mean gradients.

    Selvaraju et al. 2016, arXiv:1610.02391, eq. 1 and 2; enlarged bilinearly. Not normalised: a map of zeros says that
    nothing there speaks for the class. The model stays as it was: modes, gradients, hooks.

    Args:
        model: Gives logits (N, num_classes).
        images: (N, C, H, W), as the model takes them.
        target: Class to explain: one for all, one per image (N,), or None for each image's predicted class.
        layer: Name of a module that gives feature maps (N, K, h, w); None: the last stage of our networks.

    Raises:
        ValueError: Images, target or layer do not fit the model.
    """
    maps, gradients = _maps_and_gradients(model, images, target, layer)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return _enlarged((weights * maps).sum(dim=1), images)


def grad_cam_plus_plus(
    model: nn.Module, images: Tensor, target: int | Tensor | None = None, *, layer: str | None = None
) -> Tensor:
    """Return heat maps (N, H, W), float32, 0 or above: Grad-CAM that sees several objects of one class.

    Chattopadhyay et al. 2017, arXiv:1710.11063, eq. 19 with Y = exp(logit); the factor exp(logit) of a whole map is
    left out, since it overflows and changes no place against another. Arguments and errors as `grad_cam`.
    """
    maps, gradients = _maps_and_gradients(model, images, target, layer)
    squares = gradients**2
    below = 2.0 * squares + maps.sum(dim=(2, 3), keepdim=True) * gradients**3
    alphas = torch.where(below != 0.0, squares / torch.where(below != 0.0, below, 1.0), 0.0)
    weights = (alphas * gradients.relu()).sum(dim=(2, 3), keepdim=True)
    return _enlarged((weights * maps).sum(dim=1), images)


def _maps_and_gradients(
    model: nn.Module, images: Tensor, target: int | Tensor | None, layer: str | None
) -> tuple[Tensor, Tensor]:
    """Return the layer's output (N, K, h, w) and the gradient of the targets' logits with respect to it, float32."""
    module = _explained_layer(model, layer)
    seen: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            shown = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"layer {layer or 'stages[-1]'} gives {shown}: Grad-CAM needs feature maps (N, K, h, w)")
        # A new leaf: no graph before it, and frozen weights do no harm. The rest of the network gets a copy, since
        # it may write into what it is given (in-place ReLU).
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()

    with evaluation_mode(model):
        batch = explained_images(images)
        hook = module.register_forward_hook(cut)
        try:
            logits = model(batch)
        finally:
            hook.remove()
        if not seen:
            raise ValueError(f"layer {layer} is never called: name another module")
        scores = target_scores(logits, explained_targets(logits, target))
        (gradients,) = torch.autograd.grad(scores.sum(), seen[-1])
    return seen[-1].detach().float(), gradients.float()


def _explained_layer(model: nn.Module, layer: str | None) -> nn.Module:
    if layer is None:
        stages = getattr(model, "stages", None)
        if not isinstance(stages, nn.Sequential) or not len(stages):
            raise ValueError(
                f"layer is None: a {type(model).__name__} has no stages; name a module with feature maps (N, K, h, w)"
            )
        last: nn.Module = stages[-1]
        return last
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not layer or layer not in modules:
        near = get_close_matches(layer, [name for name in modules if name], n=1)
        cure = f"did you mean {near[0]}?" if near else f"its modules are {', '.join(dict(model.named_children()))}"
        raise ValueError(f"layer is {layer!r}: the model has no such module; {cure}")
    return modules[layer]


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    """Return the positive part of maps (N, h, w) at the images' size."""
    large = F.interpolate(maps.relu()[:, None], size=images.shape[2:], mode="bilinear", align_corners=False)
    return large[:, 0]
