"""Copies of images, found over the small columns: which rows go by policy, and which labels contradict each other.

A picture that stands in two splits makes the held-out figure a lie. The rule for exact copies (the same source bytes),
unless the config says otherwise: the copy in the most held-out split stays (test, then val, then train), copies
elsewhere are dropped. Copies within one split stay: dropping them would change how often a picture is seen, which is
the data's own affair. What merely looks alike is counted, and goes only where the config says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.duplicates import FLAT_CONTRAST, HELD_OUT, comparable
from pipelines.dataset.near import MAX_ACCIDENTS, count_accidents, find_neighbours
from pipelines.dataset.receipt import ShardFile
from pipelines.dataset.tables import open_parquet
from pipelines.errors import DataError
from pipelines.ingest.config import DuplicatesConfig
from pipelines.storage import Storage

EXAMPLES = 50
LEAK, DUPLICATE, NEAR_LEAK, NEAR_DUPLICATE = "LEAK", "DUPLICATE", "NEAR_LEAK", "NEAR_DUPLICATE"
LABEL_CONFLICT = "LABEL_CONFLICT"
_COLUMNS = ["image_id", "source_sha256", "label", "key"]

Place = tuple[str, int]
"""Path of a shard and index of a row in it."""


@dataclass(frozen=True)
class Copy:
    """One row that also stands elsewhere."""

    image_id: str
    key: str
    label: Any
    split: str
    shard: str
    row: int


@dataclass(frozen=True)
class Dropped:
    """A row that goes, the row that stays in its place, and why: LEAK, DUPLICATE, NEAR_LEAK or NEAR_DUPLICATE."""

    copy: Copy
    kept: Copy
    reason: str


@dataclass(frozen=True)
class LookAlikes:
    """What the perceptual hashes say of the rows that are no exact copies to be dropped."""

    clusters: int
    images: int
    """Images in clusters."""
    leaks: int
    """Images that look like one in a more held-out split."""
    accidents: float
    """Look-alikes that one image has by accident."""
    examples: tuple[tuple[Copy, Copy], ...]
    """Some of those, each with the one it looks like."""
    capped: int = 0
    """Hashes not compared with everything that resembles them, because too much does."""

    def to_json(self) -> dict[str, Any]:
        """Return counts and the first examples."""
        return {
            "clusters": self.clusters,
            "images": self.images,
            "leaks": self.leaks,
            "accidents": round(self.accidents, 4),
            "capped": self.capped,
            "examples": [_pair(copy, like, "image", "like") for copy, like in self.examples],
        }


@dataclass(frozen=True)
class Duplicates:
    """What was found and what becomes of it."""

    policy: DuplicatesConfig
    dropped: tuple[Dropped, ...] = ()
    conflicts: tuple[tuple[Copy, ...], ...] = ()
    """Groups of exact copies with different labels."""
    same_split: int = 0
    """Exact copies that stay beside another in their split."""
    leaks_kept: int = 0
    """Exact copies that stay although a more held-out split has one."""
    near: LookAlikes = field(default_factory=lambda: LookAlikes(0, 0, 0, 0.0, ()))

    @property
    def leaks(self) -> tuple[Copy, ...]:
        """The rows that are dropped, for whatever reason."""
        return tuple(each.copy for each in self.dropped)

    @property
    def quarantined(self) -> tuple[Copy, ...]:
        """The rows that are refused because their labels contradict each other."""
        if self.policy.conflicts != "quarantine":
            return ()
        return tuple(copy for group in self.conflicts for copy in group)

    def to_json(self) -> dict[str, Any]:
        """Return counts and the first examples, as the catalog keeps them."""
        reasons = Counter(each.reason for each in self.dropped)
        shown = sorted(self.dropped, key=lambda each: each.reason != LEAK)[:EXAMPLES]
        return {
            "policy": self.policy.model_dump(mode="json"),
            "leaks_dropped": reasons[LEAK],
            "leaks_kept": self.leaks_kept,
            "label_conflicts": len(self.conflicts),
            "within_a_split": self.same_split,
            "dropped": dict(sorted(reasons.items())),
            "leaks": [{**_pair(each.copy, each.kept, "dropped", "kept"), "reason": each.reason} for each in shown],
            "conflicts": [
                [{"key": copy.key, "label": copy.label, "split": copy.split} for copy in group]
                for group in self.conflicts[:EXAMPLES]
            ],
            "near": self.near.to_json(),
        }


def find_duplicates(storage: Storage, files: Sequence[ShardFile], policy: DuplicatesConfig | None = None) -> Duplicates:
    """Compare all rows by source_sha256 and by perceptual hash; only the rows that repeat are looked at closely.

    Raises:
        DataError: look-alikes are to be dropped, and the hash cannot tell these pictures apart.
    """
    policy = policy or DuplicatesConfig()
    found = _judge(policy, _exact_groups(storage, files))
    gone = {(copy.shard, copy.row) for copy in (*found.leaks, *found.quarantined)}
    dropped, near = _look_alikes(storage, files, policy, gone)
    return Duplicates(policy, (*found.dropped, *dropped), found.conflicts, found.same_split, found.leaks_kept, near)


def _exact_groups(storage: Storage, files: Sequence[ShardFile]) -> list[list[Copy]]:
    """Return the groups of rows with equal source bytes, the copy that stays first."""
    heads = [_heads(storage, file) for file in files]
    values, counts = np.unique(np.concatenate(heads) if heads else np.array([], np.uint64), return_counts=True)
    repeated = values[counts > 1]
    groups: dict[str, list[Copy]] = defaultdict(list)
    for file, head in zip(files, heads, strict=True):
        rows = np.flatnonzero(np.isin(head, repeated))
        for sha256, copy in _copies(storage, file, rows):
            groups[sha256].append(copy)
    return [sorted(group, key=_place) for _, group in sorted(groups.items()) if len(group) > 1]


def _copies(storage: Storage, file: ShardFile, rows: npt.NDArray[np.int64]) -> Iterable[tuple[str, Copy]]:
    """Yield the hash of the source bytes and the copy of some rows of a shard."""
    if not len(rows):
        return
    table = open_parquet(storage, file.path).read(columns=_COLUMNS).take(rows)
    for row, values in zip(rows.tolist(), table.to_pylist(), strict=True):
        yield values.pop("source_sha256"), Copy(**values, split=file.split, shard=file.path, row=row)


def _heads(storage: Storage, file: ShardFile) -> npt.NDArray[np.uint64]:
    """Return the first 8 bytes of the hash of every row of a shard; whole hashes take eight times as much memory."""
    hashes = open_parquet(storage, file.path).read(columns=["source_sha256"]).column("source_sha256").to_pylist()
    return np.fromiter((int(text[:16], 16) for text in hashes), dtype=np.uint64, count=len(hashes))


def _place(copy: Copy) -> tuple[int, str]:
    return HELD_OUT.index(copy.split), copy.image_id


def _judge(policy: DuplicatesConfig, groups: Sequence[Sequence[Copy]]) -> Duplicates:
    dropped: list[Dropped] = []
    conflicts: list[tuple[Copy, ...]] = []
    same_split = leaks_kept = 0
    for group in groups:
        first = group[0]
        if len({comparable(copy.label) for copy in group}) > 1:
            conflicts.append(tuple(group))
            if policy.conflicts == "quarantine":
                continue  # none of them is known to be right
        elsewhere = [copy for copy in group if copy.split != first.split]
        beside = [copy for copy in group[1:] if copy.split == first.split]
        if policy.exact != "keep":
            dropped += [Dropped(copy, first, LEAK) for copy in elsewhere]
        else:
            leaks_kept += len(elsewhere)
        if policy.exact == "drop":
            dropped += [Dropped(copy, first, DUPLICATE) for copy in beside]
        else:
            same_split += len(beside)
    return Duplicates(policy, tuple(dropped), tuple(conflicts), same_split, leaks_kept)


def _look_alikes(
    storage: Storage, files: Sequence[ShardFile], policy: DuplicatesConfig, gone: set[Place]
) -> tuple[list[Dropped], LookAlikes]:
    """Return the rows that go because they look like another, and what was found, among the rows that still stand."""
    files = sorted(
        files, key=lambda file: (HELD_OUT.index(file.split), file.unit)
    )  # the first of those that look alike stays
    places, hashes = _hashes(storage, files, gone)
    accidents = count_accidents(hashes, max_distance=policy.max_distance)
    if accidents > MAX_ACCIDENTS and policy.near != "report":
        raise DataError(
            f"duplicates.near is {policy.near}, and by the perceptual hash each of these images looks like"
            f" {accidents:.1f} others by accident: good images would go",
            mend="duplicates.near=report, or a smaller duplicates.max_distance; "
            "`resnet data duplicates DATASET --page FILE.html` shows what looks alike",
        )
    if accidents > MAX_ACCIDENTS:  # they would be many, and say nothing
        return [], LookAlikes(0, 0, 0, accidents, ())
    neighbours = find_neighbours(hashes, max_distance=policy.max_distance)
    rank = np.array([HELD_OUT.index(file.split) for file in files], np.int64)[places[:, 0]]
    kept = neighbours.repeats() if policy.near == "drop" else neighbours.shadowed(rank)
    goes = np.flatnonzero(kept >= 0)
    goes = goes[np.argsort(rank[goes] == rank[kept[goes]], kind="stable")]  # leaks first
    pairs, is_leak = np.stack([goes, kept[goes]], axis=1), rank[goes] != rank[kept[goes]]
    reasons = [NEAR_LEAK if leak else NEAR_DUPLICATE for leak in is_leak.tolist()]
    cluster = neighbours.clusters().cluster
    alike = int((cluster >= 0).sum())
    shown = len(pairs) if policy.near != "report" else EXAMPLES
    copies = _copies_at(storage, files, places, pairs[:shown])
    named = [
        (copies[copy], copies[kept], reason)
        for (copy, kept), reason in zip(pairs[:shown].tolist(), reasons[:shown], strict=True)
    ]
    examples = tuple((copy, kept) for copy, kept, reason in named[:EXAMPLES] if reason == NEAR_LEAK)
    near = LookAlikes(
        int(cluster.max(initial=-1)) + 1, alike, int(is_leak.sum()), accidents, examples, neighbours.capped
    )
    return [] if policy.near == "report" else [Dropped(*each) for each in named], near


def _hashes(
    storage: Storage, files: Sequence[ShardFile], gone: set[Place]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return (number of the file, row) of every standing row that is not of one colour (N, 2), and its hash (N,)."""
    gone_of: dict[str, list[int]] = defaultdict(list)
    for path, row in gone:
        gone_of[path].append(row)
    places, hashes = [np.empty((0, 2), np.int64)], [np.empty(0, np.uint64)]
    for number, file in enumerate(files):
        table = open_parquet(storage, file.path).read(columns=["phash", "contrast"])
        stands = table.column("contrast").to_numpy() >= FLAT_CONTRAST
        stands[gone_of[file.path]] = False
        rows = np.flatnonzero(stands)
        places.append(np.stack([np.full(len(rows), number), rows], axis=1))
        hashes.append(table.column("phash").to_numpy()[rows])
    return np.concatenate(places), np.concatenate(hashes)


def _copies_at(
    storage: Storage, files: Sequence[ShardFile], places: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]
) -> dict[int, Copy]:
    """Return the copies behind the row numbers in pairs."""
    found: dict[int, Copy] = {}
    wanted = np.unique(pairs)
    for number in np.unique(places[wanted, 0]).tolist():
        of_file = wanted[places[wanted, 0] == number]
        copies = _copies(storage, files[number], places[of_file, 1])
        found.update((place, copy) for place, (_, copy) in zip(of_file.tolist(), copies, strict=True))
    return found


def _pair(copy: Copy, kept: Copy, copy_word: str, kept_word: str) -> dict[str, str]:
    return {copy_word: copy.key, "from": copy.split, kept_word: kept.key, "in": kept.split}
