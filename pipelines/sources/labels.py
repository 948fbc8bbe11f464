"""What a label is: one name, any number of names, or none; and how a source's labels become those of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from pipelines.errors import InputError

Label: TypeAlias = str | tuple[str, ...] | None
"""A class name; for multi-label images the names, sorted, each once, () saying that none holds; None: unlabelled."""

Task: TypeAlias = Literal["auto", "single", "multi", "unlabelled"]


def make_names(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the names in a list as a set would hold them, in one order; empty ones and null are left out."""
    return tuple(sorted({_text(value).strip() for value in values} - {""}))


def read_label(value: Any, separator: str = "") -> Label:
    """Return the label in a cell of a table: a list is several, and so is text with a separator.

    One name stays as it is written, those of a list lose the white space around them. What is null, empty or not a
    number (NaN) is no label.

    Raises:
        InputError: it is neither text, a number nor a list of them, or bytes that are no UTF-8.
    """
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, (list, dict)) for each in value)):
        raise InputError(f"label {value!r} is no name", mend="give a name, or a list of names")
    if isinstance(value, (list, tuple)):
        return make_names(value)
    text = _text(value)
    return make_names(text.split(separator)) if separator and text else text or None


def _text(value: Any) -> str:
    """Return what stands in a cell as text, "" for none."""
    if value is None or value != value:  # only NaN, of whatever type, differs from itself
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"label {value!r} is no text in UTF-8", mend="write labels as text") from error
    return str(value)


def names_of(label: Label) -> tuple[str, ...]:
    """Return the class names in a label."""
    return (label,) if isinstance(label, str) else label or ()


def resolve_task(labels: Sequence[Label], task: Task, where: str) -> Literal["single", "multi"]:
    """Return what a dataset's labels are: what is asked for, else lists where any is one.

    Raises:
        InputError: one label an image is asked for, and an image has a list.
    """
    first = next((label for label in labels if isinstance(label, tuple)), None)
    if task == "single" and first is not None:
        raise InputError(
            f"{where} has lists of labels, for example {list(first)}; a dataset of single labels takes one an image",
            mend="ingest it as task=multi into a dataset of its own, or give a table with one label a row",
        )
    return "multi" if task == "multi" or (task == "auto" and first is not None) else "single"


def as_task(label: Label, task: Task) -> Label:
    """Return a label in the form that a task takes."""
    if task == "unlabelled":
        return None
    return (label,) if task == "multi" and isinstance(label, str) else label
