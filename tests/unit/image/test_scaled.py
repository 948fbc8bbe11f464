"""JPEGs decoded at a scale: by one rule, close to the whole decoding, and the same when a raw file is scored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.image.decode import Pixels, decode_image
from pipelines.image.preprocess import Preprocess, prepare_raw, prepare_stored
from pipelines.image.resize import SCALED_MARGIN, Geometry, apply_geometry
from pipelines.ingest.config import ImageConfig
from pipelines.ingest.stored import make_preprocess, make_stored_image
from tests import factories


def photo(seed: int = 1, width: int = 1000, height: int = 700, **options: object) -> bytes:
    """Return a large JPEG with detail at every scale."""
    coarse = Image.fromarray(factories.make_pixels(seed, width // 4, height // 4))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = np.random.default_rng(seed).integers(-12, 13, smooth.shape)
    return factories.encode(np.clip(smooth + noise, 0, 255).astype(np.uint8), "JPEG", **{"quality": 92, **options})


def psnr(one: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize(
    ("geometry", "size", "divisor"),
    [
        (Geometry(256, "crop", can_enlarge=False), (1023, 2000), 1),
        (Geometry(256, "crop", can_enlarge=False), (1024, 2000), 2),
        (Geometry(256, "crop", can_enlarge=False), (2048, 2048), 4),
        (Geometry(256, "crop", can_enlarge=False), (9000, 4096), 8),
        (Geometry(256, "crop", 0.5, can_enlarge=False), (2000, 1024), 1),
        (Geometry(256, "fit", can_enlarge=False), (1024, 2000), 2),
        (Geometry(256, "squash", can_enlarge=False), (9000, 1024), 2),
        (Geometry(256, "pad", can_enlarge=False), (100, 1024), 2),
        (Geometry(256, "pad", can_enlarge=False), (1023, 1023), 1),
        (Geometry(0, "none"), (9000, 9000), 1),
        (Geometry(0, "crop"), (9000, 9000), 1),
    ],
    ids=str,
)
def test_the_rule(geometry: Geometry, size: tuple[int, int], divisor: int) -> None:
    assert geometry.divisor(*size) == geometry.divisor(size[1], size[0]) == divisor


@settings(max_examples=200)
@given(
    mode=st.sampled_from(["fit", "crop", "pad", "squash"]),
    size=st.integers(1, 300),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
)
def test_enough_pixels_are_left_and_sizes_are_those_of_the_whole(mode: str, size: int, width: int, height: int) -> None:
    geometry = Geometry(size, mode, can_enlarge=False)  # type: ignore[arg-type]
    divisor = geometry.divisor(width, height)
    if divisor == 1 or max(width, height) > 50 * min(width, height):
        return
    scaled = np.zeros((-(-height // divisor), -(-width // divisor), 3), np.uint8)
    used = max(scaled.shape[:2]) if mode == "pad" else min(scaled.shape[:2])
    assert used >= SCALED_MARGIN * size
    whole = np.zeros((height, width, 1), np.uint8).repeat(3, axis=2) if width * height < 2**20 else None
    result = apply_geometry(scaled, geometry, whole_size=(width, height))
    if whole is not None:
        assert result.shape == apply_geometry(whole, geometry).shape
    assert mode in ("fit", "pad") or result.shape == (size, size, 3)


@pytest.mark.parametrize("mode", ["fit", "crop", "pad", "squash"])
@pytest.mark.parametrize(("size", "divisor"), [(170, 2), (80, 4), (40, 8)], ids=["half", "quarter", "eighth"])
@pytest.mark.parametrize("subsampling", [0, 2], ids=["444", "420"])
def test_the_picture_is_that_of_the_whole_decoding(mode: str, size: int, divisor: int, subsampling: int) -> None:
    geometry = Geometry(size, mode, can_enlarge=False)  # type: ignore[arg-type]
    data = photo(subsampling=subsampling)
    image = decode_image(data, divisor_rule=geometry.divisor_of)
    assert image.is_scaled
    assert image.pixels.shape == (-(-700 // divisor), -(-1000 // divisor), 3)
    assert image.upright_size == (1000, 700)
    scaled = apply_geometry(image.pixels, geometry, whole_size=image.upright_size)
    whole = apply_geometry(decode_image(data).pixels, geometry)
    assert scaled.shape == whole.shape
    assert psnr(scaled, whole) > 32


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_are_scaled_likewise(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photo(exif=exif)
    config = ImageConfig(size_px=80, mode="fit", encoding="png")
    image = make_stored_image(data, "a.jpg", config)
    full = make_stored_image(data, "a.jpg", ImageConfig(size_px=80, mode="fit", encoding="png", scaled_decoding=False))
    size = (1000, 700) if orientation < 5 else (700, 1000)
    assert (image.source_width, image.source_height) == (full.source_width, full.source_height) == size
    assert image.pixels.shape == full.pixels.shape
    assert psnr(image.pixels, full.pixels) > 32


@pytest.mark.parametrize("mode", ["fit", "crop", "pad", "squash"])
def test_a_raw_file_gives_what_its_stored_row_gives(mode: str) -> None:
    config = ImageConfig(size_px=96, mode=mode, encoding="png", evaluation_size_px=64)
    preprocess = make_preprocess(config, 96)
    assert preprocess.is_decoding_scaled
    data = photo(2)
    stored = make_stored_image(data, "a.jpg", config)
    np.testing.assert_array_equal(prepare_raw(data, preprocess), prepare_stored(stored.data, preprocess))


def test_what_was_trained_before_is_scored_as_before() -> None:
    values = Preprocess(Geometry(96, "crop", can_enlarge=False), Geometry(64, "crop")).to_json()
    assert set(values) == {"stored", "evaluation", "background", "depth16"}
    old = Preprocess.from_json(values)
    data = photo(3)
    whole = apply_geometry(decode_image(data).pixels, old.stored)
    np.testing.assert_array_equal(prepare_raw(data, old), apply_geometry(whole, old.evaluation))


def test_a_damaged_photo_is_refused_at_every_scale() -> None:
    data = photo()
    for size in (0, 170, 80, 40):
        rule = Geometry(size, "crop" if size else "none", can_enlarge=False).divisor_of
        for cut in (0.3, 0.6, 0.9):
            broken = data[: int(len(data) * cut)] + b"\xff\xd9"
            assert not decode_image(broken, divisor_rule=rule).is_strict


@pytest.mark.parametrize(
    ("geometry", "size", "fraction"),
    [
        (Geometry(256, "crop", can_enlarge=False), (500, 400), 0.2),
        (Geometry(256, "crop", 0.5, can_enlarge=False), (400, 400), 0.75),
        (Geometry(256, "crop", can_enlarge=False), (200, 100), 0.0),
        (Geometry(256, "squash", can_enlarge=False), (500, 400), 0.0),
        (Geometry(256, "pad", can_enlarge=False), (500, 400), 0.0),
        (Geometry(256, "fit", can_enlarge=False), (500, 400), 0.0),
    ],
    ids=["crop", "half", "kept", "squash", "pad", "fit"],
)
def test_share_cut_away(geometry: Geometry, size: tuple[int, int], fraction: float) -> None:
    assert geometry.cropped_fraction(*size) == pytest.approx(fraction)
    config = ImageConfig(size_px=geometry.size_px, mode=geometry.mode)
    if geometry.crop_ratio == 1:
        stored = make_stored_image(factories.make_jpeg(1, *size), "a.jpg", config)
        assert stored.cropped_fraction == pytest.approx(fraction)
