"""A network as the trunk of another: maps at several scales, one vector an image, another head."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from torch import Tensor, nn

from resnet_models.draws import SampleDraws
from resnet_models.errors import SpecError
from resnet_models.heads import make_exits
from resnet_models.init import initialise
from resnet_models.receptive import Level, receptive_levels
from resnet_models.resnet import ResNet, check_images

STEM_LEVEL = 0
"""Number of the map behind the stem; stages count from 1."""


class Backbone(nn.Module):
    """The maps of a network's stem and stages, for detection, segmentation and whatever else builds on features.

    Shape: (N, in_channels, H, W) -> one map a level, (N, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    Maps are as the next stage gets them, apart from the last stage's, which is finished as the classifier sees it:
    full pre-activation leaves its norm and activation to whatever follows.

    Args:
        network: Its weights are shared, not copied: training the backbone trains the network. Pooling, classifier and
            early exits stay with the network and are no part of the backbone.
        levels: Which maps, ascending: 0 is the stem's, 1 the first stage's, and so on; empty: all stages'.

    Raises:
        SpecError: A level is not there, or they are not ascending. From `forward`: as `ResNet`.
    """

    def __init__(self, network: ResNet, levels: Sequence[int] = ()) -> None:
        super().__init__()
        stages = network.spec.num_stages
        self.levels = tuple(levels) or tuple(range(1, stages + 1))
        if list(self.levels) != sorted(set(self.levels)) or not 0 <= self.levels[0] <= self.levels[-1] <= stages:
            raise SpecError(
                "levels",
                self.levels,
                f"the network has levels {STEM_LEVEL} (stem) to {stages}",
                "list some of them, ascending",
            )
        self.spec = network.spec
        deepest = self.levels[-1]
        self.stem = network.stem
        self.stages = nn.Sequential(*list(network.stages)[:deepest])  # no computing beyond the last map asked for
        self.norm = network.norm if deepest == stages else None
        self.activation = network.activation if deepest == stages else None
        self.pool = network.pool

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level's map."""
        widths = (self.spec.stem_width, *(channels * self.spec.expansion for channels in self.spec.stage_channels))
        return tuple(widths[level] for level in self.levels)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per pixel of each level's map, along one side."""
        strides = [self.spec.stem_stride]
        for stride in self.spec.stage_strides:
            strides.append(strides[-1] * stride)
        return tuple(strides[level] for level in self.levels)

    @property
    def embedding_size(self) -> int:
        """Length of the vectors that `embed` gives."""
        return self.channels[-1] * (2 if self.spec.head_pool == "concat" else 1)

    def receptive_fields(self) -> tuple[Level, ...]:
        """Return channels, stride and receptive field of each level, exactly (`receptive_levels`)."""
        facts = receptive_levels(self.spec)
        return tuple(facts[level] for level in self.levels)

    def forward(self, x: Tensor, *, sample_keys: Tensor | None = None) -> list[Tensor]:
        """Return the maps of the levels, finest first; `sample_keys` as in `ResNet.forward`."""
        check_images(self.spec, x, sample_keys=sample_keys, is_whole=self.levels[-1] == self.spec.num_stages)
        draws = None if sample_keys is None else SampleDraws(sample_keys)
        maps = []
        x = self.stem(x)
        if STEM_LEVEL in self.levels:
            maps.append(x)
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x, draws)
            if number in self.levels:
                maps.append(x)
        maps[-1] = self._finish(maps[-1])
        return maps

    def embed(self, x: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
        """Return one vector an image, (N, length): the deepest level's map pooled as the network's head does.

        With the last stage among the levels it is what the network's classifier sees.
        """
        pooled: Tensor = self.pool(self(x, sample_keys=sample_keys)[-1])
        return pooled

    def _finish(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def features_only(network: ResNet, levels: Sequence[int] = ()) -> Backbone:
    """Return the network as a `Backbone`; weights are shared.

    Args:
        network: Any network.
        levels: As in `Backbone`.
    """
    return Backbone(network, levels)


def with_head(network: ResNet, num_classes: int, *, seed: int = 0) -> ResNet:
    """Return the network with a new classifier (and early exits, where it has some) for another number of classes.

    Everything else is shared with the given network, which keeps its own head: training one trains the trunk of both.
    The new head is drawn from `seed`, by the rule of `initialise`.

    Args:
        network: Any network.
        num_classes: Outputs, at least 1.
        seed: Seed of the new weights.

    Raises:
        SpecError: `num_classes` is out of range.
    """
    if num_classes < 1:
        raise SpecError("num_classes", num_classes, "a network needs outputs", "give 1 or more")
    renewed = copy(network)
    renewed._modules = network._modules.copy()
    renewed.spec = replace(network.spec, num_classes=num_classes)
    renewed.head = nn.Linear(network.head.in_features, num_classes)
    renewed.exits = make_exits(renewed.spec)
    new = [renewed.head, *([] if renewed.exits is None else [renewed.exits])]
    for module in new:
        initialise(module, seed=seed)
        module.to(network.head.weight.device, network.head.weight.dtype).train(network.training)
    return renewed
