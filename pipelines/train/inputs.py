"""From a batch's pixels to what the network is given in an epoch: images at its size, mixed with their partners.

Resizing and mixing take means of pixels, so it makes no difference whether pixels are normalised before or after.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.dataset.keyed import Hashes
from pipelines.train.config import TrainConfig
from pipelines.train.mixing import blend, draw_mixes
from pipelines.train.schedule import side_at


def sized(images: Tensor, config: TrainConfig, *, epoch: int) -> Tensor:
    """Return images (N, 3, H, W) at the size that they have in an epoch, counted from 1."""
    height, width = images.shape[2:]
    sides = [side_at(config.progressive, side_px=side, epoch=epoch, epochs=config.epochs) for side in (height, width)]
    if sides == [height, width] or not len(images):
        return images[:, :, : sides[0], : sides[1]]
    return F.interpolate(images, size=sides, mode="bilinear", antialias=True, align_corners=False)


def mixed(
    images: Tensor, partners: Tensor, hashes: Hashes, config: TrainConfig, *, epoch: int
) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, H, W) mixed with their partners, and the share of the loss that each keeps, (N,).

    Args:
        images: at the epoch's size.
        partners: at the same size.
        hashes: keys of the rows' random draws, (N,).
        config: the recipe.
        epoch: counted from 1.
    """
    shape = (images.shape[2], images.shape[3])
    kept, shares = draw_mixes(hashes, config.augment, shape, seed=config.seed, epoch=epoch)
    return blend(images, partners, moved(kept, images.device)), moved(shares, images.device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; copies to a GPU overlap the computation."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
