"""Pixels: equal to Pillow's where Pillow is right, by the declared rules where it is not."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from pipelines.image import decode
from pipelines.image.decode import MAX_SCRATCH_BYTES, Scratch, decode_image
from pipelines.image.header import RefusedImage
from pipelines.image.jpeg_header import _find_end
from pipelines.image.sniff import sniff_image
from tests import factories


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_fast_jpeg_equals_pillow(quality: int, subsampling: int, progressive: bool) -> None:
    for seed, (width, height) in enumerate([(32, 32), (33, 17), (1, 9), (250, 131)]):
        data = factories.make_jpeg(
            seed, width, height, quality=quality, subsampling=subsampling, progressive=progressive
        )
        assert sniff_image(data).is_plain_jpeg
        np.testing.assert_array_equal(decode_image(data).pixels, pillow(data))


def test_pixels_in_memory_that_is_used_again_are_the_same() -> None:
    scratch = Scratch()
    files = [factories.make_jpeg(seed, width, 50) for seed, width in enumerate([40, 90, 33])]
    for data in [*files, factories.make_jpeg(3, 64, 48, exif_orientation=6), factories.make_png()]:
        np.testing.assert_array_equal(decode_image(data, scratch=scratch).pixels, decode_image(data).pixels)
    first, second = (decode_image(data, scratch=scratch).pixels for data in files[:2])
    assert np.shares_memory(first, second)
    assert scratch.take(MAX_SCRATCH_BYTES + 1) is None


def test_fast_jpeg_refuses_what_pillow_refuses() -> None:
    for case in factories.image_cases():
        data = case.data
        if not data.startswith(b"\xff\xd8\xff"):
            continue
        try:
            pillow(data)
            is_read_by_pillow = True
        except (OSError, SyntaxError):
            is_read_by_pillow = False
        if case.reason not in ("ASPECT", "BOMB_META"):
            assert is_read_by_pillow == (not case.reason), case.name


def test_flipped_scan_falls_back_to_pillow() -> None:
    data = next(case.data for case in factories.image_cases() if case.name == "jpeg-scan-flipped.jpg")
    np.testing.assert_array_equal(decode_image(data).pixels, pillow(data))


def test_small_jpeg_is_fast() -> None:
    data = factories.make_jpeg(width=32, height=32)
    decode_image(data)
    best_s = min(_elapsed_s(data) for _ in range(5))
    assert best_s < 0.0002  # the ingest rate of small images hangs on this


def _elapsed_s(data: bytes) -> float:
    started_s = time.process_time()
    for _ in range(50):
        decode_image(data)
    return (time.process_time() - started_s) / 50


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_all_orientations_come_out_upright(image_format: str) -> None:
    upright = Image.fromarray(factories.make_pixels(3, 40, 24))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    options = {"lossless": True} if image_format == "WEBP" else {}
    tolerance = {"JPEG": 6, "AVIF": 12}.get(image_format, 0)
    options |= {"quality": 100, "subsampling": 0} if image_format == "JPEG" else {}
    options |= {"quality": 100, "subsampling": "4:4:4"} if image_format == "AVIF" else {}
    for orientation in range(1, 9):
        stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = decode_image(factories.encode(stored, image_format, exif=exif, **options))
        assert image.pixels.shape == (24, 40, 3), orientation
        difference = np.abs(image.pixels.astype(int) - np.asarray(upright).astype(int)).max()
        assert difference <= tolerance, f"orientation {orientation} is off by {difference}"


def test_cmyk_is_close_to_its_picture() -> None:
    expected = factories.make_pixels().astype(int)
    data = next(case.data for case in factories.image_cases() if case.name == "cmyk.jpg")
    assert np.abs(decode_image(data).pixels.astype(int) - expected).mean() < 8


def test_sixteen_bits_are_shifted_not_clipped() -> None:
    values = np.array([[0, 255, 256, 4096, 40_000, 65_535, 511, 512]], dtype=np.uint16).repeat(8, axis=0)
    for image_format in ("PNG", "TIFF"):
        image = decode_image(factories.encode(Image.fromarray(values), image_format))
        np.testing.assert_array_equal(image.pixels[:, :, 0], values >> 8)
        assert image.flags == ("depth16",)


def test_transparency_is_composited_on_the_background() -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[:, 4:, 3] = 255
    pixels[:4, :4, 3] = 51  # a fifth
    data = factories.encode(Image.fromarray(pixels), "PNG")
    white, black = decode_image(data).pixels, decode_image(data, background=(0, 0, 0)).pixels
    assert white[7, 0].tolist() == [255, 255, 255]
    assert black[7, 0].tolist() == [0, 0, 0]
    assert white[0, 7].tolist() == black[0, 7].tolist() == [200, 0, 0]
    assert white[0, 0].tolist() == [244, 204, 204]
    assert black[0, 0].tolist() == [40, 0, 0]


def test_palette_and_color_key_hide_their_color() -> None:
    key = factories.raw_png(8, 8, (b"\0" + bytes(24)) * 8, extra=factories.png_chunk(b"tRNS", bytes(6)))
    assert decode_image(key).pixels.min() == 255
    indices = Image.new("P", (8, 8), 0)
    indices.putpalette([255, 0, 0, 0, 0, 255])
    assert decode_image(factories.encode(indices, "PNG", transparency=0)).pixels[0, 0].tolist() == [255, 255, 255]
    assert decode_image(factories.encode(indices, "PNG")).pixels[0, 0].tolist() == [255, 0, 0]


def test_source_size_is_before_orientation() -> None:
    image = decode_image(factories.make_jpeg(width=64, height=48, exif_orientation=6))
    assert (image.source_width, image.source_height, image.orientation) == (64, 48, 6)
    assert image.pixels.shape == (64, 48, 3)


def test_memory_error_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode.Image, "open", exhaust)
    with pytest.raises(RefusedImage, match="MEMORY: decoding asked for more memory than there is"):
        decode_image(factories.make_png())


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("ends", [0, 1, 2])
def test_the_end_of_a_large_jpeg_is_found(shift: int, ends: int) -> None:
    scan = b"\xff\x00\xd9\xff" * 9_000 + b"\0" * shift
    for padding in (b"", b"x"):
        data = b"head" + scan + b"\xff\xd9tail" * ends + padding
        assert _find_end(data, 4) == data.find(b"\xff\xd9", 4)
    assert _find_end(b"head", 9) == -1
