"""Which columns of a table of images are meant; apart from the reader, which loads pyarrow."""

from __future__ import annotations

from typing import NamedTuple


class Columns(NamedTuple):
    """Columns that the user names; empty ones are found."""

    image: str = ""
    label: str = ""
    separator: str = ""
    """Between the labels of one image in a column of text; empty: a cell is one label."""
