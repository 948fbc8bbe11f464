"""How much memory a training step needs: what is kept for the backward pass, counted without computing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_models.layers import shortened
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that a training step holds in float32, apart from passing workspace."""

    activations: dict[str, int]
    """Kept for the backward pass by part (stem, stage1, ..., head) for the whole batch."""
    parameters: int
    """Weights and norm statistics."""
    gradients: int
    batch_size: int

    @property
    def activation_bytes(self) -> int:
        """Kept for the backward pass by all parts."""
        return sum(self.activations.values())

    def total_bytes(self, *, optimizer_slots: int = 1) -> int:
        """Return all of it with the optimiser's state: one value a parameter for SGD with momentum, two for AdamW."""
        return self.activation_bytes + self.parameters + self.gradients * (1 + optimizer_slots)


def training_memory(spec: ModelSpec, *, image_size_px: int, batch_size: int) -> TrainingMemory:
    """Return the memory of a training step of a settled spec on square images, to the byte.

    A forward on torch's meta device says which tensors autograd keeps; each memory counts once, whoever shares it, and
    parameters and the images themselves do not. Repeated blocks are run once and multiplied. A CPU keeps two values a
    channel less for a frozen norm; activation checkpointing (`checkpoint_activations`) and half precision need less.

    Raises:
        SpecError: The spec is not settled (`ModelSpec.for_images`), or the image is too small for it.
    """
    with torch.device("meta"):
        network = ResNet(shortened(spec)).train()
        images = torch.empty(batch_size, spec.in_channels, image_size_px, image_size_px)
    kept = _kept_by_place(network, images)
    activations: dict[str, int] = {}
    parameters = gradients = 0
    for part, number, modules in _places(network):
        # Blocks from the third on are like the second (`shortened`).
        times = spec.stage_depths[int(part.removeprefix("stage")) - 1] - 1 if number == 1 else 1
        activations[part] = activations.get(part, 0) + times * kept.get((part, number), 0)
        for tensor in _held(modules):
            parameters += times * _bytes(tensor)
        gradients += times * sum(_bytes(weight) for weight in _weights(modules) if weight.requires_grad)
    return TrainingMemory(activations, parameters, gradients, batch_size)


_Place = tuple[str, int]


def _places(network: ResNet) -> Iterator[tuple[str, int, list[nn.Module]]]:
    """Yield (part, number of the block in its stage or -1, modules); everything behind the stages is the head."""
    yield "stem", -1, [network.stem]
    for stage, blocks in enumerate(network.stages):
        for number, block in enumerate(blocks.children()):
            yield f"stage{stage + 1}", number, [block]
    yield "head", -1, [module for name, module in network.named_children() if name not in ("stem", "stages")]


def _kept_by_place(network: ResNet, images: Tensor) -> dict[_Place, int]:
    """Return the bytes that a forward keeps, by the place where each memory is first kept."""
    own = {_identity(tensor) for tensor in (*network.parameters(), *network.buffers(), images)}
    seen: dict[int, Tensor] = {}  # the tensors themselves, so that no identity is used twice
    kept: dict[_Place, int] = {}
    here: list[_Place] = [("stem", -1)]

    def keep(tensor: Tensor) -> Tensor:
        key = _identity(tensor)
        if key not in own and key not in seen:
            seen[key] = tensor
            kept[here[0]] = kept.get(here[0], 0) + tensor.untyped_storage().nbytes()
        return tensor

    for part, number, modules in _places(network):
        if part.startswith("stage"):
            modules[0].register_forward_pre_hook(lambda _m, _i, place=(part, number): here.__setitem__(0, place))
    network.stages[-1].register_forward_hook(lambda _m, _i, _o: here.__setitem__(0, ("head", -1)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(images)
    del logits
    return kept


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # an address is 0 for all tensors on the meta device


def _held(modules: list[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _weights(modules: list[nn.Module]) -> Iterator[nn.Parameter]:
    for module in modules:
        yield from module.parameters()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
