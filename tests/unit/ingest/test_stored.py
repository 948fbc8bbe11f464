"""What a row keeps: bytes kept or encoded anew, quality columns, sums."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from pipelines.image.decode import decode_image
from pipelines.image.header import RefusedImage
from pipelines.image.preprocess import prepare_raw, prepare_stored
from pipelines.ingest.config import ImageConfig
from pipelines.ingest.quality import channel_sums, measure
from pipelines.ingest.stored import make_preprocess, make_stored_image
from tests import factories

CONFIG = ImageConfig()


@pytest.mark.parametrize(
    "data",
    [
        factories.make_jpeg(1, 32, 32),
        factories.make_jpeg(1, 256, 200),
        factories.make_png(1, 8, 8),
        factories.encode(factories.make_pixels(channels=1), "PNG"),
        factories.encode(factories.make_pixels(channels=1), "JPEG"),
        factories.encode(factories.make_pixels(), "WEBP"),
        factories.encode(factories.make_pixels(), "WEBP", lossless=True),
    ],
    ids=["jpeg-32", "jpeg-256", "png", "png-grey", "jpeg-grey", "webp", "webp-lossless"],
)
def test_small_plain_images_keep_their_bytes(data: bytes) -> None:
    image = make_stored_image(data, "a.jpg", CONFIG)
    assert image.data == data
    assert image.stored_sha256 == image.source_sha256 == hashlib.sha256(data).hexdigest()
    np.testing.assert_array_equal(image.pixels, decode_image(data).pixels)


@pytest.mark.parametrize(
    ("data", "image_format"),
    [
        (factories.make_jpeg(1, 300, 280), "JPEG"),
        (factories.make_jpeg(1, 200, 100, exif_orientation=6), "JPEG"),
        (factories.make_jpeg(1, 200, 100) + b"tail", "JPEG"),
        (factories.encode(Image.fromarray(factories.make_pixels(1, 200, 100)).convert("CMYK"), "JPEG"), "JPEG"),
        (factories.encode(factories.make_pixels(channels=4), "PNG"), "PNG"),
        (factories.encode(factories.make_pixels(channels=4), "WEBP"), "PNG"),
        (next(case.data for case in factories.image_cases() if case.name == "animated.webp"), "PNG"),
        (factories.encode(factories.make_pixels(1, 200, 100), "BMP"), "JPEG"),
        (next(case.data for case in factories.image_cases() if case.name == "grey16.png"), "PNG"),
        (next(case.data for case in factories.image_cases() if case.name == "animated.png"), "PNG"),
    ],
)
def test_other_images_are_encoded_anew(data: bytes, image_format: str) -> None:
    image = make_stored_image(data, "a", CONFIG)
    assert image.data != data
    assert image.stored_sha256 == hashlib.sha256(image.data).hexdigest() != image.source_sha256
    stored = decode_image(image.data)
    assert stored.format == image_format
    assert stored.is_plain
    assert stored.flags == ()
    assert np.abs(stored.pixels.astype(int) - image.pixels).mean() < (12 if image_format == "JPEG" else 1e-9)


def test_large_images_are_cropped_to_the_size() -> None:
    image = make_stored_image(factories.make_jpeg(1, 500, 375), "a.jpg", CONFIG)
    assert image.pixels.shape == (256, 256, 3)
    assert (image.source_width, image.source_height) == (500, 375)
    tall = make_stored_image(factories.make_jpeg(1, 500, 375, exif_orientation=6), "a.jpg", CONFIG)
    assert (tall.source_width, tall.source_height) == (375, 500)


def test_settings_of_storing() -> None:
    photo = factories.make_jpeg(1, 500, 375)
    assert make_stored_image(photo, "a.jpg", ImageConfig(size_px=0)).data == photo
    assert make_stored_image(photo, "a.jpg", ImageConfig(mode="fit", size_px=100)).pixels.shape == (100, 133, 3)
    assert make_stored_image(photo, "a.jpg", ImageConfig(encoding="png")).data.startswith(b"\x89PNG")
    small = factories.make_jpeg(1, 32, 32)
    assert make_stored_image(small, "a.jpg", ImageConfig(keep_bytes=False)).data.startswith(b"\x89PNG")
    with pytest.raises(RefusedImage, match="TOO_SMALL: 32 x 32 pixels have a side below 40"):
        make_stored_image(small, "a.jpg", ImageConfig(min_side_px=40))


def test_extension_is_compared_with_the_bytes() -> None:
    assert make_stored_image(factories.make_png(), "a.jpg", CONFIG).flags == ("ext_mismatch",)


def test_networks_see_small_images_at_their_size() -> None:
    assert make_preprocess(CONFIG, 32).evaluation.size_px == 32
    assert make_preprocess(CONFIG, 64).evaluation.size_px == 64
    assert make_preprocess(CONFIG, 65).evaluation.size_px == 224
    assert make_preprocess(ImageConfig(evaluation_size_px=96), 32).evaluation.size_px == 96
    preprocess = make_preprocess(CONFIG, 32)
    data = factories.make_jpeg(1, 32, 32)
    np.testing.assert_array_equal(prepare_raw(data, preprocess), decode_image(data).pixels)
    assert prepare_stored(factories.make_jpeg(1, 20, 28), preprocess).shape == (32, 32, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (32, 32), (37, 501), (1500, 2000)])
def test_channel_sums_are_exact(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    for low in (0, 255):
        pixels = generator.integers(low, 256, (*shape, 3), dtype=np.uint8)
        flat = pixels.reshape(-1, 3).astype(np.int64)
        sums, squares = channel_sums(pixels)
        assert sums == (flat.sum(axis=0) / 255).tolist()
        assert squares == ((flat * flat).sum(axis=0) / 65_025).tolist()


def test_perceptual_hash_survives_scaling_not_change() -> None:
    picture = Image.fromarray(factories.make_pixels(1, 200, 160))
    small = picture.resize((100, 80))
    one, near = measure(np.asarray(picture)).phash, measure(np.asarray(small)).phash
    mirrored = measure(np.asarray(picture)[:, ::-1]).phash
    assert (one ^ near).bit_count() <= 6
    assert (one ^ mirrored).bit_count() > 20
    assert 0 <= one < 2**64


def test_measures_lie_in_their_ranges() -> None:
    black, white = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    halves = black.copy()
    halves[:, ::2] = 255
    noisy, smooth = factories.make_pixels(1, 64, 64), None
    import cv2

    smooth = cv2.GaussianBlur(noisy, (9, 9), 3)
    assert (measure(black).brightness, measure(black).contrast, measure(black).sharpness) == (0, 0, 0)
    assert measure(white).brightness == 1
    assert 0.45 < measure(halves).contrast <= 0.5
    assert measure(halves).sharpness == 1
    assert 0 < measure(smooth).sharpness < measure(noisy).sharpness < 1
