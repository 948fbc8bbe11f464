"""Exact duplicates, found by the hash of their source bytes: leaks across splits are dropped, conflicts reported.

A picture that stands in two splits makes the held-out figure a lie. The rule: the copy in the most held-out split
stays (test, then val, then train), copies elsewhere are dropped. Copies within one split stay: dropping them would
change how often a picture is seen, which is the data's own affair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.dataset.duplicates import HELD_OUT
from pipelines.dataset.receipt import ShardFile
from pipelines.dataset.tables import open_parquet
from pipelines.storage import Storage

EXAMPLES = 50
_COLUMNS = ["image_id", "source_sha256", "label", "key"]


@dataclass(frozen=True)
class Copy:
    """One row whose source bytes also stand elsewhere."""

    image_id: str
    key: str
    label: str | None
    split: str
    shard: str
    row: int


@dataclass(frozen=True)
class Duplicates:
    """What was found: rows to drop as leaks, groups of copies with different labels, and counts."""

    leaks: tuple[Copy, ...]
    kept: tuple[Copy, ...]
    """For each leak the copy that stays."""
    conflicts: tuple[tuple[Copy, ...], ...]
    same_split: int
    """Rows beyond the first of each group within one split."""

    def to_json(self) -> dict[str, Any]:
        """Return counts and the first examples, as the catalog keeps them."""
        return {
            "leaks_dropped": len(self.leaks),
            "label_conflicts": len(self.conflicts),
            "within_a_split": self.same_split,
            "leaks": [
                {"dropped": leak.key, "from": leak.split, "kept": kept.key, "in": kept.split}
                for leak, kept in list(zip(self.leaks, self.kept, strict=True))[:EXAMPLES]
            ],
            "conflicts": [
                [{"key": copy.key, "label": copy.label, "split": copy.split} for copy in group]
                for group in self.conflicts[:EXAMPLES]
            ],
        }


def find_duplicates(storage: Storage, files: Sequence[ShardFile]) -> Duplicates:
    """Compare all rows by source_sha256; only the rows that repeat are looked at closely."""
    tables = [open_parquet(storage, file.path).read(columns=["source_sha256"]) for file in files]
    heads = [_heads(table.column("source_sha256").to_pylist()) for table in tables]
    values, counts = np.unique(np.concatenate(heads) if heads else np.array([], np.uint64), return_counts=True)
    repeated = values[counts > 1]
    groups: dict[str, list[Copy]] = defaultdict(list)
    for file, head in zip(files, heads, strict=True):
        rows = np.flatnonzero(np.isin(head, repeated))
        if not len(rows):
            continue
        table = open_parquet(storage, file.path).read(columns=_COLUMNS).take(rows)
        for row, values_of in zip(rows.tolist(), table.to_pylist(), strict=True):
            sha256 = values_of.pop("source_sha256")
            groups[sha256].append(Copy(**values_of, split=file.split, shard=file.path, row=row))
    return _judge([sorted(group, key=_place) for _, group in sorted(groups.items()) if len(group) > 1])


def _heads(hashes: Sequence[str]) -> np.ndarray:
    return np.fromiter((int(text[:16], 16) for text in hashes), dtype=np.uint64, count=len(hashes))


def _place(copy: Copy) -> tuple[int, str]:
    return HELD_OUT.index(copy.split), copy.image_id


def _judge(groups: Sequence[Sequence[Copy]]) -> Duplicates:
    leaks: list[Copy] = []
    kept: list[Copy] = []
    conflicts: list[tuple[Copy, ...]] = []
    same_split = 0
    for group in groups:
        first = group[0]
        elsewhere = [copy for copy in group if copy.split != first.split]
        leaks += elsewhere
        kept += [first] * len(elsewhere)
        same_split += len(group) - len(elsewhere) - 1
        if len({copy.label for copy in group}) > 1:
            conflicts.append(tuple(group))
    return Duplicates(tuple(leaks), tuple(kept), tuple(conflicts), same_split)
