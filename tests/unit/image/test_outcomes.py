"""Every bad and unusual input has its stated outcome, with the exact code."""

from __future__ import annotations

import subprocess
import time

import pytest

from pipelines.image.decode import decode_image
from pipelines.image.header import Limits, RefusedImage
from pipelines.image.sniff import name_flags, sniff_image
from tests import factories

CASES = factories.image_cases()


@pytest.mark.parametrize("case", [case for case in CASES if case.reason], ids=lambda case: case.name)
def test_refused_with_its_code(case: factories.ImageCase) -> None:
    data = case.data
    started_s = time.process_time()  # of this process: a busy machine must not fail the test
    with pytest.raises(RefusedImage) as caught:
        decode_image(data)
    assert caught.value.reason == case.reason, caught.value.message
    assert caught.value.message
    assert time.process_time() - started_s < 2


@pytest.mark.parametrize("case", [case for case in CASES if not case.reason], ids=lambda case: case.name)
def test_accepted_with_its_flags(case: factories.ImageCase) -> None:
    image = decode_image(case.data)
    assert image.flags == case.flags
    assert image.pixels.dtype.name == "uint8"
    assert image.pixels.ndim == 3
    assert image.pixels.shape[2] == 3
    assert image.pixels.flags.c_contiguous


CORPUS = {
    "I01": ["zero-bytes.jpg"],
    "I02": ["one-byte.png"],
    "I03": ["magic-only.jpg"],
    "I04": [f"jpeg-cut-{tenths}0pct.jpg" for tenths in range(1, 10)],
    "I05": ["jpeg-no-end-marker.jpg"],
    "I06": ["png-cut-in-data.png", "png-without-end.png"],
    "I07": ["png-data-flipped.png"],
    "I08": ["jpeg-scan-flipped.jpg"],
    "I09": ["jpeg-trailing-garbage.jpg"],
    "I10": ["html-page.jpg"],
    "I11": ["text.png"],
    "I12": ["random-64k.jpg"],
    "I15": ["cmyk.jpg"],
    "I16": ["cmyk-adobe.jpg"],
    "I17": ["grey.jpg"],
    "I18": ["progressive.jpg"],
    "I19": ["grey16.png"],
    "I20": ["rgb16.png"],
    "I21": ["palette-transparent.png"],
    "I22": ["rgba.png"],
    "I23": ["la.png"],
    "I24": ["one-bit.png"],
    "I25": ["color-key.png"],
    "I26": [f"exif-{orientation}.jpg" for orientation in range(1, 9)],
    "I27": ["exif-99.jpg"],
    "I28": ["exif-garbage.jpg"],
    "I29": ["animated.gif"],
    "I30": ["animated.webp"],
    "I31": ["animated.png"],
    "I32": ["pages.tif"],
    "I33": ["gif-3000-frames.gif"],
    "I34": ["photo.heic"],
    "I35": ["avif.avif"],
    "I36": ["avif-cut.avif"],
    "I37": ["webp-cut.webp"],
    "I38": ["jpeg2000.jp2"],
    "I39": ["png-30000x30000.png"],
    "I40": ["png-10000x10000.png"],
    "I41": ["png-2g-wide.png"],
    "I42": ["png-zero-width.png"],
    "I43": ["one-pixel.png"],
    "I44": ["jpeg-65500x1.jpg"],
    "I45": ["png-text-bomb.png"],
    "I46": ["png-profile-bomb.png"],
    "I47": ["tiff-strip-past-end.tif", "tiff-too-few-rows.tif"],
    "I48": ["tiff-2g-square.tif"],
    "I49": ["postscript.jpg"],
    "I50": ["vector.svg"],
    "I51": ["layers.psd"],
    "I52": ["telescope.fits"],
    "I53": ["icon-with-bomb.ico"],
    "I54": ["jpeg-arithmetic.jpg"],
    "I55": ["jpeg-12-bit.jpg"],
    "I56": ["float32.tif"],
    "I57": ["two-pictures.jpg"],
}
"""Number in the list of bad inputs -> cases. I13 and I14 are names and not bytes (`test_name_flags`); I58, a decoder
that hangs or asks for too much memory, is in `tests/unit/ingest/test_watchdog.py`."""


def test_every_bad_input_of_the_list_has_its_case() -> None:
    named = {case.name for case in CASES}
    assert [name for names in CORPUS.values() for name in names if name not in named] == []
    assert [f"I{number:02d}" for number in range(1, 58) if number not in (13, 14)] == sorted(CORPUS)


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 70


def test_messages_say_what_is_wrong() -> None:
    def message(name: str) -> str:
        with pytest.raises(RefusedImage) as caught:
            decode_image(next(case.data for case in CASES if case.name == name))
        return str(caught.value)

    assert message("zero-bytes.jpg") == "EMPTY: the file has no bytes"
    assert message("html-page.jpg") == "NOT_IMAGE: the first bytes are of no image format"
    assert message("photo.heic") == (
        "FORMAT_DENIED: HEIC is not decoded; convert it first, for example with pillow-heif"
    )
    assert message("jpeg-no-end-marker.jpg") == "TRUNCATED: the JPEG has no end marker"
    assert message("png-30000x30000.png") == "BOMB_PIXELS: 30000 x 30000 pixels are more than 50,000,000"
    assert message("jpeg-65500x1.jpg") == "ASPECT: 65500 x 1 pixels are longer than 100 to 1"
    assert message("float32.tif") == (
        "MODE: 32-bit float samples have no declared range; 8 and 16-bit unsigned are read,"
        " others with image.value_range=[LOWEST, HIGHEST]"
    )
    assert message("png-text-bomb.png") == "BOMB_META: a zTXt chunk unpacks to more than 1,048,576 bytes"


def test_limits_are_obeyed() -> None:
    jpeg = factories.make_jpeg(width=64, height=48)
    for limits, reason in [
        (Limits(max_bytes=100), "TOO_LARGE"),
        (Limits(max_pixels=64 * 48 - 1), "BOMB_PIXELS"),
        (Limits(max_side_px=63), "BOMB_PIXELS"),
        (Limits(min_side_px=49), "TOO_SMALL"),
    ]:
        with pytest.raises(RefusedImage) as caught:
            decode_image(jpeg, limits)
        assert caught.value.reason == reason
    decode_image(jpeg, Limits(max_pixels=64 * 48, max_side_px=64, min_side_px=48))


def test_side_limit_is_a_pixel_bomb() -> None:
    with pytest.raises(RefusedImage) as caught:
        sniff_image(factories.raw_png(40_000, 1_000, b"", color=0))
    assert str(caught.value) == "BOMB_PIXELS: 40000 x 1000 pixels have a side above 30,000"


def test_postscript_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(RefusedImage, match="FORMAT_DENIED: EPS is not among the allowed formats"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


def test_refusal_survives_pickling() -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(RefusedImage("MODE", "because")))
    assert (copy.reason, copy.message) == ("MODE", "because")


def test_name_flags() -> None:
    assert name_flags("a/b.jpg", "JPEG") == ()
    assert name_flags("a/b.JPEG", "JPEG") == ()
    assert name_flags("a/b.jpg", "PNG") == ("ext_mismatch",)
    assert name_flags("a.jpg/b", "JPEG") == ("ext_mismatch",)
    assert name_flags("b.tar", "JPEG") == ("ext_mismatch",)


def test_mutated_bytes_never_escape() -> None:
    import random

    generator = random.Random(7)
    seeds = [case.data for case in CASES if len(case.data) < 20_000]
    refused = 0
    for _ in range(1_500):
        data = bytearray(generator.choice(seeds))
        for _ in range(generator.randint(1, 4)):
            if data:
                data[generator.randrange(len(data))] = generator.randrange(256)
        if generator.random() < 0.3:
            del data[generator.randrange(len(data) + 1) :]
        try:
            decode_image(bytes(data))
        except RefusedImage:
            refused += 1
    assert refused > 300
