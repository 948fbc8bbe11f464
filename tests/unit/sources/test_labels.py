"""What stands in a cell of labels, and the label that it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset import label_text
from pipelines.errors import InputError
from pipelines.sources.labels import Label, read_label
from pipelines.sources.resolve import open_source
from tests import factories


@pytest.mark.parametrize(
    ("value", "separator", "label"),
    [
        ("cat", "", "cat"),
        (" cat\t", "", " cat\t"),
        ("", "", None),
        (" ", "", " "),
        (" ", "|", ()),
        (None, "|", None),
        ("|", "|", ()),
        (" sky | sea|sky ", "|", ("sea", "sky")),
        (3, "", "3"),
        (math.nan, "", None),
        (math.nan, "|", None),
        (b"cat", "", "cat"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), "", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("nan", "", "nan"),
        ([" sky", b"sea", math.nan, None, ""], "", ("sea", "sky")),
        ([], "", ()),
    ],
)
def test_cells_become_labels(value: Any, separator: str, label: Label) -> None:
    assert read_label(value, separator) == label


@pytest.mark.parametrize("value", [{"a": 1}, [["a"]], [{"a": 1}], b"\xff", [b"\xff"]], ids=str)
def test_what_is_no_name_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="is no"):
        read_label(value)


def test_columns_of_floats_and_bytes_are_labels_too(tmp_path: Path) -> None:
    images = [factories.make_png(number, 16, 16) for number in range(3)]
    for column, labels in (
        ([1.0, math.nan, None], ["1.0", None, None]),
        ([b"cat", b"dog", b""], ["cat", "dog", None]),
    ):
        pq.write_table(pa.table({"image": images, "label": column}), tmp_path / "set.parquet")
        assert [entry.label for entry in open_source(str(tmp_path / "set.parquet")).listing().entries] == labels


def test_one_separator_stands_between_labels_wherever_they_are_text() -> None:
    assert label_text.label_text(("a", "b")) == f"a{label_text.SEPARATOR}b"
    assert label_text.names_in("a|b", "multi") == ["a", "b"]
    for path in (Path(__file__).parents[3] / "pipelines").rglob(
        "*.py"
    ):  # a second one would read otherwise than the first writes
        if path.parent.name in ("sources", "dataset", "ingest") and path.name not in ("label_text.py", "names.py"):
            assert '"|"' not in path.read_text(), path
