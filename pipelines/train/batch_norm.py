"""Batch norm over the global batch: with one worker torch's own, with more the same numbers from all of them.

Works on any torch.distributed backend, gloo on CPUs included, with unequal shares and with workers that hold no row
of a batch (torch's SyncBatchNorm needs GPUs and at least one row each). Statistics are merged in the order of ranks.

A global batch with a single value per channel has no variance: it is normalised by the running statistics, which it
leaves alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pipelines.train.collectives import World
from resnet_models.norm import SyncedBatchNorm


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over (N, H, W) of the global batch; parameters and buffers as in `nn.BatchNorm2d`."""

    def __init__(self, num_features: int, *, eps: float, momentum: float, world: World) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.world = world
        self.rate = momentum

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if self.world.size > 1:
            return self._over_all_workers(x)
        if x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)

    def _over_all_workers(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, variance, total = _global_moments(x.detach(), self.world)
        has_batch = total > 1  # stays on the device: asking for it here would make a GPU wait
        with torch.no_grad():
            rate = has_batch.to(mean.dtype) * self.rate
            unbiased = variance * (total / (total - 1).clamp(min=1))
            self.running_mean += rate * (mean.to(self.running_mean.dtype) - self.running_mean)
            self.running_var += rate * (unbiased.to(self.running_var.dtype) - self.running_var)
            self.num_batches_tracked += 1
            mean = torch.where(has_batch, mean, self.running_mean.to(mean.dtype))
            variance = torch.where(has_batch, variance, self.running_var.to(variance.dtype))
        result = _Normalise.apply(x, self.weight, self.bias, mean, variance, total, self.eps, self.world)
        assert isinstance(result, Tensor)
        return result


def has_global_norms(network: nn.Module) -> bool:
    """Return whether norms in training look at all workers' batch, which then must go through the network together."""
    return any(isinstance(module, GlobalBatchNorm2d) and module.training for module in network.modules())


def make_global(network: nn.Module, world: World) -> nn.Module:
    """Replace every `nn.BatchNorm2d` and `SyncedBatchNorm` of a network by one over the global batch; weights are kept.

    The two mean the same here, and are computed in one way.
    """
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d or type(child) is SyncedBatchNorm:
            norm = GlobalBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum or 0.1, world=world)
            norm.load_state_dict(child.state_dict())
            setattr(network, name, norm.to(child.weight.device, child.weight.dtype))
        else:
            make_global(child, world)
    return network


def _global_moments(x: Tensor, world: World) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance per channel over all workers, and the number of values per channel."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels, count = x.shape[1], x.numel() // x.shape[1]
    if count:
        variance, mean = torch.var_mean(x.to(dtype), dim=(0, 2, 3), correction=0)
    else:  # a worker without rows still takes part, with weight 0
        variance, mean = x.new_zeros(channels, dtype=dtype), x.new_zeros(channels, dtype=dtype)
    gathered = world.gather(torch.cat([mean, variance, mean.new_full((1,), float(count))]))
    means, variances, counts = gathered[:, :channels], gathered[:, channels:-1], gathered[:, -1:]
    total = counts.sum()
    mean = (counts * means).sum(0) / total.clamp(min=1)
    # Deviations from the merged mean, not E[x^2] - mean^2, which cancels in float32 (Chan et al. 1983).
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total.clamp(min=1)
    return mean, variance, total


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance functions of all workers' x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, total: Tensor, eps: float,
        world: World,
    ) -> Tensor:  # fmt: skip
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse, total)
        ctx.world = world
        scale = weight * inverse
        return torch.addcmul(_spread(bias - mean * scale, x), x, _spread(scale, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, weight, mean, inverse, total = ctx.saved_tensors
        sum_dy = dy.sum(dim=(0, 2, 3), dtype=mean.dtype)
        sum_dy_xhat = ((dy * x).sum(dim=(0, 2, 3), dtype=mean.dtype) - mean * sum_dy) * inverse
        # The parameters' gradients stay local: all gradients are summed over workers once, later.
        d_weight, d_bias = sum_dy_xhat.clone(), sum_dy.clone()
        sums = ctx.world.sum(torch.cat([sum_dy, sum_dy_xhat]))
        sums = sums / total.clamp(min=1) * (total > 1)
        mean_dy, mean_dy_xhat = sums.chunk(2)
        # dx = w/s (dy - mean(dy) - xhat mean(dy xhat)), as one line in x and dy per channel.
        slope = -weight * inverse * inverse * mean_dy_xhat
        constant = -weight * inverse * mean_dy - slope * mean
        dx = torch.addcmul(torch.addcmul(_spread(constant, x), x, _spread(slope, x)), dy, _spread(weight * inverse, x))
        return dx.to(x.dtype), d_weight.to(weight.dtype), d_bias.to(weight.dtype), None, None, None, None, None


def _spread(per_channel: Tensor, like: Tensor) -> Tensor:
    """Return (C,) as (1, C, 1, 1), in a type that the product with `like` keeps."""
    return per_channel.view(1, -1, 1, 1).to(like.dtype if like.dtype == torch.float64 else per_channel.dtype)
