"""Which split an image goes to: a pure function of its id, its label and a small plan made from the listing.

Every decision is a comparison of the image's hash (or its group's hash, or its time) with two cut-offs, so that the
plan stays small, travels with the units, and holds for images that are appended later.
"""

from __future__ import annotations

import bisect
import hashlib
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import ConfigError
from pipelines.ingest.blocks import block_ends, clock_of, read_time, time_cutoffs, time_fault
from pipelines.ingest.config import SplitConfig
from pipelines.sources.base import Entry, Member

logger = logging.getLogger(__name__)

SPLITS = ("test", "val", "train")
"""In the order of the hash: the lowest hashes are test, the highest train."""

HASH_BITS = 64
NO_LABEL = ""
"""Key of the cut-offs for images without one label, and for labels that the plan has not seen."""


@dataclass(frozen=True)
class SplitPlan:
    """The decision for every image: `cutoffs` per label are (end of test, end of val) on the hash's scale.

    `given` names the splits that the source decides; with it, cut-offs apply only to images given as train. With
    groups the hash is the group's; with times `since` are the first times of test and of val instead.
    """

    by: str
    seed: int
    shares: Mapping[str, float]
    cutoffs: Mapping[str, tuple[int, int]]
    given: tuple[str, ...] = ()
    column: str = ""
    """The carried column that holds the group or the time."""
    clock: str = ""
    """How times are written: "number" or "date"."""
    since: tuple[float | None, float | None] = (None, None)

    def split_of(
        self, image_id: str, label: object = None, given_split: str | None = None, value: str | None = None
    ) -> str:
        """Return "train", "val" or "test".

        Args:
            image_id: the image.
            label: its class; whatever is no class name (a list of them, None) goes by the nominal cut-offs.
            given_split: what the source says.
            value: its group or time, where the plan has a `column`. Without a group it is a group of its own, without
                a time it is for training.
        """
        if self.by == "time":
            return self._split_at(read_time(value, self.clock))
        if self.by == "group":
            return self._split_below(split_hash(self.seed, _group_of(value) or image_id), NO_LABEL)
        if self.given and given_split != "train":
            return given_split or "train"
        return self._split_below(split_hash(self.seed, image_id), label if isinstance(label, str) else NO_LABEL)

    def place(self, image: Entry | Member, carried: Sequence[str]) -> str:
        """Return the split of a listed or read image, given the names of its carried columns."""
        value = image.carried[carried.index(self.column)] if self.column and image.carried else None
        return self.split_of(image.image_id, image.label, image.given_split, value)

    def check(self, entries: Sequence[Entry], carried: Sequence[str], *, tells_keys: bool = True) -> None:
        """Check that newcomers have what the plan divides by.

        Raises:
            ConfigError: the column is missing, or a time cannot be read.
        """
        values = _column_values(entries, carried, self.column, self.by) if self.column else []
        for entry, value in zip(entries, values, strict=True) if self.by == "time" else ():
            if read_time(value, self.clock) is None:
                raise time_fault(self.column, value, entry.key if tells_keys else "")

    def _split_below(self, value: int, label: str) -> str:
        test_end, val_end = self.cutoffs.get(label) or self.cutoffs[NO_LABEL]
        return "test" if value < test_end else "val" if value < val_end else "train"

    def _split_at(self, time: float | None) -> str:
        for split, since in zip(("test", "val"), self.since, strict=True):
            if time is not None and since is not None and time >= since:
                return split
        return "train"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; cut-offs as 16 hex digits, since many readers of JSON round large integers."""
        values = {
            "by": self.by,
            "seed": self.seed,
            "shares": dict(self.shares),
            "given": list(self.given),
            "cutoffs": {label: [f"{value:016x}" for value in pair] for label, pair in sorted(self.cutoffs.items())},
        }
        if self.column:
            values |= {"column": self.column, "clock": self.clock, "since": list(self.since)}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SplitPlan:
        """Build from `to_json`'s values."""
        cutoffs = {label: (int(pair[0], 16), int(pair[1], 16)) for label, pair in values["cutoffs"].items()}
        plan = cls(values["by"], values["seed"], dict(values["shares"]), cutoffs, tuple(values["given"]))
        if "column" not in values:
            return plan
        test_from, val_from = values["since"]
        return replace(plan, column=values["column"], clock=values["clock"], since=(test_from, val_from))


@dataclass
class _Deficits:
    """How many images each split is owed so far, over the classes already decided."""

    owed: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0.0))

    def count(self, number: int, shares: Mapping[str, float]) -> dict[str, int]:
        """Divide the images of one class: floors first, each left-over to the split that is owed most."""
        counts = {split: int(shares[split] * number + 1e-9) for split in SPLITS}
        for split in SPLITS:
            self.owed[split] += shares[split] * number - counts[split]
        left = number - sum(counts.values())
        if counts["train"] == 0 and left > 0 and shares["train"] > 0:
            self._give("train", counts)  # a class that cannot be learned need not be measured
            left -= 1
        for _ in range(left):
            # ties go to train, which is last in SPLITS: a split without a share is never owed anything
            self._give(max(reversed(SPLITS), key=lambda split: self.owed[split]), counts)
        return counts

    def _give(self, split: str, counts: dict[str, int]) -> None:
        counts[split] += 1
        self.owed[split] -= 1


def split_hash(seed: int, image_id: str) -> int:
    """Return the 64-bit hash that orders images within a split plan."""
    return int.from_bytes(hashlib.sha256(f"split\0{seed}\0{image_id}".encode()).digest()[: HASH_BITS // 8], "big")


def make_split_plan(
    entries: Sequence[Entry], config: SplitConfig, carried: Sequence[str] = (), *, tells_keys: bool = True
) -> SplitPlan:
    """Return the plan for a listing; the order of entries does not matter.

    Args:
        entries: what the source holds.
        config: the shares, and by what images are divided.
        carried: names of the columns in `Entry.carried`.
        tells_keys: whether an error may name an image.

    Raises:
        ConfigError: `by: given` where images have no given split, `by: stratified` where none has one label, a group or
            time column that the source has not, or a time that is none.
    """
    usable = [entry for entry in entries if not entry.reason]
    by = _resolve_by(usable, config, tells_keys=tells_keys)
    shares = config.shares()
    if by == "group":
        return _group_plan(usable, config, carried)
    if by == "time":
        times = _column_values(usable, carried, config.time, by)
        clock = clock_of([entry.key if tells_keys else "" for entry in usable], times, config.time)
        since = time_cutoffs([time for value in times if (time := read_time(value, clock)) is not None], shares)
        return SplitPlan(by, config.seed, shares, {NO_LABEL: _nominal(shares)}, (), config.time, clock, since)
    given: tuple[str, ...] = ()
    if by == "given":
        given = tuple(split for split in SPLITS if any(entry.given_split == split for entry in usable))
        shares = _carved_shares(shares, given)
        usable = [entry for entry in usable if entry.given_split == "train"]
    cutoffs = {NO_LABEL: _nominal(shares)}
    if by != "hash":
        cutoffs |= _stratified_cutoffs(usable, config.seed, shares)
    return SplitPlan(by, config.seed, shares, cutoffs, given)


def _resolve_by(entries: Sequence[Entry], config: SplitConfig, *, tells_keys: bool) -> str:
    has_given = bool(entries) and all(entry.given_split for entry in entries)
    has_labels = any(isinstance(entry.label, str) for entry in entries)
    if config.by == "given" and not has_given:
        missing = next((entry.key for entry in entries if not entry.given_split), "") if tells_keys else "an image"
        raise ConfigError(
            f"split.by is given, and {missing} lies in no train, val or test folder",
            mend="split.by=stratified divides the images by class",
        )
    if config.by == "stratified" and not has_labels:
        several = any(entry.label for entry in entries)
        what = "images have several labels each" if several else "no image has a label (a class folder)"
        raise ConfigError(f"split.by is stratified, and {what}", mend="split.by=hash needs no labels")
    if config.by != "auto":
        return config.by
    if config.group or config.time:
        return "group" if config.group else "time"
    return "given" if has_given else "stratified" if has_labels else "hash"


def _column_values(entries: Sequence[Entry], carried: Sequence[str], column: str, by: str) -> list[str | None]:
    """Return what stands in a carried column, in the order of entries."""
    if column not in carried:
        raise ConfigError(
            f"split.{by} is {column}, and the source has no such column; it has {', '.join(carried) or 'none'}",
            mend="columns come from a table (labels=) or from Parquet; name one of them",
        )
    place = carried.index(column)
    return [entry.carried[place] for entry in entries]


def _group_of(value: str | None) -> str:
    """Return what a group's hash is made of; empty without one.

    As of labels, spaces around it and the way in which an accent is written (Unicode NFC) make no other group.
    """
    name = unicodedata.normalize("NFC", value).strip() if value else ""
    return f"group\0{name}" if name else ""


def _group_plan(entries: Sequence[Entry], config: SplitConfig, carried: Sequence[str]) -> SplitPlan:
    values = _column_values(entries, carried, config.group, "group")
    sizes: Counter[int] = Counter()
    groups = [_group_of(value) for value in values]
    for entry, group in zip(entries, groups, strict=True):
        sizes[split_hash(config.seed, group or entry.image_id)] += 1
    alone = sum(not group for group in groups)
    if alone:
        logger.warning("%d of %d images have no %s: each is a group of its own", alone, len(entries), config.group)
    hashes = sorted(sizes)
    shares = config.shares()
    ends = block_ends([sizes[value] for value in hashes], shares)
    test_end, val_end = (_cutoff(hashes, end, goal) for end, goal in zip(ends, _nominal(shares), strict=True))
    return SplitPlan("group", config.seed, shares, {NO_LABEL: (test_end, max(test_end, val_end))}, (), config.group)


def _carved_shares(shares: Mapping[str, float], given: Sequence[str]) -> dict[str, float]:
    """Return the shares by which images given as train are divided: what the source lacks is carved out of them."""
    carved = {split: 0.0 if split in given and split != "train" else shares[split] for split in SPLITS}
    for split in SPLITS:
        if split not in given and carved[split] > 0 and "train" in given and split != "train":
            logger.warning("the source has no %s split: it is carved out of its training images", split)
    total = sum(carved.values())
    return {split: share / total for split, share in carved.items()}


def _nominal(shares: Mapping[str, float]) -> tuple[int, int]:
    scale = 1 << HASH_BITS
    return int(shares["test"] * scale), int((shares["test"] + shares["val"]) * scale)


def _stratified_cutoffs(entries: Iterable[Entry], seed: int, shares: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    hashes: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry.label, str):  # a list of labels has no one class to be fair to
            hashes[entry.label].append(split_hash(seed, entry.image_id))
    deficits = _Deficits()
    nominal = _nominal(shares)
    cutoffs = {}
    for label in sorted(hashes, key=lambda name: split_hash(seed, name)):
        values = sorted(hashes[label])
        counts = deficits.count(len(values), shares)
        ends = (counts["test"], counts["test"] + counts["val"])
        test_end, val_end = (_cutoff(values, end, goal) for end, goal in zip(ends, nominal, strict=True))
        cutoffs[label] = (test_end, max(test_end, val_end))
        assert bisect.bisect_left(values, test_end) == ends[0]
        assert bisect.bisect_left(values, cutoffs[label][1]) == ends[1]
    return cutoffs


def _cutoff(values: Sequence[int], end: int, nominal: int) -> int:
    """Return the cut-off nearest to the nominal one that leaves exactly `end` sorted hashes below it."""
    lowest = values[end - 1] + 1 if end else 0
    highest = values[end] if end < len(values) else 1 << HASH_BITS
    return max(lowest, min(nominal, highest))
