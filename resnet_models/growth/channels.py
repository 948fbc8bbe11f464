"""Which old channel each new one copies, and what that does to a weight and to its gradient (Net2Net)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from resnet_models.errors import SpecError


@dataclass(frozen=True, eq=False)
class ChannelMap:
    """New channel j holds what old channel `source[j]` held; every old channel is held at least once."""

    source: Tensor
    """int64 (new channels,)."""
    old: int
    """Number of old channels."""

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return bool(torch.equal(self.source, torch.arange(self.old)))

    @cached_property
    def copies(self) -> Tensor:
        """How many new channels hold the same as each new one: int64 (new channels,)."""
        return torch.bincount(self.source, minlength=self.old)[self.source]

    @cached_property
    def is_copy(self) -> Tensor:
        """Which new channels hold what an earlier one holds already: bool (new channels,)."""
        first = torch.full((self.old,), len(self.source))
        first.scatter_reduce_(0, self.source, torch.arange(len(self.source)), "amin")
        return first[self.source] != torch.arange(len(self.source))

    def twice(self) -> ChannelMap:
        """Return the map of the channels side by side with themselves, as a concatenating pool makes them."""
        return ChannelMap(torch.cat([self.source, self.source + self.old]), 2 * self.old)


def same_channels(channels: int) -> ChannelMap:
    """Return the map that changes nothing."""
    return ChannelMap(torch.arange(channels), channels)


class MapMaker:
    """Makes the maps of one widening, as a function of the order of its calls and the seed.

    A widening without need of more copies each old channel as often as any other, give or take one, the extra ones
    chosen by the seed (arXiv:1511.05641, eq. 8, draws with replacement; even copies keep the scales of gradients
    alike). Group norm takes its figures over neighbouring channels: there, each channel is repeated in place.
    """

    def __init__(self, *, seed: int, repeats: bool) -> None:
        """Take the seed, and whether channels are repeated in place."""
        self._generator = torch.Generator().manual_seed(seed)
        self._repeats = repeats

    def free(self, old: int, new: int, where: str) -> ChannelMap:
        """Return the map of channels that no shortcut ties to others.

        Raises:
            SpecError: There would be fewer channels, or uneven repeats under group norm.
        """
        if new < old:
            raise SpecError(
                "channels", new, f"{where} has {old} already", "give at least as many: widening takes none away"
            )
        if not self._repeats:
            return ChannelMap(torch.cat([torch.arange(old), self._extra(old, new - old)]), old)
        if new % old:
            raise SpecError(
                "channels",
                new,
                f"{where} has {old}, and a group norm keeps its figures only if each is repeated alike",
                f"use a multiple, for example {new // old * old} or {(new // old + 1) * old}",
            )
        return ChannelMap(torch.arange(new) // (new // old), old)

    def padded(self, entering: ChannelMap, old: int, new: int, where: str) -> ChannelMap:
        """Return the map behind a shortcut that fills up with zeros: what enters stays in front.

        Raises:
            SpecError: The zeros are too few for the old channels that had them.
        """
        if self._repeats:
            return self.free(old, new, where)
        filled, fills = old - entering.old, new - len(entering.source)
        if fills < filled or (filled == 0 and fills > 0):
            raise SpecError(
                "channels",
                new,
                f"{where} has {old}, {filled} of them filled with zeros by its shortcut, and would have {fills} filled",
                f"use {len(entering.source) + filled}{'' if filled == 0 else ' or more'}, or widen all stages alike",
            )
        extra = torch.cat([torch.arange(filled), self._extra(filled, fills - filled)]) + entering.old
        return ChannelMap(torch.cat([entering.source, extra]), old)

    def grouped(self, groups: tuple[int, int], channels: tuple[int, int], where: str) -> ChannelMap:
        """Return the map of channels in groups (old, new): whole groups are copied, and channels inside their group.

        Raises:
            SpecError: There would be fewer channels or groups, or uneven repeats under group norm.
        """
        inside = tuple(count // of for count, of in zip(channels, groups, strict=True))
        if groups[0] == groups[1]:
            within = self.free(inside[0], inside[1], f"a group of {where}")
            group_source = torch.arange(groups[0])
        elif self._repeats:
            raise SpecError(
                "cardinality", groups[1], "group norm would mix copied groups of channels", "leave it as it is"
            )
        else:
            within = self.free(inside[0], inside[1], f"a group of {where}")
            if groups[1] < groups[0]:
                raise SpecError(
                    "cardinality", groups[1], f"{where} has {groups[0]} groups already", "give at least as many"
                )
            group_source = torch.cat([torch.arange(groups[0]), self._extra(groups[0], groups[1] - groups[0])])
        return ChannelMap((group_source[:, None] * inside[0] + within.source).flatten(), channels[0])

    def _extra(self, old: int, count: int) -> Tensor:
        rounds = [torch.randperm(old, generator=self._generator) for _ in range(-(-count // max(old, 1)))]
        return torch.cat([torch.arange(0), *rounds])[:count]


@dataclass(frozen=True)
class TensorGrowth:
    """How one tensor of the network grows: its first axis makes channels, its second takes them in."""

    makes: ChannelMap | None = None
    """Channels of axis 0; None: they stay."""
    takes: ChannelMap | None = None
    """Channels of axis 1, all groups together; None: there is no such axis, or it stays."""
    groups: tuple[int, int] = (1, 1)
    """Groups of a convolution, old and new."""

    def weight(self, old: Tensor) -> Tensor:
        """Return the weight that computes the same: rows copied, columns copied and divided by their copies."""
        grown = self._spread(old)
        return grown if self.takes is None else (grown / self._column_copies(grown)).to(old.dtype)

    def gradient(self, old: Tensor, *, power: int) -> Tensor:
        """Return what the new weight's gradient (its square with `power` 2) is where the old one's was `old`.

        Copies of a channel share what the channel got before: each gets one part of its copies. Columns share
        nothing, since every column sees its channel whole.
        """
        grown = self._spread(old)
        if self.makes is None:
            return grown
        copies = self.makes.copies.to(old.device).reshape(-1, *(1,) * (old.dim() - 1))
        return (grown / copies**power).to(old.dtype)

    def _spread(self, old: Tensor) -> Tensor:
        grown = old.clone() if self.makes is None else old[self.makes.source.to(old.device)]
        if self.takes is None:
            return grown
        columns = self._columns().to(old.device)
        index = columns.reshape(*columns.shape, *(1,) * (old.dim() - 2)).expand(-1, -1, *old.shape[2:])
        return grown.gather(1, index.expand(len(grown), -1, *old.shape[2:]))

    def _columns(self) -> Tensor:
        """Return for each new row the old column of each of its new ones: (rows or 1, columns of a group)."""
        assert self.takes is not None
        old_groups, new_groups = self.groups
        columns = self.takes.source.reshape(new_groups, -1) % (self.takes.old // old_groups)
        return columns.repeat_interleave(self._rows_per_group(), dim=0)

    def _column_copies(self, grown: Tensor) -> Tensor:
        """Return for each new row how often it sees each of its columns."""
        assert self.takes is not None
        groups = self.takes.source.reshape(self.groups[1], -1)
        copies = (groups[:, :, None] == groups[:, None, :]).sum(2) if self.groups[1] > 1 else self.takes.copies[None]
        copies = copies.repeat_interleave(self._rows_per_group(), dim=0).to(grown.device)
        return copies.reshape(*copies.shape, *(1,) * (grown.dim() - 2))

    def _rows_per_group(self) -> int:
        if self.groups[1] == 1:
            return 1  # broadcast over all rows
        assert self.makes is not None, "a grouped convolution makes channels of its own"
        return len(self.makes.source) // self.groups[1]
