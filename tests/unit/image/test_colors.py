"""One declared rule for each kind of colour: grey, palette, alpha, CMYK, 16-bit, 32-bit, float, animated."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipelines.image.decode import ValueRange, decode_image
from pipelines.image.header import RefusedImage
from pipelines.image.preprocess import Preprocess, prepare_raw, prepare_stored
from pipelines.image.resize import Geometry
from pipelines.ingest.config import ImageConfig
from pipelines.ingest.stored import make_preprocess, make_stored_image
from tests import factories

GREY16 = np.linspace(0, 65_535, 64 * 48).astype(np.uint16).reshape(48, 64)
SIGNED = np.linspace(-1_000, 3_000, 64 * 48).astype(np.int16).reshape(48, 64)
FLOAT = np.linspace(-0.5, 1.5, 64 * 48).astype(np.float32).reshape(48, 64)
RGB = factories.make_pixels(4)


def pfm(values: np.ndarray) -> bytes:
    """Return a grey portable float map: rows from the bottom up, little endian."""
    return b"Pf\n%d %d\n-1.0\n" % (values.shape[1], values.shape[0]) + values[::-1].astype("<f4").tobytes()


def frames(image_format: str) -> bytes:
    pictures = [Image.fromarray(factories.make_pixels(n)) for n in range(3)]
    options = {"lossless": True} if image_format == "WEBP" else {}
    return factories.encode(pictures[0], image_format, save_all=True, append_images=pictures[1:], **options)


RULES: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray], float]] = {
    "grey: the same value thrice": (
        lambda: factories.encode(RGB[..., 0], "PNG"),
        lambda: RGB[..., :1].repeat(3, axis=2),
        0,
    ),
    "one bit: black and white": (
        lambda: factories.encode(Image.fromarray(RGB[..., 0] > 99), "PNG"),
        lambda: ((RGB[..., :1] > 99) * np.uint8(255)).repeat(3, axis=2),
        0,
    ),
    "palette: its colours": (
        lambda: factories.encode(Image.fromarray(RGB).quantize(64), "PNG"),
        lambda: np.asarray(Image.fromarray(RGB).quantize(64).convert("RGB")),
        0,
    ),
    "alpha: composited on the background": (
        lambda: factories.encode(np.dstack([RGB, np.full(RGB.shape[:2], 51, np.uint8)]), "PNG"),
        lambda: np.rint(RGB * 0.2 + 255 * 0.8),
        1,
    ),
    "CMYK: as Pillow converts it": (
        lambda: factories.encode(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
        lambda: np.asarray(Image.fromarray(RGB).convert("CMYK").convert("RGB")),
        0,
    ),
    "16-bit: the upper 8": (
        lambda: factories.encode(Image.fromarray(GREY16), "PNG"),
        lambda: (GREY16 >> 8)[..., None].repeat(3, axis=2),
        0,
    ),
    "animated GIF: the first frame": (lambda: frames("GIF"), lambda: factories.make_pixels(0), 40),
    "animated WebP: the first frame": (lambda: frames("WEBP"), lambda: factories.make_pixels(0), 0),
    "animated PNG: the first frame": (lambda: frames("PNG"), lambda: factories.make_pixels(0), 0),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    make, expected, tolerance = RULES[rule]
    pixels = decode_image(make()).pixels
    assert np.abs(pixels.astype(float) - expected()).mean() <= tolerance
    # the rule is no surprise later: what is stored is what is scored
    stored = make_stored_image(make(), "a", ImageConfig())
    np.testing.assert_array_equal(decode_image(stored.data).pixels, pixels)


RANGED: dict[str, tuple[Callable[[], bytes], np.ndarray, ValueRange]] = {
    "16-bit PNG": (lambda: factories.encode(Image.fromarray(GREY16), "PNG"), GREY16, (1_000, 5_095)),
    "16-bit TIFF": (lambda: factories.encode(Image.fromarray(GREY16), "TIFF"), GREY16, (0, 65_535)),
    "16-bit PGM": (lambda: b"P5 64 48 65535\n" + GREY16.astype(">u2").tobytes(), GREY16, (100, 200)),
    "float TIFF": (lambda: factories.encode(Image.fromarray(FLOAT), "TIFF"), FLOAT, (0, 1)),
    "float PFM": (lambda: pfm(FLOAT), FLOAT, (-0.25, 0.75)),
    "32-bit TIFF": (
        lambda: factories.encode(Image.fromarray(SIGNED.astype(np.int32)), "TIFF"),
        SIGNED.astype(np.int32),
        (-1_000, 2_000),
    ),
}


def tiff32(values: np.ndarray, sample_format: int, order: str = "<") -> bytes:
    """Return a grey TIFF of 32-bit samples: 1 unsigned, 2 signed, 3 float; Pillow writes no unsigned ones."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    fields = [(256, width), (257, height), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    fields += [(279, len(data)), (339, sample_format)]
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in fields)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(fields)) + directory + bytes(4)


UNSIGNED = np.linspace(0, 2**32 - 1, 64 * 48).astype(np.uint32).reshape(48, 64)
NARROW = (10**9 + np.arange(64 * 48) % 256).astype(np.uint32).reshape(48, 64)
RANGED["32-bit unsigned TIFF"] = (lambda: tiff32(UNSIGNED, 1), UNSIGNED, (0, 2.0**32 - 1))
RANGED["32-bit unsigned TIFF in a narrow range"] = (lambda: tiff32(NARROW, 1), NARROW, (1e9, 1e9 + 255))
RANGED["32-bit signed TIFF, big-endian"] = (lambda: tiff32(SIGNED.astype(np.int32), 2, ">"), SIGNED, (-900, 2_000))


@pytest.mark.parametrize("kind", RANGED)
def test_a_declared_range_is_linear_and_clipped(kind: str) -> None:
    make, values, (low, high) = RANGED[kind]
    image = decode_image(make(), value_range=(low, high))
    expected = np.clip((values.astype(np.float64) - low) * 255 / (high - low), 0, 255)
    assert np.abs(image.pixels[..., 0] - expected).max() <= 0.51
    assert (image.pixels == image.pixels[..., :1]).all()
    assert image.pixels.min() == 0
    assert not image.is_plain


@pytest.mark.parametrize("kind", ["float TIFF", "float PFM", "32-bit TIFF"])
def test_without_a_range_wide_samples_are_refused_with_the_mend(kind: str) -> None:
    with pytest.raises(RefusedImage) as caught:
        decode_image(RANGED[kind][0]())
    assert caught.value.reason == "MODE"
    assert caught.value.message.endswith("others with image.value_range=[LOWEST, HIGHEST]")


def test_what_is_no_number_is_black_and_infinity_white() -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    for data in (pfm(values), factories.encode(Image.fromarray(values), "TIFF")):
        assert decode_image(data, value_range=(0, 1)).pixels[0, :4, 0].tolist() == [0, 255, 0, 128]


def test_a_range_leaves_8_bit_images_alone_and_refuses_16_bit_color() -> None:
    data = factories.make_png(3)
    np.testing.assert_array_equal(decode_image(data, value_range=(0, 10)).pixels, decode_image(data).pixels)
    rgb16 = factories.raw_png(8, 8, (b"\0" + bytes(48)) * 8, depth=16)
    with pytest.raises(RefusedImage, match="keeps the upper 8 of several channels"):
        decode_image(rgb16, value_range=(0, 10))
    color = b"PF\n8 8\n-1.0\n" + struct.pack("<f", 1) * 192
    with pytest.raises(RefusedImage, match="MODE: float samples of three colours"):
        decode_image(color, value_range=(0, 10))


def test_scoring_uses_the_range_that_ingest_used() -> None:
    config = ImageConfig(value_range=(0, 1), evaluation_size_px=32, encoding="png")
    preprocess = make_preprocess(config, 64)
    data = RANGED["float TIFF"][0]()
    stored = make_stored_image(data, "a.tif", config)
    assert stored.flags == ("depth32",)
    np.testing.assert_array_equal(prepare_raw(data, preprocess), prepare_stored(stored.data, preprocess))
    again = Preprocess.from_json(preprocess.to_json())
    assert again == preprocess
    assert preprocess.to_json()["value_range"] == [0.0, 1.0]
    with pytest.raises(RefusedImage, match="MODE"):
        prepare_raw(data, Preprocess(Geometry(), Geometry()))


@pytest.mark.parametrize("value_range", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)], ids=str)
def test_a_range_that_is_none_is_refused(value_range: ValueRange) -> None:
    with pytest.raises(ValueError, match="it must be two numbers, the lower one first"):
        Preprocess(value_range=value_range)
    with pytest.raises(ValueError, match="it must be two numbers, the lower one first"):
        ImageConfig(value_range=value_range)
