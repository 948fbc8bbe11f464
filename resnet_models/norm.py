"""Norms: batch norm and its relatives with other batches, group norm, and batch norm that no longer changes.

All but the group norm hold what `nn.BatchNorm2d` holds under the same names, so that weights go from one to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class GhostBatchNorm(nn.BatchNorm2d):
    """Batch norm over slices of the batch, each with its own figures (Hoffer et al. 2017, arXiv:1705.08741, alg. 1).

    The batch is cut, in order, into the fewest slices of at most `size` images, as equal as can be, or, where somebody
    has set `cuts`, into slices of so many images: who shares a batch out over processes knows which images belong
    together, and a process cannot tell from how many it holds. Running statistics take one step a batch, towards the
    mean of the slices' figures weighted by their images; slices are added in a fixed order, those of several processes
    in turn (slice 0 of every rank, slice 1, ...), so that the same slices give the same bits however they are spread.
    Every process must call it. A slice with a single value per channel is normalised by the running statistics, which
    it leaves alone. In eval mode it is batch norm.

    With `defers` set, a forward pass only adds its slices' figures to `seen`, and whoever trains calls `take_in` once a
    step: one message for all layers instead of some for each, and one step however many passes a batch takes.
    Shape: (N, channels, H, W) -> (N, channels, H, W).
    """

    seen: Tensor | None
    cuts: tuple[int, ...]
    """Images of each slice of the passes to come, some perhaps none; empty: by `size`."""

    def __init__(self, channels: int, *, size: int) -> None:
        super().__init__(channels)
        self.size = size
        self.defers = False
        self.cuts = ()
        # Figures of slices, (slices, 3, channels). A buffer, so that what recomputes a pass puts it back with the rest.
        self.register_buffer("seen", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each slice by itself.

        Raises:
            ValueError: `cuts` are of another number of images.
        """
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        outs, figures = [], [self.weight.new_zeros(0, 3, self.num_features)]
        for part in self._slices(x):
            if not len(part):  # keeps its turn among the slices of all processes, and weighs nothing
                figures.append(figures[0].new_zeros(1, 3, self.num_features))
                continue
            if part.numel() == self.num_features:  # a single value has no variance: it takes the running figures
                mean, variance = self.running_mean.clone(), self.running_var.clone()  # cloned: they move below
                outs.append(F.batch_norm(part, mean, variance, self.weight, self.bias, False, 0.0, self.eps))
                figures.append(torch.zeros_like(mean).expand(1, 3, -1))  # no images: no weight
                continue
            mean, variance = torch.zeros_like(self.weight), torch.ones_like(self.weight)
            # Momentum 1: torch leaves the slice's own mean and unbiased variance in the two buffers.
            outs.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps))
            figures.append(torch.stack([mean, variance, torch.full_like(mean, float(part.shape[0]))])[None])
        with torch.no_grad():
            found = torch.cat(figures)
            if self.defers:
                self.seen = found if self.seen is None else torch.cat([self.seen, found])
            else:
                self.take_in(sum_slices(_in_turn(found)))
        if len(outs) == 1:  # joining one copies it
            return outs[0]
        return torch.cat(outs) if outs else x

    def _slices(self, x: Tensor) -> Sequence[Tensor]:
        if self.cuts and sum(self.cuts) != x.shape[0]:
            raise ValueError(f"a ghost norm was told to cut {sum(self.cuts)} images and was given {x.shape[0]}")
        if len(self.cuts) == 1 or (not self.cuts and 0 < x.shape[0] <= self.size):  # the gradient of a cut is a copy
            return (x,)
        if self.cuts:
            return torch.split_with_sizes(x, self.cuts)
        return x.tensor_split(-(-x.shape[0] // self.size)) if x.shape[0] else ()

    @torch.no_grad()
    def take_in(self, total: Tensor) -> None:
        """Move the running statistics towards those of slices.

        Args:
            total: (3, channels), as `sum_slices` gives it, of the slices of all processes.
        """
        seen = total[2].clamp(min=1.0)
        rate = (self.momentum or 0.0) * (total[2] > 0)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean += rate * (total[0] / seen - self.running_mean)
        self.running_var += rate * (total[1] / seen - self.running_var)
        self.num_batches_tracked += 1


def sum_slices(figures: Tensor) -> Tensor:
    """Add up (slices, 3, channels), in order: means times images, variances times images, images; (3, channels)."""
    total = figures.new_zeros(figures.shape[1:])
    for mean, variance, images in figures:
        total += torch.stack([mean * images, variance * images, images])
    return total


def _in_turn(figures: Tensor) -> Tensor:
    """Return the figures of all processes: the first of every rank, the second of every rank, and so on."""
    world = _process_count()
    if world == 1:
        return figures
    most = torch.tensor(len(figures), device=figures.device)
    distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
    padded = torch.cat([figures, figures.new_zeros(int(most) - len(figures), *figures.shape[1:])])  # without weight
    gathered = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(gathered, padded)
    return torch.stack(gathered, 1).flatten(0, 1)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes of torch.distributed together, on any backend and device.

    Sums are added in the order of ranks; processes may hold unequal batches, also none. Without processes it is batch
    norm. (torch's own SyncBatchNorm refuses CPUs.)
    Shape: (N, channels, H, W) -> (N, channels, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by mean and variance over all processes."""
        if not self.training or _process_count() == 1:
            return super().forward(x)
        values = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        count = values.new_full((self.num_features,), float(x.numel() // self.num_features))
        summed, total = _SumOfRanks.apply(torch.stack([values.sum((0, 2, 3)), count])).unbind()
        mean = summed / total
        centred = values - mean[:, None, None]
        variance = _SumOfRanks.apply(centred.square().sum((0, 2, 3))) / total
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            unbiased = variance * total / (total - 1).clamp(min=1.0)
            rate = self.momentum or 0.0
            self.running_mean += rate * (mean - self.running_mean)
            self.running_var += rate * (unbiased - self.running_var)
            self.num_batches_tracked += 1
        scale = self.weight / torch.sqrt(variance + self.eps)
        normed: Tensor = (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return normed


class _SumOfRanks(torch.autograd.Function):
    """The sum of a tensor over all processes, in the order of ranks; so is its gradient."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        return _sum_of_ranks(value)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return _sum_of_ranks(gradients[0])


def _sum_of_ranks(value: Tensor) -> Tensor:
    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(_process_count())]
    distributed.all_gather(parts, value.contiguous())
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _process_count() -> int:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


class FrozenBatchNorm(nn.Module):
    """Batch norm by fixed figures, scales and shifts: all four are buffers, nothing is trained or tracked.

    For fine-tuning with batches too small for figures of their own, as detection does.
    Shape: (N, channels, H, W) -> (N, channels, H, W).
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))  # for batch norm's weights, which have it

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, in training too, as batch norm does in eval mode."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def make_norm(name: str, channels: int, *, size: int) -> nn.Module:
    """Return the norm of `ModelSpec.norm` for maps of `channels`.

    Args:
        name: batch, ghost, sync, group or frozen.
        channels: Channels of the map.
        size: Images of a ghost batch, or number of groups; the others have none.
    """
    if name == "ghost":
        return GhostBatchNorm(channels, size=size)
    if name == "group":
        return nn.GroupNorm(size, channels)
    if name == "frozen":
        return FrozenBatchNorm(channels)
    return SyncedBatchNorm(channels) if name == "sync" else nn.BatchNorm2d(channels)
