"""Seeded damage to real images of every format: pixels or a refusal, never a crash, a hang or another exception."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from PIL import Image

from pipelines.image.decode import decode_image
from pipelines.image.header import Limits, RefusedImage
from pipelines.image.metadata import list_blocks, strip_blocks
from pipelines.image.resize import Geometry
from tests import factories, planted

LIMITS = Limits(max_pixels=2**20)  # damage to a size must not cost seconds
GEOMETRY = Geometry(16, "crop", can_enlarge=False)


def seeds() -> list[bytes]:
    """Return small images of every format and variant that is read."""
    pixels = Image.fromarray(factories.make_pixels(5, 96, 72))
    pictures = [Image.fromarray(factories.make_pixels(n, 40, 30)) for n in range(3)]
    made = [make(48, 36) for make in planted.MAKERS.values()]
    made += [factories.encode(pixels, name) for name in ("BMP", "PPM", "AVIF")]
    made += [factories.make_jpeg(6, 96, 72, progressive=True), factories.make_jpeg(6, 96, 72, exif_orientation=6)]
    made += [factories.encode(pixels.convert(mode), "PNG") for mode in ("L", "P", "1", "RGBA", "LA")]
    made += [factories.encode(pixels, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg")]
    for name in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        made.append(factories.encode(pictures[0], name, save_all=True, append_images=pictures[1:]))
    made += [case.data for case in factories.image_cases() if case.name in ("cmyk-adobe.jpg", "grey16.png")]
    return made


def damage(generator: random.Random, whole: list[bytes]) -> bytes:
    """Return an image with bits flipped, bytes overwritten, parts cut out, doubled or taken from another image."""
    data = bytearray(generator.choice(whole))
    for _ in range(generator.choice((1, 1, 1, 2, 4, 16))):
        at = generator.randrange(len(data)) if data else 0
        length = min(generator.choice((1, 2, 4, 16, 200)), len(data) - at)
        kind = generator.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            data[at : at + length] = generator.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * length
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            other = generator.choice(whole)
            start = generator.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        elif generator.random() < 0.3:
            del data[at:]
    return bytes(data)


def fuzz(seed: int, *, rounds: int) -> None:
    """Decode damaged images, with the settings that matter in turn."""
    generator, whole = random.Random(seed), seeds()
    outcomes = {"pixels": 0, "refused": 0}
    for number in range(rounds):
        data = damage(generator, whole)
        started_s = time.process_time()
        try:
            image = decode_image(
                data,
                LIMITS,
                value_range=(0, 1_000) if number % 3 == 0 else None,
                divisor_rule=GEOMETRY.divisor_of if number % 2 else None,
            )
        except RefusedImage:
            outcomes["refused"] += 1
        else:
            assert image.pixels.dtype == np.uint8
            assert image.pixels.ndim == 3
            list_blocks(data, image.format)
            strip_blocks(data, image.format)
            outcomes["pixels"] += 1
        assert time.process_time() - started_s < 5, f"seed {seed}, round {number}"
    assert min(outcomes.values()) > rounds // 20, outcomes


def test_damaged_images_are_pixels_or_refusals() -> None:
    fuzz(11, rounds=30_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_much_more_damage(seed: int) -> None:
    fuzz(1_000 + seed, rounds=20_000)
