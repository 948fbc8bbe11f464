"""From a network's portrait to what `plots` draws of it: which box says what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from pipelines.plots.network_diagram import Box, Column, DrawnBlock, NetworkDrawing

if TYPE_CHECKING:
    from pipelines.package.portrait import Portrait, Run
    from resnet_models.layers import Layer
    from resnet_models.spec import ModelSpec

_NORMS = {"batch": "BN", "ghost": "ghost BN", "sync": "sync BN", "group": "GN", "frozen": "frozen BN"}
_ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "leaky ReLU",
    "silu": "SiLU",
    "gelu": "GELU",
    "mish": "Mish",
    "hard_swish": "hard swish",
}
_GATES = {"se": "SE", "eca": "ECA"}
_DRAWN_APART = 2
"""Equal blocks up to this many are drawn each; more are folded into one."""


def make_drawing(portrait: Portrait) -> NetworkDrawing:
    """Return the drawing of a network."""
    words = _Words(portrait.spec)
    rows = {row["part"]: row for row in portrait.parts()}
    columns = []
    for part, inside in groupby(portrait.runs, key=lambda run: run.part):
        runs, row = list(inside), rows[part]
        shape = row["shape"]
        notes = [f"{shape[0]} values" if len(shape) == 1 else f"{shape[1]} x {shape[2]}, {shape[0]} channels"]
        if row["stride"]:
            notes.append(f"stride {row['stride']}, sees {row['receptive_field_px']} px")
        notes.append(f"{count_words(row['parameters'])} parameters")
        boxes: tuple[Box, ...] = ()
        blocks: tuple[DrawnBlock, ...] = ()
        if part == "stem":
            boxes = words.stem(runs[0].layers)
        elif part == "head":
            boxes = words.head(runs[0].layers)
        else:
            blocks = tuple(block for run in runs for block in words.blocks(run))
        title = f"stage {part.removeprefix('stage')}" if part.startswith("stage") else part
        columns.append(Column(title, tuple(notes), boxes, blocks))
    size = portrait.image_size_px
    about = (
        f"{count_words(portrait.parameters)} parameters, {count_words(portrait.macs)} multiply-adds an image of "
        f"{portrait.spec.in_channels} x {size} x {size}, {_depth_words(portrait)}"
    )
    return NetworkDrawing(portrait.name, (about,), tuple(columns))


def count_words(number: int) -> str:
    """Return a count as papers print it: 25.6 M, 4.09 G."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _depth_words(portrait: Portrait) -> str:
    blocks = sum(portrait.spec.stage_depths)
    return f"{blocks} blocks" if blocks > 1 else "1 block"


class _Words:
    """What boxes say in a network of this spec."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.norm, self.activation = _NORMS[spec.norm], _ACTIVATIONS[spec.activation]
        self.both = f"{self.norm}, {self.activation}"

    def blocks(self, run: Run) -> tuple[DrawnBlock, ...]:
        branch = self._branch([layer for layer in run.layers if not layer.is_beside])
        beside = self._shortcut([layer for layer in run.layers if layer.is_beside])
        after = {"original": self.activation, "norm_after_addition": self.both}.get(self.spec.settled_ordering, "")
        entry: tuple[Box, ...] = ()
        if "conv" in beside and branch[0].before:  # pre-activation: a projection sees the activated input
            entry, branch = (Box(branch[0].before, is_quiet=True),), (replace(branch[0], before=""), *branch[1:])
        if run.times <= _DRAWN_APART:
            return (DrawnBlock(branch, beside, after, entry=entry),) * run.times
        return (DrawnBlock(branch, beside, after, run.times, entry),)

    def _branch(self, layers: Sequence[Layer]) -> tuple[Box, ...]:
        convolutions = [layer for layer in layers if _is_convolution(layer)]
        boxes, gated = [], False
        for layer in layers:
            if _is_convolution(layer):
                is_last = layer is convolutions[-1]
                boxes.append(_with_groups(layer.kind, *self._around(is_last=is_last)))
            elif layer.is_gate:
                if not gated:
                    boxes.append(Box(f"{_GATES[self.spec.attention]} gate", is_quiet=True))
                gated = True
            elif "pool" in layer.kind or "blur" in layer.kind:
                boxes.append(Box(layer.kind, is_quiet=True))
        return tuple(boxes)

    def _around(self, *, is_last: bool) -> tuple[str, str]:
        """Return what stands before and after a convolution of a branch (arXiv:1603.05027, fig. 4)."""
        ordering = self.spec.settled_ordering
        if ordering == "full_preactivation":
            return self.both, ""
        if ordering == "relu_only_preactivation":
            return self.activation, self.norm
        if not is_last or ordering == "relu_before_addition":
            return "", self.both
        return "", "" if ordering == "norm_after_addition" else self.norm

    @staticmethod
    def _shortcut(layers: Sequence[Layer]) -> str:
        kinds = [layer.kind for layer in layers if "norm" not in layer.kind]
        return ", ".join(kinds)

    def stem(self, layers: Sequence[Layer]) -> tuple[Box, ...]:
        boxes: list[Box] = []
        convolutions = [layer for layer in layers if _is_convolution(layer)]
        is_open = self.spec.settled_ordering in ("full_preactivation", "relu_only_preactivation")
        for index, layer in enumerate(layers):
            if "norm" in layer.kind:
                continue
            if "whitening" in layer.kind:
                boxes.append(Box(layer.kind, after=self.activation))
            elif _is_convolution(layer):
                normed = index + 1 < len(layers) and "norm" in layers[index + 1].kind
                ends_open = is_open and layer is convolutions[-1]
                after = (self.norm if ends_open else self.both) if normed else ""
                boxes.append(_with_groups(layer.kind, "", after))
            else:
                boxes.append(Box(layer.kind, is_quiet=True))
        return tuple(boxes)

    def head(self, layers: Sequence[Layer]) -> tuple[Box, ...]:
        boxes = []
        ordering = self.spec.settled_ordering
        if ordering in ("full_preactivation", "relu_only_preactivation"):
            boxes.append(Box(self.both if ordering == "full_preactivation" else self.activation, is_quiet=True))
        for layer in layers:
            if "norm" not in layer.kind:
                dropout = f"dropout {self.spec.head_dropout:g}" if self.spec.head_dropout else ""
                is_classifier = layer.kind.startswith("fc ")
                boxes.append(Box(layer.kind, before=dropout if is_classifier else "", is_quiet=not is_classifier))
        return tuple(boxes)


def _is_convolution(layer: Layer) -> bool:
    return "conv," in layer.kind and not layer.is_gate


def _with_groups(kind: str, before: str, after: str) -> Box:
    """Return a convolution's box; its groups, which would not fit beside the rest, go below."""
    text, _, groups = kind.rpartition(", ")
    if not groups.endswith("groups"):
        return Box(kind, before, after)
    return Box(text, before, ", ".join(filter(None, (groups, after))))
