"""How much of the image one value of each feature map depends on, and how far apart neighbouring values look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from resnet_models.layers import Layer, Window, trace_layers
from resnet_models.spec import ModelSpec


@dataclass(frozen=True)
class Level:
    """The map behind the stem or a stage."""

    part: str
    """stem, stage1, stage2, ..."""
    channels: int
    stride: int
    """Pixels of the image between neighbouring values of the map."""
    receptive_field_px: int
    """Side of the square of pixels on which a value depends, the border aside."""
    first_px: int
    """First pixel that value 0 depends on, counted from the image's first; negative: in the padding."""


@dataclass(frozen=True)
class _Reach:
    """Pixels of the image that value 0 of a map depends on, and the step from value to value."""

    stride: int = 1
    first: int = 0
    last: int = 0

    def through(self, window: Window) -> _Reach:
        """Return the reach behind a layer: its first pixel's first, its last pixel's last."""
        return _Reach(
            self.stride * window.stride,
            self.first + self.stride * window.before,
            self.last + self.stride * window.after,
        )

    def through_all(self, layers: Iterable[Layer]) -> _Reach:
        """Return the reach behind layers in a row."""
        reach = self
        for layer in layers:
            reach = reach.through(layer.window)
        return reach

    def joined(self, other: _Reach) -> _Reach:
        """Return the reach of a sum of two maps."""
        return _Reach(self.stride, min(self.first, other.first), max(self.last, other.last))


def receptive_levels(spec: ModelSpec) -> list[Level]:
    """Return stride and receptive field behind the stem and each stage of a settled spec, by exact arithmetic.

    With r pixels seen and a stride of j, a layer of kernel k, dilation d and stride s leads to r + (k - 1) d j and
    j s (Araujo et al. 2019, doi:10.23915/distill.00021, eq. 2); a residual block sees what its branch or its shortcut
    sees, the two of which may lie differently (2x2 pooling against 3x3). Gates and the head's pooling, which see the
    whole map, are left out.

    Raises:
        SpecError: The spec is not settled (`ModelSpec.for_images`).
    """
    # Windows do not depend on the image, as long as it is large enough to be taken.
    layers = trace_layers(spec, image_size_px=max(spec.min_image_px, 4 * spec.total_stride))
    return levels_of(spec, layers)


def levels_of(spec: ModelSpec, layers: Iterable[Layer]) -> list[Level]:
    """Return what `receptive_levels` does, from layers at hand."""
    reach = _Reach()
    levels = []
    for part, inside in groupby(layers, key=lambda layer: layer.part):
        if part == "head":
            break
        channels = spec.stem_width
        for number, block in groupby(inside, key=lambda layer: layer.block):
            called = list(block)
            if number < 0:
                reach = reach.through_all(called)
                continue
            branch = reach.through_all(layer for layer in called if not layer.is_beside)
            reach = branch.joined(reach.through_all(layer for layer in called if layer.is_beside))
        if part != "stem":
            channels = spec.stage_channels[int(part.removeprefix("stage")) - 1] * spec.expansion
        levels.append(Level(part, channels, reach.stride, reach.last - reach.first + 1, reach.first))
    return levels
