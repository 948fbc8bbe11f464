"""The non-linearities that a network can be built with."""

from __future__ import annotations

from torch import nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "hard_swish": nn.Hardswish,
}
_WITHOUT_INPUT = ("relu", "leaky_relu")  # their gradient needs the output alone, so that the input may be overwritten


def make_activation(name: str, *, inplace: bool = True) -> nn.Module:
    """Return the non-linearity of `ModelSpec.activation`, in place where that is wanted and saves memory."""
    kind = _ACTIVATIONS[name]
    return kind(inplace=True) if inplace and name in _WITHOUT_INPUT else kind()
