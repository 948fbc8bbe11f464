"""Labels as text, as tables of corrections and of refused members hold them; without pyarrow, for those who list."""

from __future__ import annotations

from collections.abc import Sequence

SEPARATOR = "|"
"""Between the names of one image in text, where no other is given."""


def label_text(label: str | Sequence[str] | None) -> str | None:
    """Return a label as text, several names with the separator between them, as tables of corrections hold them."""
    return label if label is None or isinstance(label, str) else SEPARATOR.join(label)


def names_in(text: str | None, task: str) -> list[str]:
    """Return the class names in a label as `label_text` wrote it, for a dataset's task."""
    if not text:
        return []
    return text.split(SEPARATOR) if task == "multi" else [text]
