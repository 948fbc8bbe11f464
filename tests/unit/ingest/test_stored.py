"""What a row keeps: bytes kept or encoded anew, quality columns, sums."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.image.decode import decode_image
from pipelines.image.header import RefusedImage
from pipelines.image.preprocess import prepare_raw, prepare_stored
from pipelines.ingest import quality
from pipelines.ingest.config import ImageConfig, PrivacyConfig
from pipelines.ingest.quality import area_means, channel_sums, measure, quality_flags
from pipelines.ingest.stored import make_preprocess, make_stored_image
from pipelines.ingest.thumbnail import make_thumbnail
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


@pytest.mark.parametrize(("encoding", "tolerance"), [("webp", 14.0), ("webp_lossless", 0.0), ("png", 0.0)])
@pytest.mark.parametrize("side", [40, 256])
def test_encodings_that_are_asked_for(encoding: Any, tolerance: float, side: int) -> None:
    config = ImageConfig(encoding=encoding, keep_bytes=False, size_px=side)
    image = make_stored_image(factories.make_png(3, 300, 280), "a.png", config)
    stored = decode_image(image.data)
    assert stored.format == encoding.partition("_")[0].upper()
    assert stored.is_plain
    assert np.abs(stored.pixels.astype(int) - image.pixels).mean() <= tolerance
    # what was stored is stored again as it is
    assert make_stored_image(image.data, "a", ImageConfig(size_px=side)).data == image.data


def test_webp_holds_no_more_than_it_can() -> None:
    wide = factories.encode(np.zeros((200, 16_400, 3), np.uint8), "PNG")
    with pytest.raises(RefusedImage, match="TOO_LARGE: WebP holds sides of at most 16,383 pixels"):
        make_stored_image(wide, "a.png", ImageConfig(size_px=0, encoding="webp", keep_bytes=False))


def test_quality_flags_name_what_is_unusual() -> None:
    noisy, black, white = factories.make_pixels(1, 64, 64), np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255)
    ramp = np.linspace(90, 160, 64).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    grey = np.full((64, 64, 3), 128, np.uint8)
    dark = (noisy // 20).astype(np.uint8)
    found = {
        name: quality_flags(measure(pixels.astype(np.uint8)), 64, 64)
        for name, pixels in (
            ("noisy", noisy), ("black", black), ("white", white), ("grey", grey), ("ramp", ramp), ("dark", dark),
        )
    }  # fmt: skip
    assert found == {
        "noisy": (),
        "black": ("dark", "flat"),
        "white": ("bright", "flat"),
        "grey": ("flat",),
        "ramp": ("blurred",),
        "dark": ("dark", "flat"),
    }
    assert quality_flags(measure(noisy), 300, 100) == ()
    assert quality_flags(measure(noisy), 301, 100) == quality_flags(measure(noisy), 100, 301) == ("odd_aspect",)


def test_flat_means_the_same_here_and_among_look_alikes() -> None:
    from pipelines.dataset import duplicates

    assert quality.FLAT_CONTRAST == duplicates.FLAT_CONTRAST


def test_a_refused_image_that_decodes_has_a_thumbnail() -> None:
    config, small = ImageConfig(min_side_px=40), factories.make_jpeg(1, 200, 30)
    for data, reason, size in (
        (small, "TOO_SMALL", (14, 96)),
        (factories.make_png(1, 20, 30), "TOO_SMALL", (30, 20)),
        (factories.make_jpeg(1, 900, 700), "UNLABELLED", (75, 96)),
        (factories.encode(np.full((2, 400, 3), 9, np.uint8), "PNG"), "ASPECT", (1, 96)),
        (factories.make_jpeg(1, 900, 700, exif_orientation=6), "LEAK", (96, 75)),
    ):
        thumbnail = make_thumbnail(data, reason, config, PrivacyConfig())
        assert thumbnail is not None, reason
        image = decode_image(thumbnail)
        assert image.format in ("JPEG", "PNG")
        assert image.pixels.shape[:2] == size, reason


@pytest.mark.parametrize("reason", ["TRUNCATED", "EMPTY", "KILLED_WORKER", "TIMEOUT", "MEMORY", "BOMB_PIXELS"])
def test_what_went_wrong_in_decoding_is_not_tried_again(reason: str) -> None:
    assert make_thumbnail(factories.make_jpeg(), reason, CONFIG, PrivacyConfig()) is None


def test_no_thumbnail_of_what_cannot_be_decoded_or_must_not_be_seen() -> None:
    assert make_thumbnail(None, "UNREADABLE", CONFIG, PrivacyConfig()) is None
    assert make_thumbnail(b"x", "UNLABELLED", CONFIG, PrivacyConfig()) is None
    assert make_thumbnail(factories.make_jpeg(), "UNLABELLED", CONFIG, PrivacyConfig(strip_metadata=True)) is None
    assert make_thumbnail(factories.make_jpeg(), "UNLABELLED", CONFIG, PrivacyConfig(region_column="faces")) is None


def test_large_jpegs_that_keep_their_bytes_are_measured_on_a_reduction() -> None:
    config, data = ImageConfig(size_px=0), factories.make_jpeg(1, 600, 400)
    image = make_stored_image(data, "a.jpg", config)
    assert image.data == data
    assert image.pixels.shape == (200, 300, 3)
    assert (image.width, image.height, image.source_width, image.source_height) == (600, 400, 600, 400)
    half = measure(image.pixels, image.width * image.height)
    whole = measure(decode_image(data).pixels)
    assert half.brightness == pytest.approx(whole.brightness, abs=0.005)
    np.testing.assert_allclose(half.channel_sum, whole.channel_sum, rtol=0.005)
    assert (half.phash ^ whole.phash).bit_count() <= 4
    assert make_stored_image(factories.make_jpeg(1, 300, 255), "a.jpg", config).pixels.shape == (255, 300, 3)
    two = factories.encode(
        factories.make_pixels(1, 600, 400),
        "MPO",
        save_all=True,
        append_images=[Image.fromarray(factories.make_pixels(2, 600, 400))],
    )
    for other, settings in (
        (factories.make_jpeg(1, 600, 400, exif_orientation=3), config),
        (two, config),
        (data + b"tail", config),
        (data, ImageConfig(size_px=0, keep_bytes=False)),
        (data, ImageConfig(size_px=0, scaled_decoding=False)),
    ):
        full = make_stored_image(other, "a.jpg", settings)
        assert full.pixels.shape == (400, 600, 3)
        assert decode_image(full.data).pixels.shape == (400, 600, 3)
    stripped = make_stored_image(data, "a.jpg", config, PrivacyConfig(strip_metadata=True))
    np.testing.assert_array_equal(decode_image(stripped.data).pixels, decode_image(data).pixels)


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


@pytest.mark.parametrize("shape", [(97, 97), (256, 256), (375, 500), (9, 2_000), (3_000, 2_900)], ids=str)
def test_areas_of_large_pictures_are_averaged_as_those_of_small_ones(shape: tuple[int, int]) -> None:
    import cv2

    smooth = cv2.resize(factories.make_pixels(3, 40, 30, channels=1), shape[::-1], interpolation=cv2.INTER_LINEAR)
    means = cv2.resize(smooth, (9, 8), interpolation=cv2.INTER_AREA)
    assert np.abs(area_means(smooth).astype(int) - means).max() <= 1
    white = np.full(shape, 255, np.uint8)
    assert area_means(white).tolist() == np.full((8, 9), 255).tolist()


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
