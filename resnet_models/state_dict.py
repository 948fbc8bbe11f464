"""Weights as data: safetensors bytes, strict loading that names the first mismatch, torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from resnet_models.spec import ModelSpec


class WeightsError(ValueError):
    """Weights that are unreadable or belong to another network; names the first tensor that differs."""


def pack_weights(state: Mapping[str, Tensor]) -> bytes:
    """Return a state dict as safetensors bytes, dense and in plain layout: equal weights give equal bytes."""
    data: bytes = save_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())})
    return data


def unpack_weights(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of safetensors bytes, on the CPU.

    Raises:
        WeightsError: The bytes are no safetensors file, or a cut one.
    """
    try:
        state: dict[str, Tensor] = load_safetensors(data)
    except SafetensorError as error:
        raise WeightsError(f"the weights are no readable safetensors file: {error}") from error
    return state


def load_strict(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `network`: every tensor present, none left over, shapes and types equal.

    Raises:
        WeightsError: Names the first tensor that does not fit; the network is then unchanged.
    """
    check_fits(network, state)
    network.load_state_dict(dict(state))


def check_fits(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse weights of another network; one on torch's meta device will do, so that nothing is allocated before.

    Raises:
        WeightsError: Names the first tensor that does not fit.
    """
    own = network.state_dict()
    for name, tensor in own.items():
        given = state.get(name)
        if given is None:
            raise WeightsError(f"the weights lack {name}, which the network has with shape {list(tensor.shape)}")
        if given.shape != tensor.shape:
            raise WeightsError(f"{name} has shape {list(given.shape)}; the network's has {list(tensor.shape)}")
        if given.dtype != tensor.dtype:
            raise WeightsError(f"{name} is {given.dtype}; the network's is {tensor.dtype}")
    for name in state:
        if name not in own:
            raise WeightsError(f"the weights hold {name}, which the network lacks")


_TORCHVISION_NAMES: tuple[tuple[str, str], ...] = (
    (r"^conv1\.", "stem.conv."),
    (r"^bn1\.", "stem.norm."),
    (r"^layer(\d+)\.", "stages.{stage}."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "head."),
)


def from_torchvision(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Return a torchvision ResNet's state dict under our names, ready for `load_strict`.

    Raises:
        WeightsError: The spec is none of torchvision's kind: imagenet stem, projection shortcuts, no pre-activation.
    """
    if spec.stem != "imagenet" or spec.shortcut != "projection" or spec.is_preactivation:
        raise WeightsError(
            f"torchvision has no network with stem={spec.stem}, shortcut={spec.shortcut}, block={spec.block}; "
            "its weights fit stem=imagenet, shortcut=projection and block=basic or bottleneck"
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = name
        for pattern, replacement in _TORCHVISION_NAMES:
            if "{stage}" in replacement:
                ours = re.sub(pattern, lambda found: f"stages.{int(found[1]) - 1}.", ours)
            else:
                ours = re.sub(pattern, replacement, ours)
        renamed[ours] = tensor
    return renamed


def count_nonfinite(state: Mapping[str, Tensor]) -> int:
    """Return how many values are infinite or not a number: such weights are damaged or diverged."""
    return sum(int((~torch.isfinite(tensor)).sum()) for tensor in state.values() if tensor.is_floating_point())


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that hold infinities or values that are no numbers.

    Raises:
        WeightsError: Names the first tensor, and how many of its values.
    """
    for name, tensor in state.items():
        if bad := count_nonfinite({name: tensor}):
            raise WeightsError(f"{name} holds {bad} values that are infinite or not a number, of {tensor.numel()}")
