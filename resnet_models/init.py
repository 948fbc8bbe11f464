"""Weights at the start of training: He's normal for convolutions, norms as identity, a uniform classifier."""

from __future__ import annotations

import math

import torch
from torch import nn

from resnet_models.blocks.residual import ResidualBlock


def initialise(network: nn.Module, *, seed: int, zero_init_last: bool = False) -> None:
    """Set every weight of `network` in place, as a function of its structure and the seed alone.

    Convolutions: normal with variance 2 / fan-out (He et al., arXiv:1502.01852, eq. 14), biases 0. Classifiers: uniform
    within 1 / sqrt(fan-in), torch's own default. `zero_init_last` starts every block as its shortcut (arXiv:1706.02677,
    sec. 5.1).
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    if zero_init_last:
        for module in network.modules():
            if isinstance(module, ResidualBlock) and isinstance(module.last_norm, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.zeros_(module.last_norm.weight)
