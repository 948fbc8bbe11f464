"""Tables of labels that are damaged, contradict themselves or lead elsewhere (reliability page, M01 to M13)."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset import inspect
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import InputError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from pipelines.sources.resolve import open_source
from tests import factories

NUMBER = 12
PLAIN = "".join(f"{number:02d}.png,{'ab'[number % 2]}\n" for number in range(NUMBER))
"""A label for every image, without a header."""
OTHERS = "".join(f"{number:02d}.png,{'ab'[number % 2]}\n" for number in range(2, NUMBER))
"""Likewise, without the first two images, which the cases label themselves."""


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(NUMBER):
        (folder / f"{number:02d}.png").write_bytes(factories.make_png(number, 16, 16))
    return folder


def ingest(source: Path, out: Path, table: Path) -> Dataset:
    config = IngestConfig(source=str(source), out=str(out), labels=str(table), max_quarantined_fraction=0.9)
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(out))
    assert list(inspect.verify(dataset)) == []
    return dataset


def labels(dataset: Dataset) -> dict[str, str]:
    rows: Iterator[dict[str, Any]] = (
        row for split in dataset.splits for row in dataset.table(split, ["key", "label"]).to_pylist()
    )
    return {row["key"]: row["label"] for row in rows}


def refused(dataset: Dataset) -> list[tuple[str, str]]:
    return sorted((row["key"], row["reason"]) for row in inspect.quarantined(dataset))


def latin_parquet() -> bytes:
    """Return a Parquet table whose text column holds a byte that is not UTF-8."""
    latin = pa.array([b"00.png", b"caf\xe9"], pa.binary())
    names = pa.StringArray.from_buffers(2, latin.buffers()[1], latin.buffers()[2])
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": ["00.png", "01.png"], "label": names}), sink)
    return sink.getvalue()


REFUSALS: list[tuple[str, str, bytes, str]] = [
    ("M01 no label column", "t.csv", b"key,kind\n00.png,a\n", r"t.csv has the columns key, kind, and none of label"),
    ("M02 empty", "t.csv", b"", r"t.csv has no rows: it labels nothing"),
    ("M03 header only", "t.csv", b"key,label\n", r"t.csv has no rows: it labels nothing"),
    ("M06 Latin-1", "t.csv", "key,label\n00.png,a\n01.png,caf\xe9\n".encode("latin-1"), r"line 3, byte 11 is 0xE9"),
    ("M06 UTF-16", "t.csv", "key,label\n00.png,a\n".encode("utf-16"), r"line 1, byte 1 is 0xFF"),
    ("M07 open quote", "t.csv", b'key,label\n"00.png,a\n', r"cannot be read as a .csv table: unexpected end"),
    ("short row", "t.csv", b"key,label\n00.png\n", r"line 2 has another number of fields than its header"),
    ("not JSON", "t.jsonl", b'{"key": "00.png", "label": "a"}\n{"key"\n', r"t.jsonl line 2 cannot be read"),
    ("deep JSON", "t.jsonl", b"[" * 100_000, r"t.jsonl line 1 cannot be read"),
    ("no object", "t.jsonl", b'["00.png", "a"]\n', r"t.jsonl line 1 is no JSON object"),
    ("P02 cut Parquet", "t.parquet", b"PAR1" + bytes(40), r"t.parquet cannot be read as a .parquet table"),
    ("Latin-1 in Parquet", "t.parquet", latin_parquet(), r"t.parquet has a cell in column 'label' that cannot be read"),
    ("other kind", "t.ods", b"PK", r"t.ods is no table"),
]


@pytest.mark.parametrize(("name", "data", "message"), [case[1:] for case in REFUSALS], ids=[c[0] for c in REFUSALS])
def test_tables_that_are_refused_before_work(flat: Path, tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        ingest(flat, tmp_path / "out", tmp_path / name)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Case:
    """The first rows of a table, and what becomes of the first two images and of those rows."""

    text: str
    labels: dict[str, str | None]
    refused: tuple[tuple[str, str], ...] = ()
    warning: str = ""


A, B = "00.png", "01.png"
BAD_LABEL = "".join(["x"] * 200_000)
CASES = {
    "M04 NA null": Case(f"{A},NA\n{B},null\n", {A: "NA", B: "null"}),
    "M04 007 no": Case(f"{A},007\n{B},no\n", {A: "007", B: "no"}),
    "M04 1e3 spaces": Case(f"{A},1e3\n{B}, a b \n", {A: "1e3", B: " a b "}),
    "M04 empty": Case(f"{A},\n{B},a\n", {A: None, B: "a"}),
    "M04 twins": Case(
        f"{A},caf\u00e9\n{B},cafe\u0301\n", {A: "caf\u00e9", B: "caf\u00e9"}, warning="'café' is written in 2 ways"
    ),
    "M04 twins by space": Case(f"{A},cat \n{B}, cat\n", {A: "cat", B: "cat"}, warning="'cat' is written in 2 ways"),
    "M05 byte order mark": Case(f"\ufeff{A},a\n{B},b\n", {A: "a", B: "b"}),
    "M07 quoted newline": Case(f'{A},"two\r\nlines"\r\n{B},b\r\n', {A: "two\r\nlines", B: "b"}),
    "M08 NUL in a label": Case(f"{A},a\0b\n{B},b\n", {B: "b"}, ((A, "NUL"),)),
    "M08 NUL in a key": Case(f"x\0.png,a\n{A},a\n{B},b\n", {A: "a", B: "b"}, (("x\0.png", "NUL"),)),
    "M09 long label": Case(f"{A},{BAD_LABEL}\n{B},b\n", {B: "b"}, ((A, "CELL_SIZE"),)),
    "M10 same label": Case(f"{A},a\n{A},a\n{B},b\n", {A: "a", B: "b"}, ((A, "DUP_PATH"),)),
    "M10 other label": Case(f"{A},a\n{A},b\n{B},b\n", {B: "b"}, ((A, "LABEL_CONFLICT"), (A, "LABEL_CONFLICT"))),
    "M11 upwards": Case(f"../../x.png,a\n{A},a\n{B},b\n", {A: "a", B: "b"}, (("../../x.png", "UNSAFE_PATH"),)),
    "M11 absolute": Case(f"/etc/passwd,a\n{A},a\n{B},b\n", {A: "a", B: "b"}, (("/etc/passwd", "UNSAFE_PATH"),)),
    "M11 drive": Case(f"C:\\x.png,a\n{A},a\n{B},b\n", {A: "a", B: "b"}, (("C:\\x.png", "UNSAFE_PATH"),)),
    "M11 device": Case(f"/dev/zero,a\n{A},a\n{B},b\n", {A: "a", B: "b"}, (("/dev/zero", "UNSAFE_PATH"),)),
    "M11 dots": Case(f"{'.' * 10_000},a\n{A},a\n{B},b\n", {A: "a", B: "b"}, ((f"{'.' * 1_024}...", "UNSAFE_PATH"),)),
    "M13 formula": Case(f"{A},=cmd|' /C calc'!A0\n{B},<script>\n", {A: "=cmd|' /C calc'!A0", B: "<script>"}),
    "M13 escapes": Case(f"{A},\x1b[2J\n{B},b\n", {A: "\x1b[2J", B: "b"}),
    "elsewhere": Case(f"{A},a\n{B},b\nz.png,b\n", {A: "a", B: "b"}, warning="1 rows of .* name no image .* z.png"),
}
ADDRESSES = (
    "file:///etc/passwd",
    "http://169.254.169.254/",
    "http://[::ffff:127.0.0.1]/",
    "http://0x7f.1/",
    "simplecache::file:///etc/passwd",
    "pipe:id",
)  # M12: none is ever resolved, so that redirects and rebinding cannot arise
for address in ADDRESSES:
    CASES[f"M12 {address}"] = Case(f"{address},a\n{A},a\n{B},b\n", {A: "a", B: "b"}, ((address, "URL_DENIED"),))


@pytest.mark.parametrize("name", CASES)
def test_rows_end_as_stated_and_the_others_stay(
    flat: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("an address was looked up")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    case = CASES[name]
    start, mark = ("\ufeff", case.text[1:]) if case.text.startswith("\ufeff") else ("", case.text)
    (tmp_path / "t.csv").write_bytes(f"{start}key,label\n{mark}{OTHERS}".encode())
    dataset = ingest(flat, tmp_path / "out", tmp_path / "t.csv")
    found = labels(dataset)
    assert {key: found.pop(key) for key in (A, B) if key in found} == case.labels
    assert len(found) == NUMBER - 2
    assert refused(dataset) == sorted(case.refused)
    counts = dataset.catalog["counts"]
    assert counts["members"] == counts["written"] + counts["quarantined"] + counts["dropped"]
    warned = [text for text in dataset.catalog["warnings"] if "ways" in text or "name no image" in text]
    assert len(warned) == bool(case.warning)
    if case.warning:
        assert re.search(case.warning, warned[0])


def test_m13_too_many_classes_are_another_column(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MAX_CLASSES", 9)
    (tmp_path / "t.csv").write_text("key,label\n" + "".join(f"{n:02d}.png,id{n}\n" for n in range(NUMBER)))
    with pytest.raises(InputError, match=r"has 12 classes in 12 images; 9 are allowed\n  where: for example id0, id1,"):
        ingest(flat, tmp_path / "out", tmp_path / "t.csv")


def test_m13_a_class_of_one_image_is_warned_of(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"key,label\n{A},alone\n{B},b\n{OTHERS}")
    warnings = ingest(flat, tmp_path / "out", tmp_path / "t.csv").catalog["warnings"]
    assert any("1 class has one image only (alone)" in text for text in warnings)


def test_the_table_has_every_number() -> None:
    named = {*CASES, *(case[0] for case in REFUSALS)}
    assert {name[:3] for name in named if name[0] == "M"} == {f"M{number:02d}" for number in range(1, 14)}


def test_a_link_that_leads_out_is_no_way_round_the_table(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"key,label\nout/secret.png,a\n{PLAIN}")
    (tmp_path / "secret.png").write_bytes(factories.make_png(99, 16, 16))
    dataset = ingest(flat, tmp_path / "out", tmp_path / "t.csv")  # only what the source lists is read
    assert "out/secret.png" not in labels(dataset)


def test_names_with_accents_meet_their_rows_however_they_are_composed(flat: Path, tmp_path: Path) -> None:
    (flat / "cafe\u0301.png").write_bytes(factories.make_png(50, 16, 16))  # as macOS writes it
    (tmp_path / "t.csv").write_text(f"key,label\ncaf\u00e9.png,a\n{PLAIN}")
    dataset = ingest(flat, tmp_path / "out", tmp_path / "t.csv")
    assert labels(dataset)["cafe\u0301.png"] == "a"
    assert refused(dataset) == []


def test_json_lines_may_hold_any_line_separator(flat: Path, tmp_path: Path) -> None:
    rows = [{"key": f"{n:02d}.png", "label": "a\u2028b" if n else "c"} for n in range(NUMBER)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8")
    assert set(labels(ingest(flat, tmp_path / "out", tmp_path / "t.jsonl")).values()) == {"a\u2028b", "c"}


def test_a_parquet_table_is_as_strict(flat: Path, tmp_path: Path) -> None:
    keys = [f"{n:02d}.png" for n in range(NUMBER)]
    table = pa.table({"key": [*keys, A, "../x.png"], "label": [*"ab" * (NUMBER // 2), "b", "a"]})
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = ingest(flat, tmp_path / "out", tmp_path / "t.parquet")
    assert refused(dataset) == [("../x.png", "UNSAFE_PATH"), (A, "LABEL_CONFLICT"), (A, "LABEL_CONFLICT")]


IN_PARQUET: dict[str, tuple[str, dict[str, Any], str]] = {
    "upwards": ("../../x.png", {}, "UNSAFE_NAME"),
    "absolute": ("/etc/passwd", {}, "UNSAFE_NAME"),
    "NUL in a name": ("x\0.png", {}, "UNSAFE_NAME"),
    "long name": (f"{'n' * 2_000}.png", {}, "NAME_LONG"),
    "NUL in a label": ("x.png", {"label": "a\0"}, "NUL"),
    "NUL in a further column": ("x.png", {"site": "a\0"}, "NUL"),
    "long label": ("x.png", {"label": BAD_LABEL}, "CELL_SIZE"),
    "long cell": ("x.png", {"site": BAD_LABEL}, "CELL_SIZE"),
}


@pytest.mark.parametrize("name", IN_PARQUET)
def test_a_row_of_parquet_is_refused_as_a_table_or_an_archive_would(tmp_path: Path, name: str) -> None:
    path, cells, reason = IN_PARQUET[name]
    rows: list[dict[str, Any]] = [
        {
            "image": {"bytes": factories.make_png(n, 16, 16), "path": f"{n:02d}.png"},
            "label": "ab"[n % 2],
            "site": "north",
        }
        for n in range(NUMBER)
    ]
    rows[3] |= cells
    rows[3]["image"]["path"] = path
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    config = IngestConfig(source=str(tmp_path / "t.parquet"), out=str(tmp_path / "out"), max_quarantined_fraction=0.9)
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(tmp_path / "out"))
    assert list(inspect.verify(dataset)) == []
    ((key, found),) = refused(dataset)
    assert found == reason
    assert key.startswith(f"t.parquet!/{path[:20]}")
    assert len(key) < 1_100
    assert len(labels(dataset)) == NUMBER - 1


def test_names_in_a_list_of_labels_are_cells_too(tmp_path: Path) -> None:
    rows = [{"image": factories.make_png(n, 16, 16), "labels": ["a", "b\0" if n == 3 else "c"]} for n in range(NUMBER)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    entries = open_source(str(tmp_path / "t.parquet")).listing().entries
    assert [(entry.key, entry.reason, entry.label) for entry in entries if entry.reason] == [
        ("t.parquet!/000003", "NUL", None)
    ]
