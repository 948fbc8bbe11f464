"""Resizing, cropping, padding, encoding, and the composition that scoring relies on."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.image.decode import decode_image
from pipelines.image.encode import encode_image
from pipelines.image.preprocess import Preprocess, prepare_raw, prepare_stored
from pipelines.image.resize import Geometry, apply_geometry, resize_pixels
from tests import factories

PIXELS = factories.make_pixels(1, 100, 60)


@pytest.mark.parametrize(
    ("geometry", "shape"),
    [
        (Geometry(), (60, 100)),
        (Geometry(0, "crop"), (60, 100)),
        (Geometry(30, "none"), (60, 100)),
        (Geometry(30, "fit"), (30, 50)),
        (Geometry(30, "crop"), (30, 30)),
        (Geometry(30, "crop", crop_ratio=0.5), (30, 30)),
        (Geometry(30, "pad"), (30, 30)),
        (Geometry(30, "squash"), (30, 30)),
        (Geometry(120, "crop"), (120, 120)),
        (Geometry(120, "crop", can_enlarge=False), (60, 100)),
        (Geometry(80, "crop", can_enlarge=False), (60, 60)),
        (Geometry(80, "fit", can_enlarge=False), (60, 100)),
    ],
)
def test_shapes(geometry: Geometry, shape: tuple[int, int]) -> None:
    result = apply_geometry(PIXELS, geometry)
    assert result.shape == (*shape, 3)
    assert geometry.keeps(100, 60) == (result is PIXELS)


def test_crop_is_the_centre_square() -> None:
    np.testing.assert_array_equal(apply_geometry(PIXELS, Geometry(60, "crop")), PIXELS[:, 20:80])
    np.testing.assert_array_equal(apply_geometry(PIXELS, Geometry(30, "crop", crop_ratio=0.5)), PIXELS[15:45, 35:65])


def test_shrinking_averages_areas() -> None:
    halves = np.zeros((4, 4, 3), dtype=np.uint8)
    halves[:, ::2] = 200
    assert apply_geometry(halves, Geometry(2, "squash")).tolist() == [[[100] * 3] * 2] * 2


def test_padding_has_the_background() -> None:
    padded = apply_geometry(PIXELS, Geometry(50, "pad"), (9, 8, 7))
    assert padded[0, 0].tolist() == padded[-1, -1].tolist() == [9, 8, 7]
    assert (padded[10:40] != (9, 8, 7)).any(axis=2).mean() > 0.9


def test_cropping_twice_is_cropping_once() -> None:
    stored = apply_geometry(PIXELS, Geometry(60, "crop", can_enlarge=False))
    np.testing.assert_array_equal(
        apply_geometry(stored, Geometry(60, "crop")), apply_geometry(PIXELS, Geometry(60, "crop"))
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "zoom"}, "geometry mode is 'zoom'; it must be one of none, fit, crop, pad, squash"),
        ({"size_px": -1}, "geometry size_px is -1; it must be 0 or greater"),
        ({"crop_ratio": 0.0}, "geometry crop_ratio is 0.0; it must be above 0 and at most 1"),
    ],
)
def test_bad_geometry_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Geometry(**values)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_preprocess_round_trip() -> None:
    preprocess = Preprocess(Geometry(256, "crop", can_enlarge=False), Geometry(224, "crop", 0.875), (0, 128, 255))
    values = preprocess.to_json()
    assert values["depth16"] == "shift8"
    assert Preprocess.from_json(values) == preprocess
    with pytest.raises(ValueError) as caught:
        Preprocess.from_json({**values, "depth16": "window"})
    assert str(caught.value) == "depth16 is 'window'; this version knows only 'shift8'"


def test_kept_bytes_give_the_same_input_raw_and_stored() -> None:
    data = factories.make_jpeg(4, 32, 32)
    preprocess = Preprocess(Geometry(256, "crop", can_enlarge=False), Geometry(32, "crop"))
    np.testing.assert_array_equal(prepare_raw(data, preprocess), prepare_stored(data, preprocess))
    np.testing.assert_array_equal(prepare_raw(data, preprocess), decode_image(data).pixels)


def test_raw_composes_both_geometries() -> None:
    preprocess = Preprocess(Geometry(48, "crop", can_enlarge=False), Geometry(24, "crop"))
    data = factories.make_png(5, 96, 64)
    stored, _ = encode_image(apply_geometry(decode_image(data).pixels, preprocess.stored), "png")
    np.testing.assert_array_equal(prepare_raw(data, preprocess), prepare_stored(stored, preprocess))


def test_encodings() -> None:
    small, large = factories.make_pixels(1, 64, 64), factories.make_pixels(1, 65, 64)
    data, image_format = encode_image(small)
    assert image_format == "PNG"
    np.testing.assert_array_equal(decode_image(data).pixels, small)
    data, image_format = encode_image(large, "auto", 95)
    assert image_format == "JPEG"
    assert np.abs(decode_image(data).pixels.astype(int) - large).mean() < 8
    assert encode_image(small, "jpeg")[1] == "JPEG"
    with pytest.raises(ValueError) as caught:
        encode_image(small, "gif")
    assert str(caught.value) == "encoding is 'gif'; it must be auto, jpeg, png, webp or webp_lossless"


@pytest.mark.parametrize("size", [(30, 20), (80, 70), (50, 40), (50, 25)])
def test_a_part_is_resized_as_its_copy_is_and_into_memory_that_is_given(size: tuple[int, int]) -> None:
    part = PIXELS[5:45, 10:60]
    expected = resize_pixels(part.copy(), *size)
    into = np.zeros((size[1], size[0], 3), np.uint8)
    assert resize_pixels(part, *size, into) is into
    np.testing.assert_array_equal(into, expected)
    np.testing.assert_array_equal(resize_pixels(part, *size), expected)
    turned = PIXELS[::-1, ::-1].transpose(1, 0, 2)
    np.testing.assert_array_equal(resize_pixels(turned, *size), resize_pixels(turned.copy(), *size))
