"""The images that benchmarks run on: those that the environment names, else made ones, from noise."""

from __future__ import annotations

import os
import tarfile
import zipfile

from tests import factories


def photographs() -> list[bytes]:
    """Return the JPEGs of the tar that RESNET_BENCH_PHOTOS names, or 40 made ones of 500 x 375."""
    if given := os.environ.get("RESNET_BENCH_PHOTOS"):
        with tarfile.open(given) as archive:
            files = [archive.extractfile(member) for member in archive if member.isfile()]
            found = [file.read() for file in files if file is not None]
        return [data for data in found if data.startswith(b"\xff\xd8")]
    return [factories.make_jpeg(seed, 500, 375) for seed in range(40)]


def small_images() -> list[tuple[str, bytes]]:
    """Return (name, bytes) of the zip of class folders that RESNET_BENCH_SMALL names, or 2,000 made ones of 32 x 32."""
    if given := os.environ.get("RESNET_BENCH_SMALL"):
        with zipfile.ZipFile(given) as archive:
            return [(name, archive.read(name)) for name in archive.namelist() if not name.endswith("/")]
    return [(f"{seed % 10}/{seed}.jpg", factories.make_jpeg(seed, 32, 32, quality=75)) for seed in range(2_000)]
