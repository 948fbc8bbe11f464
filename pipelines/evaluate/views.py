"""Test-time averaging: a network's mean answer over several views of each image, mirrored and moved ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]
Answering = Callable[[Pixels], Probabilities]
"""uint8 (N, H, W, 3) -> float32 probabilities (N, classes)."""


@dataclass(frozen=True)
class View:
    """One way to look at an image: moved by whole pixels, the border mirrored, then mirrored left to right or not."""

    down: int
    right: int
    mirrored: bool

    def of(self, pixels: Pixels) -> Pixels:
        """Return the images (N, H, W, 3) as this view shows them."""
        margin = max(abs(self.down), abs(self.right))
        if margin:
            height, width = pixels.shape[1:3]
            padded = np.pad(pixels, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
            top, left = margin - self.down, margin - self.right
            pixels = padded[:, top : top + height, left : left + width]
        return np.ascontiguousarray(pixels[:, :, ::-1] if self.mirrored else pixels)

    def __str__(self) -> str:
        """As the catalog names it: the move, then whether it is mirrored."""
        moved = f"down {self.down}, right {self.right}" if self.down or self.right else "in place"
        return f"{moved}, mirrored" if self.mirrored else moved


def make_views(*, flip: bool, shift_px: int) -> tuple[View, ...]:
    """Return the views, the image as it is first: the four diagonal moves where it is moved, each mirrored too."""
    moves = [(0, 0)]
    if shift_px:
        moves += [(down, right) for down in (-shift_px, shift_px) for right in (-shift_px, shift_px)]
    return tuple(View(down, right, mirrored) for mirrored in ((False, True) if flip else (False,))
                 for down, right in moves)  # fmt: skip


def averaging(forward: Answering, views: Sequence[View]) -> Answering:
    """Return a network that answers with the mean of its probabilities over the views, each counting the same.

    Probabilities and not logits are averaged: it holds for one label an image and for several, and a view that the
    network is sure of does not outvote the others. As in arXiv:2404.00498, sec. 3.5, with moves of a pixel.

    Args:
        forward: the network, from one view.
        views: at least one.
    """
    if len(views) == 1:
        return lambda pixels: forward(views[0].of(pixels))

    def mean(pixels: Pixels) -> Probabilities:
        # In float64, so that the sum is the same in whichever order the views stand.
        total = np.zeros(1, dtype=np.float64)
        for view in views:
            total = total + forward(view.of(pixels))
        return (total / len(views)).astype(np.float32)

    return mean
