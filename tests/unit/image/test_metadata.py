"""Blocks beside the pixels: each is listed, none is left, and the pixels stay bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.image.decode import decode_image
from pipelines.image.header import RefusedImage
from pipelines.image.metadata import Block, list_blocks, strip_blocks
from tests import factories, planted

KINDS = {
    "jpg": {"EXIF", "XMP", "ICC", "MPF", "IPTC", "JFIF", "APP0", "comment", "trailing"}
    | {f"APP{n}" for n in range(3, 16)},
    "png": {"text", "EXIF", "ICC", "other", "trailing"},
    "webp": {"EXIF", "XMP", "ICC", "other", "trailing"},
    "tif": {"text", "XMP", "IPTC", "other"},
    "gif": {"comment", "application", "trailing"},
}


@pytest.mark.parametrize("suffix", planted.MAKERS)
def test_every_kind_of_block_is_listed(suffix: str) -> None:
    data = planted.MAKERS[suffix](64, 48)
    assert planted.is_told(data)
    blocks = list_blocks(data, decode_image(data).format)
    assert {block.kind for block in blocks} == KINDS[suffix]
    assert [block.kind for block in blocks] == sorted(KINDS[suffix])
    assert all(0 < block.size < len(data) for block in blocks)
    assert sum(block.size for block in blocks) < len(data)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("make", ["ycc", "grey", "cmyk-adobe"])
def test_stripped_jpegs_have_their_pixels_and_nothing_else(make: str, progressive: bool) -> None:
    plain = {
        "ycc": lambda: planted.jpeg(61, 47, progressive=progressive),
        "grey": lambda: factories.encode(factories.make_pixels(channels=1), "JPEG", progressive=progressive),
        "cmyk-adobe": lambda: next(case.data for case in factories.image_cases() if case.name == "cmyk-adobe.jpg"),
    }[make]()
    data = plain[:2] + b"".join(planted.jpeg_segments()) + plain[2:]
    stripped = strip_blocks(data, "JPEG")
    assert stripped is not None
    assert not planted.is_told(stripped)
    assert list_blocks(stripped, "JPEG") == ()
    assert strip_blocks(stripped, "JPEG") == stripped
    np.testing.assert_array_equal(decode_image(stripped).pixels, decode_image(data).pixels)


def test_stripped_pngs_have_their_pixels_and_nothing_else() -> None:
    data = planted.png(64, 48)
    stripped = strip_blocks(data, "PNG")
    assert stripped is not None
    assert not planted.is_told(stripped)
    assert list_blocks(stripped, "PNG") == ()
    np.testing.assert_array_equal(decode_image(stripped).pixels, decode_image(data).pixels)


def test_a_jfif_segment_that_is_none_to_the_decoder_becomes_none() -> None:
    """Without JFIF a decoder goes by the component ids, here R, G and B, with it by YCbCr."""
    rgb = factories.encode(factories.make_pixels(), "JPEG", keep_rgb=True, subsampling=0)
    frame = rgb.index(b"\xff\xdb")
    short = rgb[:2] + b"\xff\xe0\0\x0bJFIF\0\1\1\0\0" + rgb[frame:]
    pixels = decode_image(short).pixels
    assert np.abs(pixels.astype(int) - factories.make_pixels()).mean() < 20
    stripped = strip_blocks(short, "JPEG")
    assert stripped == rgb[:2] + rgb[frame:]
    np.testing.assert_array_equal(decode_image(stripped).pixels, pixels)
    assert [block.kind for block in list_blocks(short, "JPEG")] == ["APP0"]


def test_places_that_a_decoder_skips_are_not_kept() -> None:
    for data in planted.png_with_more_data():
        assert strip_blocks(data, "PNG") is None
    assert strip_blocks(factories.encode(factories.make_pixels(), "WEBP"), "WEBP") is None
    behind_the_scan = factories.make_jpeg()[:-2] + planted.SECRET + b"\xff\xd9"
    assert not decode_image(behind_the_scan).is_strict


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("interval", [0, 4], ids=["undeclared", "declared"])
def test_restart_markers_that_say_something_are_not_kept(interval: int, progressive: bool) -> None:
    """A decoder takes any of them after the last block without a complaint: three bits each."""
    pixels = factories.make_pixels()
    data = factories.encode(pixels, "JPEG", restart_marker_blocks=interval, progressive=progressive)
    digits = "".join(f"{byte:08b}" for byte in b"SECRET")
    told = b"".join(bytes([0xFF, 0xD0 | int(digits[place : place + 3], 2)]) for place in range(0, len(digits), 3))
    tells = data[:-2] + told + data[-2:]
    assert decode_image(tells).is_strict
    stripped = strip_blocks(tells, "JPEG")
    assert stripped is not None
    assert told not in stripped
    assert len(stripped) <= len(data) + 2  # one of them may be the next in turn
    np.testing.assert_array_equal(decode_image(stripped).pixels, decode_image(data).pixels)
    plain = strip_blocks(data, "JPEG")
    assert plain is not None
    np.testing.assert_array_equal(decode_image(plain).pixels, decode_image(data).pixels)
    assert decode_image(plain).is_strict


def test_a_declared_profile_stays() -> None:
    for make, image_format in ((planted.jpeg, "JPEG"), (planted.png, "PNG")):
        kept = strip_blocks(make(64, 48), image_format, keep_profile=True)
        assert kept is not None
        assert [block.kind for block in list_blocks(kept, image_format)] == ["ICC"]


def test_other_formats_are_not_told_apart() -> None:
    for image_format in ("BMP", "AVIF", "PPM"):
        data = factories.encode(factories.make_pixels(), image_format)
        assert list_blocks(data, image_format) == (Block("unlisted", 0),)


@settings(max_examples=200)
@given(place=st.floats(0, 1), progressive=st.booleans(), marker=st.sampled_from([None, 0xE5, 0xFE, 0xBF, 0xF0]))
def test_a_secret_put_anywhere_into_a_jpeg_is_not_stored(place: float, progressive: bool, marker: int | None) -> None:
    data = factories.make_jpeg(2, 48, 40, progressive=progressive)
    at = round(place * len(data))
    block = planted.SECRET if marker is None else planted.segment(marker, planted.SECRET)
    _assert_not_stored(data[:at] + block + data[at:])


@settings(max_examples=200)
@given(place=st.floats(0, 1), kind=st.sampled_from([None, b"prVt", b"PRVT", b"tEXt", b"IDAT"]))
def test_a_secret_put_anywhere_into_a_png_is_not_stored(place: float, kind: bytes | None) -> None:
    data = factories.make_png(2, 24, 20)
    at = round(place * len(data))
    block = planted.SECRET if kind is None else factories.png_chunk(kind, planted.SECRET)
    _assert_not_stored(data[:at] + block + data[at:])


def _assert_not_stored(data: bytes) -> None:
    try:
        image = decode_image(data)
    except RefusedImage:
        return
    is_read = image.format == "PNG" or image.is_strict
    stripped = strip_blocks(data, image.format) if is_read else None
    assert stripped is None or not planted.is_told(stripped)
    assert stripped is None or np.array_equal(decode_image(stripped).pixels, image.pixels)
