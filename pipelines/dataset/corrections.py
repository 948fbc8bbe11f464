"""Wishes of people who have looked at the images, read from a table or a list, as changes to rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

from pipelines.dataset.label_text import SEPARATOR
from pipelines.dataset.patch import Change
from pipelines.dataset.quarantine import quarantine_rows
from pipelines.dataset.reader import Dataset
from pipelines.dataset.user_table import read_rows
from pipelines.errors import InputError

_NAMES = "name images by image_id, or by key (and source where two sources have the key)"


def read_relabels(dataset: Dataset, address: str) -> list[Change]:
    """Return the relabelling that a table asks for.

    Args:
        dataset: the version whose images are meant.
        address: a CSV, JSONL or Parquet file with columns `image_id` or `key` (and `source`), `label`, and if wanted
            `old_label` (the patch is refused where an image has another one) and `reason`. An empty label takes the
            label away; labels of a multi-label dataset are separated by `|`.

    Raises:
        InputError: the file is no such table, or names an image that the dataset does not have.
    """
    rows = list(read_rows(address))
    if not rows:
        raise InputError(f"{address} has no rows: nothing would be relabelled")
    missing = [name for name in ("label",) if name not in rows[0]]
    if missing or not {"image_id", "key"} & set(rows[0]):
        raise InputError(
            f"{address} has the columns {', '.join(rows[0])}; a relabelling needs label and image_id or key",
            mend=f"{_NAMES}; further columns: old_label, reason",
        )
    find = _Finder(dataset)
    changes = []
    for number, row in enumerate(rows, start=1):
        old = {"old": _label(row["old_label"], dataset.task)} if row.get("old_label") else {}
        changes.append(
            Change(
                find(row, f"{address} row {number}"),
                "label",
                _label(row["label"], dataset.task),
                str(row.get("reason") or f"relabelled by {PurePosixPath(address).name}"),
                **old,
            )
        )
    return changes


def exclusions(
    dataset: Dataset, names: Sequence[str], address: str, reason: str, *, refused: bool = False
) -> list[Change]:
    """Return the changes that take images out of a dataset.

    Args:
        dataset: the version whose images are meant.
        names: image ids or keys.
        address: a table of images as for `read_relabels`, without labels; empty for none.
        reason: why; it is kept for good.
        refused: whether refused members may be named too, of which a dataset may hold a thumbnail.

    Raises:
        InputError: nothing is named, or an image that the dataset does not have.
    """
    rows: list[tuple[Mapping[str, Any], str]] = [({"image_id": name, "key": name}, name) for name in names]
    if address:
        rows += [(row, f"{address} row {number}") for number, row in enumerate(read_rows(address), start=1)]
    if not rows:
        raise InputError("no image is named", mend=_NAMES)
    find = _Finder(dataset, refused=refused)
    ids = dict.fromkeys(find(row, where) for row, where in rows)
    return [Change(image_id, "live", False, reason) for image_id in ids]


class _Finder:
    """Finds image ids by id, or by key where that is clear. Dead rows are found too: what is done stays nameable."""

    def __init__(self, dataset: Dataset, *, refused: bool = False) -> None:
        self._ref = dataset.ref
        self._ids: set[str] = set()
        self._keys: dict[str, list[tuple[str, str]]] = {}
        for file in dataset.shards():
            table = dataset.written_rows(file, ["image_id", "key", "source"])
            for image_id, key, source in zip(*(column.to_pylist() for column in table.columns), strict=True):
                self._add(image_id, key, source)
        for row in quarantine_rows(dataset, accepted=None, columns=["image_id", "key", "source"]) if refused else ():
            if row["image_id"]:
                self._add(row["image_id"], row["key"] or "", row["source"] or "")

    def _add(self, image_id: str, key: str, source: str) -> None:
        self._ids.add(image_id)
        self._keys.setdefault(key, []).append((source, image_id))

    def __call__(self, row: Mapping[str, Any], where: str) -> str:
        image_id = str(row.get("image_id") or "")
        if image_id in self._ids:
            return image_id
        key, source = str(row.get("key") or ""), str(row.get("source") or "")
        # a changed image has more than one row, of which at most one lives
        found = list(dict.fromkeys(each for of, each in self._keys.get(key, []) if source in ("", of)))
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{key} names {len(found)} images of {self._ref}", where=where, mend="give the image_id")
        near = [each for each in self._keys if each.endswith(f"/{key}")] or get_close_matches(key, self._keys, n=1)
        mend = (
            f"did you mean {near[0]}?" if near else f"{_NAMES}; `resnet data show {self._ref} --samples 5` shows some"
        )
        raise InputError(f"{key or image_id!r} is no image of {self._ref}", where=where, mend=mend)


def _label(value: object, task: str) -> Any:
    if value is None or value == "":
        return None
    if task == "multi":
        names = value if isinstance(value, list) else str(value).split(SEPARATOR)
        return sorted({str(name).strip() for name in names} - {""})  # as ingest writes them
    if task == "regression":
        try:
            return float(str(value))
        except ValueError as error:
            raise InputError(f"label {value!r} is no number, and the dataset's labels are numbers") from error
    return str(value)
