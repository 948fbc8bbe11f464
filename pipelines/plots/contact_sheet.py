"""Many images on one sheet, with captions: what a network really saw, what a dataset holds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.plots.canvas import shorten
from pipelines.plots.palette import LIGHT
from pipelines.plots.picture import Picture, encode_picture

GAP_PX = 8
CAPTION_PX = 18
FONT_PX = 12
LINE_PX = 15
DEFAULT_CELL_PX = 112
MAX_IMAGES = 400


def mosaic(
    images: Sequence[npt.NDArray[Any]],
    captions: Sequence[str] = (),
    columns: int = 0,
    scale: float = 0.0,
) -> Picture:
    """Lay out uint8 images (H, W, 3) or (H, W) in rows, each above its caption of one line or several.

    `columns` 0 chooses a sheet a little wider than high. `scale` is the enlargement of every image; 0 fits the
    largest to 112 pixels. Enlarging repeats pixels, so that an 8 x 8 digit shows its pixels and no invented ones.
    """
    if not images:
        raise ValueError("a mosaic needs at least one image")
    if captions and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    if len(images) > MAX_IMAGES:
        raise ValueError(f"{len(images)} images on one sheet; at most {MAX_IMAGES}")
    cells = [_fit(image, scale, max(max(i.shape[:2]) for i in images)) for image in images]
    columns = min(columns or max(1, math.ceil(math.sqrt(1.3 * len(images)))), len(images))
    rows = math.ceil(len(images) / columns)
    cell_w, cell_h = max(cell.shape[1] for cell in cells), max(cell.shape[0] for cell in cells)
    caption_h = CAPTION_PX + LINE_PX * max((caption.count("\n") for caption in captions), default=0)
    step_w, step_h = cell_w + GAP_PX, cell_h + GAP_PX + (caption_h if captions else 0)
    sheet = np.empty((rows * step_h + GAP_PX, columns * step_w + GAP_PX, 3), dtype=np.uint8)
    sheet[:] = _rgb(LIGHT.card)
    for index, cell in enumerate(cells):
        top, left = GAP_PX + index // columns * step_h, GAP_PX + index % columns * step_w
        top, left = top + (cell_h - cell.shape[0]) // 2, left + (cell_w - cell.shape[1]) // 2
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    if captions:
        sheet = _write_captions(sheet, captions, columns, step_w, step_h, cell_h)
    return encode_picture(sheet, quality=88)


def _fit(image: npt.NDArray[Any], scale: float, largest: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    if image.dtype != np.uint8:
        raise ValueError(f"a mosaic needs uint8 images, not {image.dtype}; undo the normalisation first")
    rgb = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    factor = scale or DEFAULT_CELL_PX / largest
    if factor > 1:
        factor = math.floor(factor)  # whole factors only: every source pixel becomes an equal square
    if factor == 1:
        return rgb
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(rgb).resize(size, how))


def _write_captions(
    sheet: npt.NDArray[np.uint8], captions: Sequence[str], columns: int, step_w: int, step_h: int, cell_h: int
) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(FONT_PX)
    limit = max(3, (step_w - GAP_PX) * 10 // 62)  # 6.2 px is a middling letter at 12 px
    for index, caption in enumerate(captions):
        x = GAP_PX + index % columns * step_w
        y = GAP_PX + index // columns * step_h + cell_h + 2
        for number, line in enumerate(caption.split("\n")):
            draw.text((x, y + number * LINE_PX), shorten(line, limit), fill=LIGHT.muted, font=font)
    return np.asarray(canvas)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
