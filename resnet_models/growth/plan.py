"""Which channels of a network are the same ones, so that they must be widened alike: a map for every tensor."""

from __future__ import annotations

from torch import nn

from resnet_models.attention import EfficientChannelAttention, SqueezeExcitation
from resnet_models.blocks.residual import ResidualBlock
from resnet_models.blocks.shortcut import ProjectionShortcut, ZeroPadShortcut
from resnet_models.errors import SpecError
from resnet_models.growth.channels import ChannelMap, MapMaker, TensorGrowth, same_channels
from resnet_models.norm import FrozenBatchNorm
from resnet_models.pooling import ConcatenatedPool
from resnet_models.resnet import ResNet
from resnet_models.whitening import PatchWhitening


class WideningPlan:
    """How every tensor grows from one network to a wider one of the same structure.

    Channels flow from the stem through the blocks to the head; each convolution takes in the channels before it and
    makes new ones, norms and gates follow them, and shortcuts tie what leaves a block to what enters it.
    """

    def __init__(self, old: ResNet, new: ResNet, *, seed: int) -> None:
        """Plan at once.

        Raises:
            SpecError: A shortcut, gate or norm does not let these channels be copied.
        """
        self.growths: dict[str, TensorGrowth] = {}
        """Name of each tensor that changes -> its growth."""
        self._old, self._new = old, new
        self._maker = MapMaker(seed=seed, repeats=old.spec.norm == "group")
        channels = self._stem()
        for stage, blocks in enumerate(old.stages):
            for index in range(len(list(blocks.children()))):
                channels = self._block(f"stages.{stage}.{index}", channels)
            if stage + 1 in old.spec.exits:
                self._ending(f"exits.{stage + 1}.", channels)
        self._ending("", channels)

    def _stem(self) -> ChannelMap:
        """Walk the stem's layers in order: it is a chain."""
        channels = same_channels(self._old.spec.in_channels)
        for name, layer in self._old.stem.named_modules():
            if isinstance(layer, PatchWhitening):
                channels = same_channels(layer.out_channels)
            elif isinstance(layer, nn.Conv2d):
                made = self._free(f"stem.{name}")
                self._convolution(f"stem.{name}", channels, made)
                channels = made
            elif _is_norm(layer):
                self._norm(f"stem.{name}", channels)
        return channels

    def _block(self, name: str, entering: ChannelMap) -> ChannelMap:
        block = self._old.get_submodule(name)
        assert isinstance(block, ResidualBlock)
        leaving = self._shortcut(name, entering)
        convolutions = [layer for layer in ("conv1", "conv2", "conv3") if hasattr(block, layer)]
        inner = self._inner(name, convolutions)
        channels = entering
        for number, layer in enumerate(convolutions, start=1):
            made = leaving if layer == convolutions[-1] else inner
            self._convolution(f"{name}.{layer}", channels, made)
            is_before = self._old.spec.settled_ordering == "full_preactivation"
            self._norm(f"{name}.norm{number}", channels if is_before else made)
            channels = made
        if block.attention is not None:
            self._attention(f"{name}.attention", leaving)
        return leaving

    def _inner(self, name: str, convolutions: list[str]) -> ChannelMap:
        """Return the map of the channels inside a block; both inner maps of a bottleneck go alike."""
        if len(convolutions) == 2:
            return self._free(f"{name}.conv1")
        old, new = self._convolutions(f"{name}.conv2")
        groups, channels = (old.groups, new.groups), (old.out_channels, new.out_channels)
        return self._maker.grouped(groups, channels, f"{name}.conv2")

    def _shortcut(self, name: str, entering: ChannelMap) -> ChannelMap:
        old, new = (network.get_submodule(f"{name}.shortcut") for network in (self._old, self._new))
        width = len(entering.source)
        if type(old) is not type(new):
            raise SpecError(
                "channels",
                width,
                f"the shortcut of {name} is {_SHORTCUTS[type(old)]}, and with these channels would be "
                f"{_SHORTCUTS[type(new)]}",
                "widen the stem and the stages on both sides alike",
            )
        last = "conv3" if hasattr(self._old.get_submodule(name), "conv3") else "conv2"
        if isinstance(old, ProjectionShortcut):
            leaving = self._free(f"{name}.{last}")
            self._convolution(f"{name}.shortcut.conv", entering, leaving)
            if _is_norm(old.norm):
                self._norm(f"{name}.shortcut.norm", leaving)
            return leaving
        if isinstance(old, ZeroPadShortcut):
            before, after = self._convolutions(f"{name}.{last}")
            return self._maker.padded(entering, before.out_channels, after.out_channels, f"{name}.{last}")
        return entering

    def _attention(self, name: str, channels: ChannelMap) -> None:
        gates = self._old.get_submodule(name)
        if isinstance(gates, SqueezeExcitation):
            inner = self._free(f"{name}.reduce")
            self._convolution(f"{name}.reduce", channels, inner)
            self._convolution(f"{name}.expand", inner, channels)
        elif isinstance(gates, EfficientChannelAttention) and not channels.is_identity:
            raise SpecError(
                "attention",
                "eca",
                "its gates look at neighbouring channels, and copies have other neighbours",
                "widen base_width or cardinality only, which leaves the gated channels, or use attention=se",
            )

    def _ending(self, prefix: str, channels: ChannelMap) -> None:
        """Plan a final norm where there is one, the pooling and the classifier."""
        old = self._old.get_submodule(prefix.rstrip("."))
        if getattr(old, "norm", None) is not None:
            self._norm(f"{prefix}norm", channels)
        if isinstance(old.pool, ConcatenatedPool):
            channels = channels.twice()
        self._note(f"{prefix}head.weight", TensorGrowth(takes=channels))

    def _free(self, name: str) -> ChannelMap:
        old, new = self._convolutions(name)
        return self._maker.free(old.out_channels, new.out_channels, name)

    def _convolutions(self, name: str) -> tuple[nn.Conv2d, nn.Conv2d]:
        old, new = self._old.get_submodule(name), self._new.get_submodule(name)
        assert isinstance(old, nn.Conv2d)
        assert isinstance(new, nn.Conv2d)
        return old, new

    def _convolution(self, name: str, takes: ChannelMap, makes: ChannelMap) -> None:
        old, new = self._convolutions(name)
        assert (takes.old, len(takes.source)) == (old.in_channels, new.in_channels), name
        assert (makes.old, len(makes.source)) == (old.out_channels, new.out_channels), name
        self._note(f"{name}.weight", TensorGrowth(makes=makes, takes=takes, groups=(old.groups, new.groups)))
        if old.bias is not None:
            self._note(f"{name}.bias", TensorGrowth(makes=makes))

    def _norm(self, name: str, channels: ChannelMap) -> None:
        for tensor, value in self._old.get_submodule(name).state_dict().items():
            if value.dim():
                self._note(f"{name}.{tensor}", TensorGrowth(makes=channels))

    def _note(self, name: str, growth: TensorGrowth) -> None:
        if any(channels is not None and not channels.is_identity for channels in (growth.makes, growth.takes)):
            self.growths[name] = growth


_SHORTCUTS: dict[type[nn.Module], str] = {
    nn.Identity: "the identity",
    ZeroPadShortcut: "zero padding",
    ProjectionShortcut: "a projection",
}


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm))
