"""De-identification: what was planted is in no file of the dataset, boxes tell nothing, the audit says what went."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset import inspect
from pipelines.dataset.collect import gc
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import ConfigError, DataError, InputError
from pipelines.image.decode import decode_image
from pipelines.image.header import RefusedImage
from pipelines.ingest import stage
from pipelines.ingest.audit import merge_audits, write_unit_audit
from pipelines.ingest.config import ImageConfig, IngestConfig, PrivacyConfig
from pipelines.ingest.privacy import Box, hide_regions, read_regions
from pipelines.ingest.stored import make_stored_image
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources.base import Unit
from pipelines.storage import Storage
from tests import factories, planted

STRIP = PrivacyConfig(strip_metadata=True)


def in_process(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for one in units:
        yield ingest_unit(one, job)


def ingest(source: Path, out: Path, **given: Any) -> Dataset:
    result = stage.run(IngestConfig(source=str(source), out=str(out), **given), in_process)
    dataset = open_dataset(result.out)
    assert list(inspect.verify(dataset)) == []
    return dataset


def live_rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for split in dataset.splits for row in dataset.table(split).to_pylist()]


def audit(dataset: Dataset) -> dict[str, dict[str, Any]]:
    (entry,) = dataset.catalog["audits"]
    rows = pq.read_table(f"{dataset.uri}/{entry['path']}").to_pylist()
    assert len(rows) == entry["rows"]
    return {row["image_id"]: row for row in rows}


@pytest.fixture
def planted_folder(tmp_path: Path) -> Path:
    """Every format with the secret in every block: small enough to be kept, and too large for it; and refused ones."""
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    for suffix, make in planted.MAKERS.items():
        (folder / f"small.{suffix}").write_bytes(make(64, 48))
        (folder / f"large.{suffix}").write_bytes(make(300, 260))
    turned = factories.make_jpeg(3, 64, 48, exif_orientation=6)
    (folder / "turned.jpg").write_bytes(turned[:2] + b"".join(planted.jpeg_segments()[1:]) + turned[2:])
    for number, data in enumerate(planted.png_with_more_data()):
        (folder / f"behind{number}.png").write_bytes(data)
    behind = factories.make_jpeg(4)[:-2] + planted.SECRET + b"\xff\xd9"
    (folder / "behind.jpg").write_bytes(behind)
    (folder / "tiny.jpg").write_bytes(planted.jpeg(8, 6))
    (folder / "cut.jpg").write_bytes(planted.jpeg(64, 48, progressive=True)[:900])
    (folder / "broken.png").write_bytes(planted.png(64, 48).replace(b"IDAT", b"ID" + planted.SECRET[:2], 1))
    return tmp_path / "set"


@pytest.mark.parametrize("encoding", ["auto", "webp"])
def test_nothing_planted_is_left_in_any_file(
    planted_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = ImageConfig(min_side_px=7, encoding=encoding)
    dataset = ingest(planted_folder, tmp_path / "out", image=settings, privacy=STRIP, max_quarantined_fraction=0.5)
    assert planted.tellers(tmp_path / "out") == []
    assert planted.SECRET.decode() not in caplog.text
    refused = {row["key"]: row for row in inspect.quarantined(dataset)}
    assert {key: row["reason"] for key, row in refused.items()} == {
        "cat/tiny.jpg": "TOO_SMALL",
        "cat/cut.jpg": "TRUNCATED",
        "cat/broken.png": "CORRUPT",
    }
    assert {(row["message"], row["thumbnail"]) for row in refused.values()} == {
        ("left out, as a privacy rule applies", None)
    }
    assert len(live_rows(dataset)) == 2 * len(planted.MAKERS) + 6


def test_without_a_rule_it_would_have_been_found(planted_folder: Path, tmp_path: Path) -> None:
    dataset = ingest(planted_folder, tmp_path / "out", max_quarantined_fraction=0.5)
    assert planted.tellers(tmp_path / "out")
    assert dataset.catalog["audits"] == []
    assert dataset.catalog["privacy"]["strip_metadata"] is False


def test_small_images_lose_their_metadata_and_keep_their_pixels(planted_folder: Path, tmp_path: Path) -> None:
    dataset = ingest(planted_folder, tmp_path / "out", privacy=STRIP, max_quarantined_fraction=0.5)
    assert dataset.catalog["privacy"]["strip_metadata"] is True
    found, audited = {row["key"]: row for row in live_rows(dataset)}, audit(dataset)
    assert audited.keys() == {row["image_id"] for row in found.values()}
    for key, row in found.items():
        source = (planted_folder / key).read_bytes()
        is_kept = key in ("cat/small.jpg", "cat/small.png", "cat/tiny.jpg")
        assert audited[row["image_id"]]["is_encoded"] is not is_kept, key
        assert row["source_sha256"] != row["stored_sha256"]
        if is_kept:
            assert row["image"]["bytes"] in (source, *_without_blocks(source))
            np.testing.assert_array_equal(decode_image(row["image"]["bytes"]).pixels, decode_image(source).pixels)
    removed = {block["kind"]: block["bytes"] for block in audited[found["cat/small.jpg"]["image_id"]]["removed"]}
    assert removed["comment"] > 2 * len(planted.SECRET)
    assert removed["trailing"] == len(planted.SECRET)
    assert {"EXIF", "XMP", "ICC", "MPF", "IPTC", "JFIF", "APP3", "APP15"} <= removed.keys()
    assert audited[found["cat/small.jpg"]["image_id"]]["regions"] == []
    assert inspect.show(dataset.uri)["audits"] == [f"{dataset.uri}/{dataset.catalog['audits'][0]['path']}"]
    gc(dataset.storage, dead_after_s=-1)
    assert audit(dataset) == audited
    path = dataset.catalog["audits"][0]["path"]
    dataset.storage.put(path, b"changed")
    assert [problem.path for problem in inspect.verify(dataset)] == [path]


def _without_blocks(source: bytes) -> list[bytes]:
    from pipelines.image.metadata import strip_blocks

    stripped = strip_blocks(source, decode_image(source).format)
    return [] if stripped is None else [stripped]


def test_a_declared_profile_stays_and_is_not_in_the_audit() -> None:
    keep = PrivacyConfig(strip_metadata=True, keep_color_profile=True)
    image = make_stored_image(planted.jpeg(64, 48), "a.jpg", ImageConfig(), keep)
    assert b"ICC_PROFILE" in image.data
    assert "ICC" not in {block.kind for block in image.removed}
    assert "EXIF" in {block.kind for block in image.removed}
    encoded = make_stored_image(planted.jpeg(300, 260), "a.jpg", ImageConfig(), keep)
    assert "ICC" in {block.kind for block in encoded.removed}


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Thirty noisy pictures and a table with a box for each."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = ["key,label,site,boxes"]
    for number in range(30):
        (folder / f"{number:02d}.png").write_bytes(factories.make_png(number, 80, 60))
        boxes = [[10, 10, 40, 30]] if number else []
        lines.append(f'{number:02d}.png,{"ab"[number % 2]},north,"{json.dumps(boxes)}"')
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_boxes_are_hidden_and_their_column_stays_behind(boxed: Path, tmp_path: Path) -> None:
    privacy = PrivacyConfig(region_column="boxes")
    labels = str(tmp_path / "labels.csv")
    dataset = ingest(boxed, tmp_path / "out", labels=labels, privacy=privacy)
    assert dataset.catalog["carried"] == ["site"]
    audited = audit(dataset)
    for row in live_rows(dataset):
        pixels, source = (
            decode_image(row["image"]["bytes"]).pixels,
            decode_image((boxed / row["key"]).read_bytes()).pixels,
        )
        line = audited[row["image_id"]]
        assert "boxes" not in row
        assert row["site"] == "north"
        if row["key"] == "00.png":
            assert (line["regions"], line["region_method"]) == ([], None)
            np.testing.assert_array_equal(pixels, source)
            continue
        assert (line["regions"], line["region_method"]) == ([[10, 10, 40, 30]], "fill")
        assert line["is_encoded"]
        assert pixels[12:38, 12:48].max() < 20  # JPEG blends a little of the edge into black
        assert np.abs(pixels[:, 60:].astype(int) - source[:, 60:]).mean() < 15
    kept = PrivacyConfig(region_column="boxes", keep_region_column=True)
    again = ingest(boxed, tmp_path / "kept", labels=labels, privacy=kept)
    assert again.catalog["carried"] == ["site", "boxes"]
    assert again.catalog["key"] != dataset.catalog["key"]


def test_an_image_whose_boxes_cannot_be_read_is_not_stored(boxed: Path, tmp_path: Path) -> None:
    table = (tmp_path / "labels.csv").read_text()
    for number, wrong in enumerate(("face", "[[99, 99, 40, 30]]", "[[1e308, 0, 1e308, 5]]", f"[[{HUGE}, 0, 1, 1]]"), 1):
        name = f"{number:02d}.png,{'ab'[number % 2]},north,"
        table = table.replace(f'{name}"[[10, 10, 40, 30]]"', f'{name}"{wrong}"')
    (tmp_path / "labels.csv").write_text(table)
    privacy = PrivacyConfig(region_column="boxes")
    labels = str(tmp_path / "labels.csv")
    dataset = ingest(boxed, tmp_path / "out", labels=labels, privacy=privacy, max_quarantined_fraction=0.2)
    assert {row["key"]: row["reason"] for row in inspect.quarantined(dataset)} == dict.fromkeys(
        ("01.png", "02.png", "03.png", "04.png"), "REGIONS"
    )


def test_a_missing_column_of_boxes_stops_the_ingest(boxed: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"privacy\.region_column is faces, and the source has no such column"
    ) as raised:
        ingest(
            boxed,
            tmp_path / "out",
            labels=str(tmp_path / "labels.csv"),
            privacy=PrivacyConfig(region_column="faces"),
        )
    assert "labels=TABLE.csv" in str(raised.value)
    assert not (tmp_path / "out" / "_versions").exists()


def test_what_is_appended_has_its_boxes_hidden_too(boxed: Path, tmp_path: Path) -> None:
    privacy = PrivacyConfig(region_column="boxes")
    ingest(boxed, tmp_path / "out", labels=str(tmp_path / "labels.csv"), privacy=privacy)
    other = tmp_path / "more"
    other.mkdir()
    (other / "new.png").write_bytes(factories.make_png(77, 80, 60))
    (tmp_path / "more.csv").write_text('key,label,site,boxes\nnew.png,a,south,"[[10,10,40,30]]"\n')
    joined = ingest(other, tmp_path / "out", labels=str(tmp_path / "more.csv"), append=True)
    assert joined.version == 2
    (row,) = [row for row in live_rows(joined) if row["key"] == "new.png"]
    assert decode_image(row["image"]["bytes"]).pixels[12:38, 12:48].max() < 20
    assert [entry["rows"] for entry in joined.catalog["audits"]] == [30, 1]
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "x.png").write_bytes(factories.make_png(78, 80, 60))
    with pytest.raises(InputError, match=r"privacy\.region_column is boxes, and the source has no such column"):
        ingest(plain, tmp_path / "out", append=True)


@pytest.mark.parametrize("is_private", [True, False], ids=["private", "plain"])
def test_warnings_and_errors_name_no_image_where_a_rule_applies(
    boxed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_private: bool
) -> None:
    (boxed / "00.png").rename(boxed / "John Smith.png")
    table = tmp_path / "labels.csv"
    lines = table.read_text().replace("00.png", "John Smith.png")
    table.write_text(lines + "sub/John Smith 1970.png,a,north,\n")
    told = {"labels": str(table), "privacy": STRIP if is_private else PrivacyConfig()}
    dataset = ingest(boxed, tmp_path / "out", **told)
    (absent,) = [warning for warning in dataset.catalog["warnings"] if "name no image of the source" in warning]
    messages = [absent, caplog.text]
    with pytest.raises(ConfigError, match=r"split\.time is site") as raised:
        ingest(boxed, tmp_path / "by_time", split={"by": "time", "time": "site"}, **told)
    messages.append(str(raised.value))
    table.write_text("key,label\nJohn Smith 1970.png,a\n")
    with pytest.raises(InputError, match="names none of the") as unnamed:
        ingest(boxed, tmp_path / "none", **told)
    messages.append(str(unnamed.value))
    assert ("John" in "".join(messages)) is not is_private
    assert ("north" in messages[2]) is not is_private


@pytest.mark.parametrize(("limit", "tables"), [(2**20, 1), (1, 5)], ids=["one", "many"])
def test_audits_are_merged_into_tables_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, tables: int
) -> None:
    monkeypatch.setattr("pipelines.ingest.audit.MAX_TABLE_BYTES", limit)
    store = Storage.open(tmp_path)
    row = {"is_encoded": True, "removed": [], "regions": [], "region_method": None}
    receipts = [
        {
            "audit": write_unit_audit(
                store, "run", unit, "a", [{"image_id": f"{unit}-{number}", **row} for number in "xy"]
            )
        }
        for unit in range(5)
    ]
    entries = merge_audits(store, "run", [*receipts, {}])
    assert len(entries) == len({entry["path"] for entry in entries}) == tables
    read = [row["image_id"] for entry in entries for row in pq.read_table(tmp_path / entry["path"]).to_pylist()]
    assert read == [f"{unit}-{number}" for unit in range(5) for number in "xy"]
    assert sum(entry["rows"] for entry in entries) == 10
    assert merge_audits(store, "run", [{}]) == []


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(float).ravel(), other.astype(float).ravel()
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(abs(np.corrcoef(one, other)[0, 1]))


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(["fill", "pixelate", "blur"]),
    x=st.integers(-20, 180),
    y=st.integers(-20, 130),
    width=st.integers(24, 120),
    height=st.integers(24, 120),
    seed=st.integers(0, 3),
)
def test_pixels_of_a_box_do_not_correlate_with_what_was_there(
    method: Any, x: int, y: int, width: int, height: int, seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    privacy = PrivacyConfig(region_column="boxes", region_method=method)
    image = make_stored_image(
        factories.encode(noise, "PNG"), "a.png", ImageConfig(encoding="png"), privacy, [Box(x, y, width, height)]
    )
    left, top, right, bottom = max(0, x), max(0, y), min(200, x + width), min(150, y + height)
    stored = decode_image(image.data).pixels
    inside, before = stored[top:bottom, left:right], noise[top:bottom, left:right]
    outside = np.ones((150, 200), bool)
    outside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
    np.testing.assert_array_equal(stored[outside], noise[outside])
    if min(inside.shape[:2]) >= 16:
        assert correlation(inside, before) < 0.3
    distinct = len(np.unique(inside.reshape(-1, 3), axis=0))
    if method != "blur":
        assert distinct <= (1 if method == "fill" else 25)


@pytest.mark.parametrize("size_px", [0, 250], ids=["kept size", "an eighth"])
def test_boxes_of_a_photo_that_could_be_decoded_at_a_scale_are_where_they_are_said(size_px: int) -> None:
    photo, boxes = factories.make_jpeg(1, 2_000, 1_600), [Box(800, 400, 800, 600)]
    config = ImageConfig(size_px=size_px, mode="fit")
    plain = decode_image(make_stored_image(photo, "a.jpg", config).data).pixels
    hidden = make_stored_image(photo, "a.jpg", config, PrivacyConfig(region_column="boxes"), boxes)
    pixels = decode_image(hidden.data).pixels
    assert pixels.shape == plain.shape
    per = 2_000 / pixels.shape[1]
    left, top, right, bottom = (round(value / per) for value in (800, 400, 1_600, 1_000))
    assert pixels[top + 3 : bottom - 3, left + 3 : right - 3].max() < 20
    outside = np.ones(pixels.shape[:2], bool)
    outside[top - 8 : bottom + 8, left - 8 : right + 8] = False
    assert np.abs(pixels[outside].astype(int) - plain[outside]).mean() < 4


@pytest.mark.parametrize("method", ["fill", "pixelate", "blur"])
@pytest.mark.parametrize("side", [1, 3, 8, 40, 200])
def test_no_box_is_too_small_or_too_large_to_hide(method: Any, side: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    hidden = hide_regions(pixels, [Box(20, 30, side, side)], PrivacyConfig(region_column="b", region_method=method))
    inside = hidden[30 : 30 + side, 20 : 20 + side].astype(int)
    assert not np.array_equal(inside, pixels[30 : 30 + side, 20 : 20 + side])
    if method == "pixelate":
        assert len(np.unique(inside.reshape(-1, 3), axis=0)) <= 16
    detail = np.abs(np.diff(inside, axis=1)).mean() if side > 3 else 0.0
    assert detail < 30  # neighbours of noise differ by 85


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (None, ()),
        ("", ()),
        ("[]", ()),
        ("[1, 2, 3, 4]", (Box(1, 2, 3, 4),)),
        ("[[1, 2, 3, 4], [0.5, 0, 1e2, 7]]", (Box(1, 2, 3, 4), Box(0.5, 0, 100, 7))),
    ],
    ids=["null", "empty", "none", "one", "two"],
)
def test_boxes_are_read(text: str | None, boxes: tuple[Box, ...]) -> None:
    assert read_regions(text) == boxes


HUGE = "9" * 400


@pytest.mark.parametrize(
    "text",
    [
        "x", "null", "{}x", "[[1,2,3]]", "[[1,2,3,4,5]]", "[[1,2,0,4]]", "[[1,2,3,NaN]]", '[["a",2,3,4]]', "7",
        "[null]", "{}", '""', '["1234"]', '[[0,0,"5","5"]]', "[true,false,true,true]", '{"x":1}', "false",
        "[[1e308,0,1e308,5]]", f"[[{HUGE},0,1,1]]", "[[0,0,1e400,3]]",
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(RefusedImage) as caught:
        read_regions(text)
    assert caught.value.reason == "REGIONS"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_color_profile": True}, "keep_color_profile is for privacy.strip_metadata=true, which is off"),
        ({"region_method": "blur"}, "region_method is for regions; name their column"),
    ],
    ids=["profile", "method"],
)
def test_settings_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrivacyConfig(**values)


def test_without_a_rule_refused_images_have_thumbnails_and_rows_say_what_was_cut(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    (folder / "wide.jpg").write_bytes(factories.make_jpeg(1, 400, 300))
    (folder / "small.jpg").write_bytes(factories.make_jpeg(2, 300, 20))
    (folder / "cut.jpg").write_bytes(factories.make_jpeg(3)[:700])
    dataset = ingest(
        tmp_path / "set", tmp_path / "out", image=ImageConfig(min_side_px=30), max_quarantined_fraction=0.9
    )
    (row,) = live_rows(dataset)
    assert row["cropped_fraction"] == pytest.approx(0.25)
    thumbnails = {row["key"]: row["thumbnail"] for row in inspect.quarantined(dataset)}
    assert thumbnails["cat/cut.jpg"] is None
    assert decode_image(thumbnails["cat/small.jpg"]).pixels.shape == (6, 96, 3)


def test_keys_are_in_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "test"):
        factories.write_class_folder(tmp_path / "set" / split, {"cat": 12}, seed=len(split))
    (tmp_path / "set" / "Erika.jpg").write_bytes(factories.make_jpeg(99, 32, 32))
    (tmp_path / "set" / "test" / "cat" / "Erika-2.jpg").write_bytes(b"text")
    dataset = ingest(tmp_path / "set", tmp_path / "out", privacy=STRIP)
    assert any("an image lies in none of them" in warning for warning in dataset.catalog["warnings"])
    with pytest.raises(DataError) as raised:
        ingest(tmp_path / "set", tmp_path / "strict", privacy=STRIP, max_quarantined_fraction=0.01)
    assert "Erika" not in caplog.text + str(raised.value)
