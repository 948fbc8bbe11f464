"""A first layer that whitens image patches: its weights come from the data, not from training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SIDE = 3
_PIXELS = _SIDE * _SIDE


class PatchWhitening(nn.Module):
    """A fixed 3x3 convolution onto decorrelated directions of equal spread, each with both signs.

    Coates, Ng & Lee 2011, sec. 3.1 (whitened patches), as the frozen first layer of fast CIFAR networks
    (arXiv:2404.00498, sec. 3.2). Both signs, so that the activation behind it loses nothing. Until
    `whiten_stem` has seen images, the directions are those of the cosine transform, nearly the whitening ones of
    natural images, without their scale. The weights are a buffer: saved, never trained or decayed.
    Shape: (N, in_channels, H, W) -> (N, 18 in_channels, H, W).
    """

    directions: Tensor

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = 2 * _PIXELS * in_channels
        self.register_buffer("directions", _both_signs(_cosine_directions(in_channels)))

    def forward(self, x: Tensor) -> Tensor:
        """Project every patch; beyond the border lie zeros, the mean of normalised images."""
        return F.conv2d(x, self.directions.to(x.dtype), padding=_SIDE // 2)


def whiten_stem(network: nn.Module, images: Tensor, *, damping: float = 1e-2) -> None:
    """Set a network's whitening layer from images, in place: the same images give the same weights.

    Args:
        network: A network with `stem=whitening`.
        images: float (N, in_channels, H, W), normalised as in training; some thousand patches are enough.
        damping: Added to every variance as a share of their mean, so that directions without spread stay small.

    Raises:
        ValueError: The network has no whitening layer, or the images have another number of channels or no patch.
    """
    layers = [module for module in network.modules() if isinstance(module, PatchWhitening)]
    if not layers:
        raise ValueError("the network has no whitening layer; build it with stem=whitening")
    layer = layers[0]
    if images.dim() != 4 or images.shape[1] != layer.in_channels or min(images.shape[2:]) < _SIDE or not len(images):
        raise ValueError(
            f"images have shape {list(images.shape)}; "
            f"give (N, {layer.in_channels}, H, W) with sides of at least {_SIDE}"
        )
    patches = F.unfold(images.detach().cpu().to(torch.float64), _SIDE).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(dim=0)
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    vectors = vectors * torch.sign(vectors.sum(dim=0) + 1e-12)  # an eigenvector's sign is arbitrary: the sum is >= 0
    scales = (variances.clamp(min=0.0) + damping * variances.mean().clamp(min=1e-12)).rsqrt()
    directions = (vectors * scales).T.flip(0).reshape(-1, layer.in_channels, _SIDE, _SIDE)
    with torch.no_grad():
        layer.directions.copy_(_both_signs(directions).to(layer.directions))


def _both_signs(directions: Tensor) -> Tensor:
    return torch.cat([directions, -directions])


def _cosine_directions(in_channels: int) -> Tensor:
    """Return an orthonormal basis of the patches, (9 in_channels, in_channels, 3, 3): one channel each."""
    rows = [
        [math.sqrt((1 if k == 0 else 2) / _SIDE) * math.cos(math.pi * (i + 0.5) * k / _SIDE) for i in range(_SIDE)]
        for k in range(_SIDE)
    ]
    row = torch.tensor(rows)
    waves = (row[:, None, :, None] * row[None, :, None, :]).reshape(_PIXELS, 1, 1, _SIDE, _SIDE)
    channels = torch.eye(in_channels).reshape(1, in_channels, in_channels, 1, 1)
    return (waves * channels).reshape(_PIXELS * in_channels, in_channels, _SIDE, _SIDE)
