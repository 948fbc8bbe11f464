"""Heat maps over their images: where a network looked, beside what it was shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.plots.canvas import shorten
from pipelines.plots.palette import DARK, LIGHT
from pipelines.plots.picture import Picture, encode_picture

PIXELS_PER_CSS = 2
"""Pixels stored for each CSS pixel, as figures have them; every size below is in stored pixels."""
GAP_PX, PAIR_GAP_PX = 16, 4
CAPTION_PX, FONT_PX = 36, 24
CELL_PX = 224
"""Longer side at which an image is shown; smaller ones are enlarged. Two pairs make 480 CSS pixels."""
LEGEND = ("orange for the class, teal against", "every map scaled to its own peak")
MAX_EXPLAINED = 64
PEAK_PERCENTILE = 99.5
"""A map is scaled to this percentile of its absolute values: one extreme pixel would turn the rest invisible."""


def explanation_sheet(
    images: Sequence[npt.NDArray[Any]], heats: Sequence[npt.NDArray[Any]], captions: Sequence[str] = ()
) -> Picture:
    """Lay out pairs, an image and the image under its heat map, one or two pairs to a row, each above its caption.

    Args:
        images: uint8 (H, W, 3) or (H, W), as the network saw them, normalisation undone.
        heats: One map (H, W) per image, any unit; see `heat_over`.
        captions: One line per pair, e.g. the class explained; none: no lines.

    Raises:
        ValueError: Nothing to show or too much, or maps and images that do not fit.
    """
    if not 0 < len(images) <= MAX_EXPLAINED:
        raise ValueError(f"{len(images)} images on one sheet; give 1 to {MAX_EXPLAINED}")
    if len(heats) != len(images) or (captions and len(captions) != len(images)):
        raise ValueError(f"{len(heats)} heat maps and {len(captions)} captions for {len(images)} images")
    pairs = [_pair(image, heat) for image, heat in zip(images, heats, strict=True)]
    columns = min(2, len(pairs))
    rows = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    heights = [max(pair.shape[0] for pair in row) + (CAPTION_PX if captions else 0) + GAP_PX for row in rows]
    step_w = 2 * CELL_PX + PAIR_GAP_PX + GAP_PX
    sheet = np.empty((GAP_PX + sum(heights) + len(LEGEND) * CAPTION_PX, columns * step_w + GAP_PX, 3), dtype=np.uint8)
    sheet[:] = _channels(LIGHT.card)
    texts: list[tuple[int, int, str]] = []
    top = GAP_PX
    for number, row in enumerate(rows):
        for column, pair in enumerate(row):
            left = GAP_PX + column * step_w
            sheet[top : top + pair.shape[0], left : left + pair.shape[1]] = pair
            if captions:
                caption = shorten(captions[number * columns + column], (step_w - GAP_PX) * 2 // FONT_PX)
                texts.append((left, top + pair.shape[0] + 2, caption))
        top += heights[number]
    texts += [(GAP_PX, top + index * (FONT_PX + 4), line) for index, line in enumerate(LEGEND)]
    return encode_picture(_written(sheet, texts), scale=1 / PIXELS_PER_CSS, quality=90)


def heat_over(image: npt.NDArray[Any], heat: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the image in grey with the map's warm colour where it speaks for the class, teal where against, (H, W, 3).

    Grey, so that the image's own colours are not taken for heat. The map is scaled to its own peak, so colours compare
    places within one image, never two images; a map of zeros leaves the image grey.

    Args:
        image: uint8 (H, W, 3) or (H, W).
        heat: (H, W), finite, any unit, signed or not.

    Raises:
        ValueError: The image is not uint8, or the map is of another size or not finite.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"an overlay needs uint8 images (H, W, 3) or (H, W), not {image.dtype} {image.shape}")
    if heat.shape != image.shape[:2]:
        raise ValueError(f"a heat map of {heat.shape} does not fit an image of {image.shape[:2]}")
    if not np.isfinite(heat).all():
        raise ValueError("a heat map holds values that are no finite numbers")
    strength = heat.astype(np.float64)
    peak = np.percentile(np.abs(strength), PEAK_PERCENTILE) or np.abs(strength).max()
    strength = np.clip(strength / peak, -1.0, 1.0) if peak > 0 else np.zeros_like(strength)
    grey = image.astype(np.float64) if image.ndim == 2 else image.astype(np.float64) @ (0.299, 0.587, 0.114)
    base = np.repeat((0.75 * grey + 32.0)[:, :, None], 3, axis=2)  # no full black or white: colour must show on both
    colour = np.where(strength[:, :, None] >= 0, _channels(DARK.warm), _channels(DARK.accent))
    cover = 0.85 * np.abs(strength)[:, :, None]
    return np.rint(base * (1.0 - cover) + colour * cover).astype(np.uint8)


def _pair(image: npt.NDArray[Any], heat: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    over = heat_over(image, np.asarray(heat))
    plain = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    shown = [_framed(_fitted(pixels)) for pixels in (plain, over)]
    gap = np.empty((shown[0].shape[0], PAIR_GAP_PX, 3), dtype=np.uint8)
    gap[:] = _channels(LIGHT.card)
    return np.concatenate([shown[0], gap, shown[1]], axis=1)


def _framed(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the pixels with a hairline at their rim, so that a white image has an edge on a white card."""
    framed = pixels.copy()
    framed[[0, -1]] = framed[:, [0, -1]] = _channels(LIGHT.line)
    return framed


def _fitted(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the image with its longer side near `CELL_PX`: reduced by areas, enlarged by whole pixels only."""
    from PIL import Image

    height, width = pixels.shape[:2]
    factor = CELL_PX / max(height, width)
    if factor >= 1:
        return np.repeat(np.repeat(pixels, int(factor), axis=0), int(factor), axis=1)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _written(sheet: npt.NDArray[np.uint8], texts: Sequence[tuple[int, int, str]]) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(FONT_PX)
    for x, y, text in texts:
        draw.text((x, y), text, fill=LIGHT.muted, font=font)
    return np.asarray(canvas)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
