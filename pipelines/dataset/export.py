"""A version of a dataset as a plain folder: image files in split and class folders, and a table of what they are."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from pipelines.dataset.reader import Dataset
from pipelines.errors import InputError
from pipelines.storage import Storage

TABLE = "images.csv"
LABELS = "labels.jsonl"
"""Beside it for multi-label images: their lists, as `resnet ingest FOLDER labels=FOLDER/labels.jsonl` takes them."""
_COLUMNS = ("file", "split", "label", "image_id", "source", "key")
_MAGIC = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"))


def export(dataset: Dataset, target: Storage, splits: Sequence[str] = ()) -> int:
    """Write the live images of a version, patches applied, as files; return how many.

    A single-label image goes to `<split>/<class>/<image_id>.<suffix>`, so that the folder can be ingested again;
    others, and unlabelled ones, to `<split>/<image_id>.<suffix>`. `images.csv` lists every file, and for a multi-label
    dataset `labels.jsonl` holds what is needed to ingest the folder again.

    Args:
        dataset: the version.
        target: an empty place.
        splits: names of the splits; all where empty.

    Raises:
        InputError: the target holds something.
        DataError: a shard is damaged.
    """
    if found := target.list():
        raise InputError(
            f"{target.uri} holds something already (for example {found[0].path})", mend="export into an empty folder"
        )
    lines: list[dict[str, Any]] = []
    for split in splits or dataset.splits:
        for group in range(len(dataset.row_groups(split))):
            columns = ["image", "label", "image_id", "source", "key"]
            for row in dataset.read_group(split, group, columns).to_pylist():
                data = row.pop("image")["bytes"]
                path = _path(split, row["label"], row["image_id"], data)
                target.put(path, data)
                lines.append({"file": path, "split": split, **row})
    target.put(TABLE, _as_csv(lines))
    if dataset.task == "multi":
        said = ({"file": line["file"], "labels": line["label"], "split": line["split"]} for line in lines)
        target.put(LABELS, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in said).encode())
    return len(lines)


def _path(split: str, label: object, image_id: str, data: bytes) -> str:
    suffix = next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), "")
    folder = f"{split}/{_folder_name(label)}" if isinstance(label, str) else split
    return f"{folder}/{image_id}{suffix}"


def _folder_name(label: str) -> str:
    """Return a class name as a name that stays inside its folder: separators, leading dots and the like as %XX."""
    name = quote(label, safe=" !#$&'()+,;=@[]^{}~") or "%"
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _as_csv(lines: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in lines:
        writer.writerow([_cell(line[name]) for name in _COLUMNS])
    return text.getvalue().encode()


def _cell(value: object) -> str:
    """Return a value as text that a spreadsheet does not run as a formula."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
