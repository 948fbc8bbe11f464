"""PNG files whose bytes are a function of the pixels alone."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_MAX_STORED_BYTES = 0xFFFF


def encode_grey_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return an 8-bit grey PNG of pixels (H, W) whose bytes do not depend on a zlib version.

    PNG specification (third edition), sec. 11; deflate blocks are stored, RFC 1951 sec. 3.2.4.
    """
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [rows[start : start + _MAX_STORED_BYTES] for start in range(0, len(rows), _MAX_STORED_BYTES)]
    stored = b"".join(
        struct.pack("<BHH", number == len(parts), len(part), len(part) ^ 0xFFFF) + part
        for number, part in enumerate(parts, start=1)
    )
    body = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunks((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")))


def _png_chunks(*parts: tuple[bytes, bytes]) -> Iterator[bytes]:
    for kind, data in parts:
        yield struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
