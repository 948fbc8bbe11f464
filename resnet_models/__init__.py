"""Residual networks described by a frozen specification and built with plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnet_models.named import create as create


def __getattr__(name: str) -> object:
    """Load `create` when it is asked for: descriptions are read where torch is not."""
    if name != "create":
        raise AttributeError(f"module 'resnet_models' has no attribute {name!r}")
    from resnet_models.named import create as found

    return found
