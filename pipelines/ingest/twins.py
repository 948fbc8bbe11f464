"""Newcomers whose picture stands already, or one that looks like it: what leaks, and what policy drops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.duplicates import FLAT_CONTRAST, HELD_OUT, comparable
from pipelines.dataset.label_text import names_in
from pipelines.dataset.near import MAX_ACCIDENTS, count_accidents
from pipelines.dataset.near_join import near_join
from pipelines.dataset.quarantine import read_quarantine
from pipelines.dataset.reader import Dataset
from pipelines.ingest.config import DuplicatesConfig
from pipelines.ingest.dedupe import DUPLICATE, LABEL_CONFLICT, LEAK, NEAR_DUPLICATE

QUARANTINED = (LEAK, LABEL_CONFLICT)
"""Reasons for which a newcomer is refused; for others it is dropped."""

_COLUMNS = ("source_sha256", "phash", "contrast")
_ROW = ("image_id", "source", "key", "occurrence", "label", "source_sha256")

Place = tuple[str, int]
"""A split, and the position of a live row in it."""
Tables = dict[str, pa.Table]


@dataclass(frozen=True)
class Twin:
    """A newcomer and an image that stands and equals it, or resembles it.

    Attributes:
        place: the newcomer's.
        other: that of the image that stands.
        distance: bits of the perceptual hash between them; None for the same bytes.
        row: the newcomer's image_id, source, key, occurrence, label and source_sha256.
        other_key: key of the image that stands.
        other_label: its label.
        reason: why the newcomer does not come in; empty while it does.
        stands: False where the other was refused for its label, so that it has no row (and `other` no position).
    """

    place: Place
    other: Place
    distance: int | None
    row: dict[str, Any]
    other_key: str = ""
    other_label: Any = None
    reason: str = ""
    stands: bool = True

    @property
    def crosses(self) -> bool:
        """Whether they would be in different splits."""
        return self.place[0] != self.other[0]

    @property
    def is_conflict(self) -> bool:
        """Whether the same bytes have another label."""
        return self.distance is None and comparable(self.row["label"]) != comparable(self.other_label)

    @property
    def message(self) -> str:
        """Why it is refused, in words."""
        if not self.stands:
            return f"it has the bytes of {self.other_key}, which was refused since it stands under another label"
        like = "has the bytes of" if self.distance is None else f"is {self.distance} of 64 bits of the hash away from"
        stands = f"{self.other_key}, which stands in {self.other[0]}"
        if self.reason == LABEL_CONFLICT:
            return f"it {like} {stands} under another label"
        return f"it {like} {stands}; it would have gone to {self.place[0]}"


def find_twins(
    standing: Dataset, newcomers: Dataset, *, max_distance: int, left_out: Set[str] = frozenset()
) -> list[Twin]:
    """Return the newcomers' copies and look-alikes among what stands, from small columns, not by comparing all pairs.

    Of copies one in each split is given, of look-alikes the nearest in another split and the nearest in its own.
    Pictures of one colour are compared by their bytes only.

    Args:
        standing: the dataset.
        newcomers: their rows, as a dataset of their own.
        max_distance: bits of the perceptual hash up to which pictures look alike.
        left_out: image_ids of rows that no longer stand once the newcomers do.
    """
    columns = [*_COLUMNS, "image_id"] if left_out else _COLUMNS
    theirs = {split: standing.table(split, columns) for split in sorted(standing.splits, key=_held_out)}
    ours = {split: newcomers.table(split, _COLUMNS) for split in sorted(newcomers.splits, key=_held_out)}
    dead = {(split, row) for split, table in theirs.items() for row in _rows_with(table, left_out)}
    found = [*_copies(theirs, ours, dead)]
    found += _look_alikes(theirs, ours, max_distance, dead)
    return _named(standing, newcomers, found)


def find_contested(standing: Dataset, newcomers: Dataset, *, read_again: Set[str]) -> list[Twin]:
    """Return the newcomers whose bytes were refused under another label, so that a conflict does not resolve itself.

    It is resolved by mending labels and reading both again, or by accepting one of them as lost.

    Args:
        standing: the dataset.
        newcomers: their rows, as a dataset of their own.
        read_again: image_ids whose refusal no longer counts, since the newcomers' run read them.
    """
    contested: dict[str, list[dict[str, Any]]] = defaultdict(list)
    columns = ("image_id", "source", "key", "split", "label", "reason", "bytes_sha256")
    rows = [
        row
        for row in read_quarantine(standing, columns=columns)
        if row["reason"] == LABEL_CONFLICT and row["image_id"] not in read_again
    ]
    # a further row of a table of labels has no bytes of its own: they are those of the image it names
    bytes_of = {(row["source"], row["key"]): row["bytes_sha256"] for row in rows if row["bytes_sha256"]}
    for row in rows:
        if digest := row["bytes_sha256"] or bytes_of.get((row["source"], row["key"])):
            contested[digest].append(row)
    wanted, found = pa.array(list(contested), pa.string()), list[Twin]()
    for split in newcomers.splits if contested else ():
        table = newcomers.table(split, _ROW)
        hits = pc.indices_nonzero(pc.is_in(table.column("source_sha256"), value_set=wanted))
        for place, row in zip(hits.to_pylist(), table.take(hits).to_pylist(), strict=True):
            twins = (
                Twin(
                    (split, place),
                    (other["split"], -1),
                    None,
                    row,
                    other["key"],
                    _label_of(other, standing),
                    stands=False,
                )
                for other in contested[row["source_sha256"]]
            )
            found += [twin for twin in twins if twin.is_conflict][:1]
    return found


def _label_of(row: dict[str, Any], dataset: Dataset) -> Any:
    """Return the label of a quarantine row as rows hold it."""
    if row["label"] is None or dataset.task != "multi":
        return row["label"]
    return names_in(row["label"], dataset.task)


def judge(twins: list[Twin], policy: DuplicatesConfig) -> list[Twin]:
    """Return one twin for each newcomer that does not come in, with the reason; the gravest where there are several."""
    rules: tuple[tuple[str, Callable[[Twin], bool]], ...] = (
        (LABEL_CONFLICT, lambda twin: policy.conflicts == "quarantine" and twin.is_conflict),
        (LEAK, lambda twin: policy.exact != "keep" and twin.crosses and twin.distance is None),
        (LEAK, lambda twin: (policy.exact, policy.near) != ("keep", "report") and twin.crosses and _is_near(twin)),
        (DUPLICATE, lambda twin: policy.exact == "drop" and not twin.crosses and twin.distance is None),
        (NEAR_DUPLICATE, lambda twin: policy.near == "drop" and not twin.crosses and _is_near(twin)),
    )
    refused: dict[Place, Twin] = {}
    for reason, applies in rules:
        for twin in twins:
            if applies(twin):
                refused.setdefault(twin.place, replace(twin, reason=reason))
    return sorted(refused.values(), key=lambda twin: str(twin.row["image_id"]))


def _is_near(twin: Twin) -> bool:
    return twin.distance is not None


def _copies(theirs: Tables, ours: Tables, dead: Set[Place]) -> Iterator[Twin]:
    for split, newcomers in ours.items():
        hashes = newcomers.column("source_sha256").combine_chunks()
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, sha256 in enumerate(hashes.to_pylist()):
            rows_of[sha256].append(row)
        for other, table in theirs.items():
            column = table.column("source_sha256")
            twins = pc.indices_nonzero(pc.is_in(column, value_set=hashes))
            first: dict[str, int] = {}
            for twin, sha256 in zip(twins.to_pylist(), column.take(twins).to_pylist(), strict=True):
                if (other, twin) not in dead:
                    first.setdefault(sha256, twin)
            for sha256, twin in first.items():
                yield from (Twin((split, row), (other, twin), None, {}) for row in rows_of[sha256])


def _look_alikes(theirs: Tables, ours: Tables, max_distance: int, dead: Set[Place]) -> Iterator[Twin]:
    standing_hash, standing_place = _hashes(theirs)
    new_hash, new_place = _hashes(ours)
    unique, number = np.unique(new_hash, return_inverse=True)
    # the newcomers too, since few that stand tell little
    if count_accidents(np.concatenate([standing_hash, new_hash]), max_distance=max_distance) > MAX_ACCIDENTS:
        return  # the hash cannot tell these pictures apart: good newcomers would be refused
    standing_unique, standing_number = np.unique(standing_hash, return_inverse=True)
    new, other = near_join(unique, standing_unique, max_distance=max_distance)
    names, new_names = list(theirs), list(ours)
    rows_of: dict[int, dict[str, Place]] = defaultdict(dict)  # of each hash the first row in each split
    for row in np.flatnonzero(np.isin(standing_number, other)).tolist():
        split, place = standing_place[row].tolist()
        if (names[split], place) not in dead:
            rows_of[int(standing_number[row])].setdefault(names[split], (names[split], place))
    distance = np.bitwise_count(unique[new] ^ standing_unique[other])
    near_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for bits, one, two in sorted(zip(distance.tolist(), new.tolist(), other.tolist(), strict=True)):
        near_of[one].append((bits, two))
    for row in np.flatnonzero(np.isin(number, new)).tolist():
        split, place = new_names[new_place[row, 0]], int(new_place[row, 1])
        seen: set[bool] = set()
        for bits, two in near_of[int(number[row])]:
            for twin in rows_of[two].values():
                if (twin[0] == split) not in seen:
                    seen.add(twin[0] == split)
                    yield Twin((split, place), twin, bits, {})
            if len(seen) == 2:
                break


def _hashes(tables: Tables) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return the hashes of all rows that are not of one colour, and (number of the split, row) of each."""
    hashes, places = [np.empty(0, np.uint64)], [np.empty((0, 2), np.int64)]
    for number, table in enumerate(tables.values()):
        rows = np.flatnonzero(table.column("contrast").to_numpy() >= FLAT_CONTRAST)
        hashes.append(table.column("phash").to_numpy()[rows])
        places.append(np.stack([np.full(len(rows), number), rows], axis=1))
    return np.concatenate(hashes), np.concatenate(places)


def _rows_with(table: pa.Table, image_ids: Set[str]) -> list[int]:
    if not image_ids:
        return []
    wanted = pa.array(sorted(image_ids), pa.string())
    return list(pc.indices_nonzero(pc.is_in(table.column("image_id"), value_set=wanted)).to_pylist())


def _named(standing: Dataset, newcomers: Dataset, twins: list[Twin]) -> list[Twin]:
    """Return the twins with the newcomers' rows, and keys and labels of those that stand."""
    rows = _values(newcomers, _ROW, {twin.place for twin in twins})
    others = _values(standing, ("key", "label"), {twin.other for twin in twins})
    return [
        replace(
            twin, row=rows[twin.place], other_key=others[twin.other]["key"], other_label=others[twin.other]["label"]
        )
        for twin in twins
    ]


def _values(dataset: Dataset, columns: tuple[str, ...], places: set[Place]) -> dict[Place, dict[str, Any]]:
    found: dict[Place, dict[str, Any]] = {}
    for split in sorted({split for split, _ in places}):
        rows = sorted(row for of, row in places if of == split)
        values = dataset.table(split, columns).take(pa.array(rows)).to_pylist()
        found |= {(split, row): value for row, value in zip(rows, values, strict=True)}
    return found


def _held_out(split: str) -> tuple[int, str]:
    return (HELD_OUT.index(split) if split in HELD_OUT else len(HELD_OUT), split)
