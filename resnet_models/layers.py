"""The layers of a network in the order in which an image meets them: shape, parameters, multiply-adds, window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from resnet_models.blocks.shortcut import ZeroPadShortcut
from resnet_models.norm import FrozenBatchNorm
from resnet_models.pooling import HEAD_POOLS, AveragePool, BlurPool, MaxPool
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec
from resnet_models.whitening import PatchWhitening


@dataclass(frozen=True)
class Window:
    """Which pixels of its input a layer looks at: `size` of them, one to `stride` apart for neighbouring outputs."""

    size: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def before(self) -> int:
        """First pixel that output 0 sees, counted from pixel 0."""
        return -self.padding

    @property
    def after(self) -> int:
        """Last pixel that output 0 sees."""
        return (self.size - 1) * self.dilation - self.padding


@dataclass(frozen=True)
class Layer:
    """One layer as it is called."""

    name: str
    """Its name in the state dict, e.g. stages.1.0.conv2."""
    kind: str
    """What it is, as papers write it: 3x3 conv, 128, /2."""
    shape: tuple[int, ...]
    """Shape of one image's output: (C, H, W), or (C,) behind the pooling."""
    parameters: int
    """Trained values."""
    macs: int
    """Multiply-adds of convolutions and linear layers for one image; norms, gates' products and sums left out."""
    window: Window
    """What it looks at; a layer that sees the whole map (gates, the head's pooling) counts as one pixel."""

    @property
    def part(self) -> str:
        """Stem, stage1, stage2, ..., or head."""
        first, _, rest = self.name.partition(".")
        if first == "stages":
            return f"stage{int(rest.partition('.')[0]) + 1}"
        return "stem" if first == "stem" else "head"

    @property
    def block(self) -> int:
        """Number of its block in the stage, from 0; -1 outside stages."""
        return int(self.name.split(".")[2]) if self.name.startswith("stages.") else -1

    @property
    def is_beside(self) -> bool:
        """Whether it is part of a block's shortcut."""
        return ".shortcut" in self.name

    @property
    def is_gate(self) -> bool:
        """Whether it belongs to a block's channel gates."""
        return ".attention." in self.name


def trace_layers(spec: ModelSpec, *, image_size_px: int) -> list[Layer]:
    """Return the layers of a settled spec for one square image; no weight is allocated.

    Activations and what is left out at random in training are not listed: they have neither weights nor windows.

    Raises:
        SpecError: The spec is not settled (`ModelSpec.for_images`), or the image is too small for it.
    """
    with torch.device("meta"):
        network = ResNet(shortened(spec)).eval()
        image = torch.empty(1, spec.in_channels, image_size_px, image_size_px)
    found: list[Layer] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.append(_describe(name, module, tuple(output.shape[1:])))

        return hook

    for name, module in network.named_modules():
        if isinstance(module, _LAYERS) and not name.startswith("exits."):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        network(image)
    return _lengthened(found, spec)


def shortened(spec: ModelSpec) -> ModelSpec:
    """Return the network with two blocks a stage at most: the others are like the second, in shape and in cost."""
    return replace(spec, depth=0, depths=tuple(min(2, depth) for depth in spec.stage_depths))


def _lengthened(layers: list[Layer], spec: ModelSpec) -> list[Layer]:
    """Return the layers with each stage's second block repeated as often as the spec has it."""
    whole: list[Layer] = []
    for part, inside in groupby(layers, key=lambda layer: layer.part):
        called = list(inside)
        whole += called
        if not part.startswith("stage"):
            continue
        stage = int(part.removeprefix("stage")) - 1
        second = [layer for layer in called if layer.block == 1]
        for number in range(2, spec.stage_depths[stage]):
            old, new = f"stages.{stage}.1.", f"stages.{stage}.{number}."
            whole += [replace(layer, name=layer.name.replace(old, new, 1)) for layer in second]
    return whole


_NORMS = (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm)
_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Conv2d,
    nn.Conv1d,
    nn.Linear,
    MaxPool,
    AveragePool,
    BlurPool,
    ZeroPadShortcut,
    PatchWhitening,
    *_NORMS,
    *HEAD_POOLS.values(),
)


def _describe(name: str, module: nn.Module, shape: tuple[int, ...]) -> Layer:
    parameters = sum(weight.numel() for weight in module.parameters(recurse=False) if weight.requires_grad)
    layer = Layer(name, type(module).__name__, shape, parameters, 0, Window())
    if isinstance(module, nn.Conv2d):
        size, stride, padding = module.kernel_size[0], module.stride[0], int(module.padding[0])
        macs = shape[1] * shape[2] * module.weight.numel()
        window = Window() if ".attention." in name else Window(size, stride, padding, module.dilation[0])
        kind = f"{size}x{size} conv, {shape[0]}{_by(stride)}"
        if module.groups > 1:
            kind += f", {module.groups} groups"
        return replace(layer, kind=f"gate: {kind}" if ".attention." in name else kind, macs=macs, window=window)
    if isinstance(module, nn.Linear):
        return replace(layer, kind=f"fc {module.out_features}", macs=module.weight.numel())
    if isinstance(module, PatchWhitening):
        return replace(
            layer,
            kind=f"3x3 whitening, {shape[0]}",
            macs=module.directions.numel() * shape[1] * shape[2],
            window=Window(3, 1, 1),
        )
    if isinstance(module, MaxPool):
        size = module.size
        window = Window(size, module.stride, module.padding)
        return replace(layer, kind=f"{size}x{size} max pool{_by(module.stride)}", window=window)
    if isinstance(module, AveragePool):
        side = module.stride
        return replace(layer, kind=f"{side}x{side} average pool{_by(side)}", window=Window(side, side))
    if isinstance(module, BlurPool):
        return replace(layer, kind=f"3x3 blur{_by(module.stride)}", window=Window(3, module.stride, 1))
    if isinstance(module, ZeroPadShortcut):
        kind = f"zero pad, {shape[0]}{_by(module.stride)}"
        return replace(layer, kind=kind, window=Window(1, module.stride))
    return replace(layer, kind=_PLAIN_KINDS.get(layer.kind, layer.kind))


_PLAIN_KINDS = {
    "BatchNorm2d": "batch norm",
    "GhostBatchNorm": "ghost batch norm",
    "SyncedBatchNorm": "synchronised batch norm",
    "FrozenBatchNorm": "frozen batch norm",
    "GroupNorm": "group norm",
    "GlobalAveragePool": "average pool",
    "GlobalMaxPool": "max pool over the map",
    "GeneralisedMeanPool": "generalised mean pool",
    "ConcatenatedPool": "average and max pool",
    "Conv1d": "gate: conv along the channels",
}


def _by(stride: int) -> str:
    return f", /{stride}" if stride > 1 else ""
