"""The refused members of a dataset: which, why, of which classes, and what people decide about them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.dataset.catalog import PublishConflict, next_run_id, publish_version
from pipelines.dataset.label_text import names_in
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.receipt import QuarantineFile
from pipelines.dataset.schema import QUARANTINE_SCHEMA, with_later_columns
from pipelines.dataset.shards import read_shard_list, write_shard_list
from pipelines.dataset.tables import open_parquet
from pipelines.dataset.writer import write_quarantine
from pipelines.errors import InputError
from pipelines.storage import Storage

MAX_CHANCE = 0.01
"""Chance below which an uneven refusal is no accident."""

_FAR = 3.0
"""Standard deviations by which a class lost more than its share."""
_MIN_EXPECTED = 1.0
_MIN_MEAN_EXPECTED = 5.0

Row = dict[str, Any]

WORDS = tuple(name for name in QUARANTINE_SCHEMA.names if name != "thumbnail")
"""All that is known of a refused member but its thumbnail, which may be 10 KB."""


@dataclass(frozen=True)
class Group:
    """Refused members with one reason and one class."""

    reason: str
    label: str | None
    number: int
    examples: list[Row]


@dataclass(frozen=True)
class Bias:
    """How unevenly classes lost images.

    Attributes:
        chance: of so uneven a refusal if classes had nothing to do with it (chi-square).
        classes: those that lost clearly more than their share, the worst first: (class, refused, members).
    """

    chance: float
    classes: list[tuple[str, int, int]]

    @property
    def words(self) -> str:
        """A sentence for people."""
        worst = ", ".join(f"{label} {refused:,} of {members:,}" for label, refused, members in self.classes[:3])
        return (
            f"some classes lost more images than others ({worst or 'none alone'}; chi-square, p = {self.chance:.1g}):"
            " figures of those classes stand for what could be read, not for the class"
        )


def read_quarantine(
    dataset: Dataset, *, accepted: bool | None = False, columns: Sequence[str] | None = None
) -> list[Row]:
    """Return the refused members of a version.

    Args:
        dataset: the version.
        accepted: False: those that nobody has accepted as lost; True: only those; None: all.
        columns: what to read, `accepted` with it; None for all, thumbnails too.
    """
    return [*quarantine_rows(dataset, accepted=accepted, columns=columns)]


def quarantine_rows(
    dataset: Dataset, *, accepted: bool | None = False, columns: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yield what `read_quarantine` returns, a file at a time."""
    for file in dataset.quarantine_files():
        for row in _rows_of(dataset.storage, file, columns):
            if accepted is None or (row["accepted"] is not None) == accepted:
                yield row


def group(rows: Sequence[Row], *, examples: int = 3) -> list[Group]:
    """Return the members by reason and class, the commonest first, each with its first examples by key."""
    found: dict[tuple[str, str | None], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["source"] or "", row["key"] or "")):
        found.setdefault((row["reason"], row["label"]), []).append(row)
    return [
        Group(reason, label, len(members), members[:examples])
        for (reason, label), members in sorted(
            found.items(), key=lambda item: (-len(item[1]), item[0][0], item[0][1] or "")
        )
    ]


def find_bias(kept: Mapping[str, int], refused: Mapping[str, int]) -> Bias | None:
    """Test whether some classes lost more images than others (Pearson's chi-square, classes x refused).

    Classes of which less than one refused image would be expected are tested as one. With fewer than five expected on
    average nothing is said.

    Args:
        kept: class -> images that are in the dataset.
        refused: class -> members that were refused.
    """
    labels = sorted({*kept, *refused})
    gone = np.array([refused.get(label, 0) for label in labels], np.float64)
    members = gone + np.array([kept.get(label, 0) for label in labels], np.float64)
    total = members.sum()
    if not total or gone.sum() in (0, total):
        return None
    share = gone.sum() / total
    is_small = members * share < _MIN_EXPECTED
    observed, size = gone[~is_small], members[~is_small]
    if is_small.any():
        observed, size = np.append(observed, gone[is_small].sum()), np.append(size, members[is_small].sum())
    expected = size * share
    if len(observed) < 2 or expected.mean() < _MIN_MEAN_EXPECTED:
        return None
    square = float(((observed - expected) ** 2 / (expected * (1 - share))).sum())
    from scipy.special import gammaincc  # the upper tail of chi-square is Q(k / 2, x / 2)

    chance = float(gammaincc((len(observed) - 1) / 2, square / 2))
    deviation = np.sqrt(np.maximum(members * share * (1 - share) * (1 - members / total), 1e-12))
    far = (gone - members * share) / deviation
    worst = [place for place in np.argsort(-far, kind="stable").tolist() if far[place] > _FAR and not is_small[place]]
    return Bias(chance, [(labels[place], int(gone[place]), int(members[place])) for place in worst])


def bias_of(dataset: Dataset) -> Bias | None:
    """Test whether some classes of a version lost more images than others; None where too little was refused to say."""
    if dataset.catalog["counts"].get("quarantined", 0) < 2 * _MIN_MEAN_EXPECTED:
        return None
    kept: Counter[str] = Counter()
    for part in dataset.catalog["splits"].values():
        kept.update(part["labels"])
    rows = read_quarantine(dataset, columns=["label"])
    return find_bias(kept, Counter(name for row in rows for name in names_in(row["label"], dataset.task)))


def accept(reference: str, reason: str, *, wanted: Callable[[Row], bool]) -> tuple[int | None, int]:
    """Declare refused members as lost for good, in a version of its own; return it and how many.

    Budgets, checks and later lists no longer count them; the rows stay, with the reason. When another version is
    published meanwhile it starts again from that one. Without any such member nothing is published.
    `wanted` is asked of the `WORDS` of each.

    Raises:
        InputError: no reason is given.
    """
    if not reason.strip():
        raise InputError("a loss is accepted without a reason", mend="say why: --reason 'scanner was broken that day'")
    while True:
        dataset = open_dataset(reference)
        ids = {_identity(row) for row in read_quarantine(dataset, columns=WORDS) if wanted(row)}
        if not ids:
            return None, 0
        key = hashlib.sha256(json.dumps(["accept", dataset.version, sorted(ids), reason]).encode()).hexdigest()[:32]
        run_id = next_run_id(dataset.storage, key)
        number = 0

        def accepted(row: Row) -> Row:
            nonlocal number
            if row["accepted"] is not None or _identity(row) not in ids:  # noqa: B023
                return row
            number += 1
            return {**row, "accepted": reason}

        lists = _rewritten(dataset.storage, run_id, dataset.catalog["shard_lists"], accepted)
        counts = dict(dataset.catalog["counts"])
        counts["accepted"] = counts.get("accepted", 0) + number
        catalog = {**dataset.catalog, "stage": "accept", "key": key, "shard_lists": lists, "counts": counts}
        try:
            return publish_version(dataset.storage, run_id, catalog, base=dataset.version), number
        except PublishConflict:
            continue


def release(
    storage: Storage, run_id: str, lists: Sequence[Mapping[str, Any]], source: str, image_ids: Collection[str]
) -> tuple[list[dict[str, Any]], Counter[str], int]:
    """Return shard lists without the refused members that were read again, their reasons, and how many were accepted.

    A member that was accepted as lost and is read again, since its content changed, is lost no longer.

    Args:
        storage: the dataset's root.
        run_id: the run that read them again.
        lists: the entries of a catalog's `shard_lists`.
        source: name of their source.
        image_ids: which.
    """
    wanted, reasons, accepted = set(image_ids), Counter[str](), 0

    def released(row: Row) -> Row | None:
        nonlocal accepted
        if row["source"] != source or row["image_id"] not in wanted:
            return row
        accepted += row["accepted"] is not None
        reasons[row["reason"]] += 1
        return None

    return _rewritten(storage, run_id, lists, released), reasons, accepted


def refused_among(dataset: Dataset, image_ids: Collection[str]) -> set[str]:
    """Return which of some images are among the refused members of a version."""
    wanted = set(image_ids)
    if not wanted:
        return set()
    return wanted.intersection(row["image_id"] for row in quarantine_rows(dataset, accepted=None, columns=["image_id"]))


def pictured(storage: Storage, file: QuarantineFile) -> list[str]:
    """Return the ids of the refused members in a file that have a thumbnail."""
    rows = _rows_of(storage, file, ["image_id", "thumbnail"])
    return [row["image_id"] for row in rows if row["thumbnail"] is not None]


def without_pictures(
    storage: Storage, run_id: str, lists: Sequence[Mapping[str, Any]], image_ids: Collection[str]
) -> list[dict[str, Any]]:
    """Return shard lists whose refused members among some images have no thumbnail; what is said of them stays.

    Args:
        storage: the dataset's root.
        run_id: the run that new files belong to.
        lists: the entries of a catalog's `shard_lists`.
        image_ids: which.
    """
    if not image_ids:
        return [dict(entry) for entry in lists]

    def bare(row: Row) -> Row:
        return {**row, "thumbnail": None} if row["image_id"] in image_ids else row

    return _rewritten(storage, run_id, lists, bare)


def _rewritten(
    storage: Storage, run_id: str, lists: Sequence[Mapping[str, Any]], change: Callable[[Row], Row | None]
) -> list[dict[str, Any]]:
    """Return shard lists with quarantine rows changed or, for None, left out; untouched files stay as they are."""
    result = []
    for number, entry in enumerate(lists):
        shards, quarantine = read_shard_list(storage, entry)
        files: list[QuarantineFile] = []
        for file in quarantine:
            rows = _rows_of(storage, file)
            changed = [new for row in rows if (new := change(row)) is not None]
            if changed == rows:
                files.append(file)
            elif changed:
                digest = hashlib.sha256(json.dumps([file.sha256, [_identity(row) for row in changed]]).encode())
                path = f"quarantine/{run_id}-{number}-{digest.hexdigest()[:16]}.parquet"
                files.append(write_quarantine(storage, path, file.unit, changed))
        is_same = files == quarantine
        result.append(
            dict(entry) if is_same else {"run_id": entry["run_id"], **write_shard_list(storage, run_id, shards, files)}
        )
    return result


def _rows_of(storage: Storage, file: QuarantineFile, columns: Sequence[str] | None = None) -> list[Row]:
    wanted = [*dict.fromkeys((*columns, "accepted"))] if columns is not None else QUARANTINE_SCHEMA.names
    schema = pa.schema([QUARANTINE_SCHEMA.field(name) for name in wanted])
    rows: list[Row] = with_later_columns(open_parquet(storage, file.path).read(columns=wanted), schema).to_pylist()
    return rows


def _identity(row: Row) -> tuple[str, str, int]:
    return str(row["source"]), str(row["key"]), int(row["occurrence"] or 0)
