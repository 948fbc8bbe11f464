"""Contact sheets: every image once, in order, its pixels enlarged and never invented."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.plots.contact_sheet import CAPTION_PX, GAP_PX, mosaic
from pipelines.plots.picture import Picture, encode_picture


def pixels(picture: Picture) -> np.ndarray:
    with Image.open(io.BytesIO(picture.data)) as image:
        return np.asarray(image.convert("RGB"))


def test_images_stand_in_reading_order() -> None:
    greys = [np.full((32, 32), value, dtype=np.uint8) for value in (10, 80, 150, 220)]
    picture = mosaic(greys, columns=2, scale=1.0)
    sheet = pixels(picture)
    assert sheet.shape == (2 * (32 + GAP_PX) + GAP_PX, 2 * (32 + GAP_PX) + GAP_PX, 3)
    centres = [GAP_PX + 16, GAP_PX + 16 + 32 + GAP_PX]
    found = [int(sheet[y, x, 0]) for y in centres for x in centres]
    assert np.allclose(found, [10, 80, 150, 220], atol=3)
    assert (picture.width, picture.height) == (sheet.shape[1], sheet.shape[0])


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    checker = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)
    sheet = pixels(mosaic([checker], columns=1)).astype(int)[GAP_PX : GAP_PX + 112, GAP_PX : GAP_PX + 112, 0]
    blocks = sheet.reshape(8, 14, 8, 14)[:, 4:10, :, 4:10].mean(axis=(1, 3))
    assert np.allclose(blocks, checker, atol=12)  # JPEG


def test_large_images_are_reduced_to_fit() -> None:
    assert mosaic([np.zeros((448, 224, 3), dtype=np.uint8)]).height == 112 + 2 * GAP_PX


def test_captions_take_a_line_each() -> None:
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    bare, named = mosaic([image] * 2, columns=1), mosaic([image] * 2, ["one", "a very long caption " * 9], columns=1)
    assert named.height == bare.height + 2 * CAPTION_PX
    assert named.width == bare.width
    assert pixels(named)[GAP_PX + 100 + 2 : GAP_PX + 100 + CAPTION_PX, GAP_PX:60].min() < 160


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "a mosaic needs at least one image"),
        (([np.zeros((4, 4), np.uint8)], ["a", "b"]), "2 captions for 1 images"),
        (([np.zeros((4, 4), np.float32)],), "a mosaic needs uint8 images, not float32; undo the normalisation first"),
        (([np.zeros((4, 4), np.uint8)] * 401,), "401 images on one sheet; at most 400"),
    ],
)
def test_impossible_sheets_are_refused(arguments: tuple[list[np.ndarray], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mosaic(*arguments)


def test_pictures_know_their_size_and_address() -> None:
    picture = encode_picture(np.zeros((3, 5), dtype=np.uint8), scale=2, media_type="image/png")
    assert (picture.width, picture.height, picture.extension) == (10, 6, "png")
    assert picture.data_uri().startswith("data:image/png;base64,iVBOR")
    assert encode_picture(np.zeros((3, 5, 3), dtype=np.uint8)).extension == "jpg"
    with pytest.raises(ValueError, match=r"a picture needs uint8 pixels .* not float64 \(3, 5\)"):
        encode_picture(np.zeros((3, 5)))
