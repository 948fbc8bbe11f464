"""A worker's share of a global batch, as the feed gives it and a step takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipelines.dataset.keyed import Hashes
from pipelines.train.losses import Targets
from pipelines.train.transforms import Pixels


@dataclass(frozen=True)
class Batch:
    """A worker's share of a global batch; it may be empty."""

    pixels: Pixels
    """uint8 (n, H, W, 3), augmented in training."""
    targets: Targets
    """Class numbers, (n,), or which classes each row has, (n, classes)."""
    hashes: Hashes
    """Keys of the rows' random draws, (n,): their `image_hashes`, but for further copies of a row."""
    global_rows: int
    """Rows of the whole batch over all workers."""
    trace: int = 0
    """Id trace of the rows of a whole share; 0 for a part of one, of which nobody asks."""
    ghost_rows: tuple[int, ...] = ()
    """Rows of each ghost that the share holds, which follow each other; of a short batch unequal, some perhaps none.
    Empty without ghost batches."""
    units: tuple[int, ...] = ()
    """Numbers of the lanes, or with ghost batches of the ghosts, whose rows the share holds, in this order."""
    unit_rows: tuple[int, ...] = ()
    """Rows of each of them."""
    num_units: int = 0
    """How many there are over all workers. 0: nobody says."""
    partner_pixels: Pixels | None = None
    """Mixing partners of the rows, augmented; None without mixing."""
    partner_targets: Targets | None = None
    """Their targets."""

    def part(self, rows: slice | npt.NDArray[np.int64]) -> Batch:
        """Return some rows of the share; where ghosts meet in them is the caller's to say, and of lanes nobody asks."""
        return replace(
            self,
            pixels=self.pixels[rows],
            targets=self.targets[rows],
            hashes=self.hashes[rows],
            trace=0,
            ghost_rows=(),
            units=(),
            unit_rows=(),
            num_units=0,
            partner_pixels=None if self.partner_pixels is None else self.partner_pixels[rows],
            partner_targets=None if self.partner_targets is None else self.partner_targets[rows],
        )
