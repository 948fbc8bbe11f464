"""What an address of a source says before anything is opened: a plain place, a pattern over one, or a known dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

TORCHVISION = "torchvision:"
_WILD = re.compile(r"[*?\[]")


class Pattern(NamedTuple):
    """A glob: `photos/2024-*/` is the folder `photos` and the pattern `2024-*`."""

    base: str
    """The folder above the first wildcard; keys are relative to it."""
    pattern: str
    """`*` and `?` stay within a name, `**` stands for any folders; what matches a folder takes all below it."""

    def matches(self, path: str) -> bool:
        """Return whether a path below `base` is meant."""
        return _matches(self.pattern.split("/"), path.split("/"))


def split_pattern(address: str) -> Pattern | None:
    """Return the base and pattern of an address, or None where it has no wildcard or is a path that stands."""
    if not _WILD.search(address) or ("://" not in address and os.path.exists(os.path.expanduser(address))):
        return None
    scheme, separator, rest = address.rpartition("://")
    parts = rest.strip("/").split("/") if separator else rest.rstrip("/").split("/")
    first = next(index for index, part in enumerate(parts) if _WILD.search(part))
    base = "/".join(parts[:first])
    is_absolute = not separator and rest.startswith("/") and not base
    return Pattern(
        scheme + separator + (base or ("/" if is_absolute else "" if separator else ".")), "/".join(parts[first:])
    )


def base_of(address: str) -> str:
    """Return the place that an address lies in: itself, or the folder that a pattern begins in."""
    pattern = split_pattern(address)
    return pattern.base if pattern else address


def default_name(address: str) -> str:
    """Return the name of a source: the last part of its path; of a pattern, of the folder that it begins in.

    So a pattern gives its images the ids that they have as part of the whole folder.
    """
    if address.startswith(TORCHVISION):
        return address.removeprefix(TORCHVISION).partition(":")[0]
    place = base_of(address).rstrip("/") or "/"
    if "://" not in place:
        place = os.path.abspath(os.path.expanduser(place))
    return place.rpartition("/")[2]


def is_virtual(address: str) -> bool:
    """Return whether an address names images without being a path: a pattern, or a dataset of torchvision."""
    return address.startswith(TORCHVISION) or split_pattern(address) is not None


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(pattern[1:], path[start:]) for start in range(len(path)))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])
