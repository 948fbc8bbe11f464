"""What networks are really given while they train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from resnet_models.resnet import ResNet


@contextmanager
def training_inputs() -> Iterator[list[Tensor]]:
    """Collect the images (N, C, H, W) that networks are trained on."""
    inputs: list[Tensor] = []

    def keep(module: Any, given: Any) -> None:
        if isinstance(module, ResNet) and module.training:
            inputs.append(given[0].detach().clone())

    hook = register_module_forward_pre_hook(keep)
    try:
        yield inputs
    finally:
        hook.remove()
