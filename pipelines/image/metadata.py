"""What a file holds beside its pixels: listed by kind and size, and taken out without encoding the pixels again.

Nothing here reads what a block says. What is kept is a short list of blocks that decoding needs, in their shortest
form; whatever is not on it goes, known or not.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.image.animated_header import gif_blocks, webp_chunks
from pipelines.image.ifd import field_sizes
from pipelines.image.jpeg_header import JFIF_BYTES, JPEG_FRAME_MARKERS
from pipelines.image.png_header import PNG_SIGNATURE

JPEG_TABLE_MARKERS = frozenset({0xC4, 0xDB, 0xDD})
"""Huffman tables, quantisation tables, restart interval; libjpeg refuses one that is longer than what it holds."""

JFIF_SEGMENT = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
"""Version 1.1, square pixels, no thumbnail (ITU-T T.871, sec. 10.1)."""

ADOBE_SEGMENT = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0"
"""All but its last byte, which says how colours were transformed."""

PNG_PIXEL_CHUNKS = frozenset({b"IHDR", b"IDAT", b"IEND"})
PNG_KNOWN_CHUNKS = {b"tEXt": "text", b"zTXt": "text", b"iTXt": "text", b"eXIf": "EXIF", b"iCCP": "ICC", b"tIME": "time"}
PNG_CHANNELS = {0: 1, 2: 3}
"""Colour type -> samples a pixel, of the types that are kept."""

JPEG_KINDS = (
    (0xE1, b"Exif\0", "EXIF"),
    (0xE1, b"http://ns.adobe.com/", "XMP"),
    (0xE2, b"ICC_PROFILE\0", "ICC"),
    (0xE2, b"MPF\0", "MPF"),
    (0xED, b"Photoshop 3.0\0", "IPTC"),
    (0xFE, b"", "comment"),
)
GIF_KINDS = {0xFE: "comment", 0xFF: "application", 0x01: "text"}
WEBP_KINDS = {b"EXIF": "EXIF", b"XMP ": "XMP", b"ICCP": "ICC"}
WEBP_PIXEL_CHUNKS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
TIFF_KINDS = {
    270: "text", 305: "text", 306: "time", 315: "text", 316: "text", 700: "XMP", 33432: "text", 33723: "IPTC",
    34377: "IPTC", 34665: "EXIF", 34675: "ICC", 34853: "EXIF",
}  # fmt: skip
"""Tag -> kind; a pointer to a directory (EXIF, GPS) counts with the size of the pointer."""


class Block(NamedTuple):
    """One kind of metadata in a file, and its size in bytes, heads and lengths included."""

    kind: str
    size: int


class _Part(NamedTuple):
    """One piece of a file: its kind, empty for what decoding needs; where it lies; and what stands for it."""

    kind: str
    start: int
    end: int
    kept: bytes = b""


def list_blocks(data: bytes, image_format: str) -> tuple[Block, ...]:
    """Return what an accepted file holds beside its pixels, one entry a kind, sorted; it raises on no bytes.

    BMP, PPM and AVIF come as one kind `unlisted` of 0 bytes: their blocks are not told apart, and none is ever kept.
    """
    sizes: dict[str, int] = {}
    for part in _parts(data, image_format):
        if part.kind:
            sizes[part.kind] = sizes.get(part.kind, 0) + max(0, part.end - part.start - len(part.kept))
    return tuple(Block(kind, size) for kind, size in sorted(sizes.items()) if size or kind == "unlisted")


def strip_blocks(data: bytes, image_format: str, *, keep_profile: bool = False) -> bytes | None:
    """Return an accepted JPEG's or PNG's bytes with pixels alone, bit-equal when decoded; None where that cannot be.

    None for other formats, and for a PNG with a palette, more frames, or data after its pixels: those have places that
    a decoder skips. Of a JPEG the caller makes sure that a strict decoder had no complaint.
    """
    if image_format not in ("JPEG", "PNG") or (image_format == "PNG" and not _is_plain_png(data)):
        return None
    kept = []
    for part in _parts(data, image_format):
        if not part.kind or (keep_profile and part.kind == "ICC"):
            kept.append(data[part.start : part.end])
        elif part.kept:
            kept.append(part.kept)
    head = PNG_SIGNATURE if image_format == "PNG" else b""
    return head + b"".join(kept)


def _parts(data: bytes, image_format: str) -> Iterator[_Part]:
    readers = {"JPEG": _jpeg_parts, "PNG": _png_parts, "GIF": _gif_parts, "WEBP": _webp_parts, "TIFF": _tiff_parts}
    yield from readers.get(image_format, _unlisted_parts)(data)


def _unlisted_parts(data: bytes) -> Iterator[_Part]:
    yield _Part("unlisted", 0, 0)


def _jpeg_parts(data: bytes) -> Iterator[_Part]:
    """Walk the whole file, the segments between scans too (ITU-T T.81, annex B)."""
    yield _Part("", 0, 2)
    position, restarts = 2, False
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:
            yield _Part("fill", position, position + 1)
            position += 1
        elif marker == 0xD9:
            yield _Part("", position, position + 2)
            position += 2
            break
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:
            yield _Part("fill", position, position + 2)
            position += 2
        else:
            end = min(position + 2 + (data[position + 2] << 8 | data[position + 3]), len(data))
            if marker == 0xDD:
                restarts = any(data[position + 4 : end])
            end = _scan_end(data, end, restarts=restarts) if marker == 0xDA else end
            yield _jpeg_segment(data, marker, position, end)
            position = end
    if data[position : position + 2] == b"\xff\xd9":  # the end marker as the very last bytes
        yield _Part("", position, position + 2)
        position += 2
    if position < len(data):
        yield _Part("trailing", position, len(data))


def _scan_end(data: bytes, position: int, *, restarts: bool) -> int:
    """Return where the entropy-coded bytes end: at the first marker that is neither a stuffed FF nor a restart.

    Restarts count where an interval was declared, from 0 to 7 and again. Any other is data: a decoder skips it silently
    between the last block and the end, so that each could hold three bits.
    """
    awaited = 0xD0
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        if restarts and data[position + 1] == awaited:
            awaited = 0xD0 | (awaited + 1 & 7)
        elif data[position + 1] != 0:
            return position
        position += 2
    return len(data)


def _jpeg_segment(data: bytes, marker: int, start: int, end: int) -> _Part:
    body = data[start + 4 : end]
    if marker == 0xDA or marker in JPEG_TABLE_MARKERS or marker in JPEG_FRAME_MARKERS:
        return _Part("", start, end)
    if marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= JFIF_BYTES:
        return _Part("JFIF", start, end, JFIF_SEGMENT)
    if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
        return _Part("Adobe", start, end, ADOBE_SEGMENT + body[11:12])
    kinds = (kind for wanted, prefix, kind in JPEG_KINDS if marker == wanted and body.startswith(prefix))
    return _Part(next(kinds, f"APP{marker - 0xE0}" if 0xE0 <= marker <= 0xEF else "other"), start, end)


def _png_parts(data: bytes) -> Iterator[_Part]:
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = min(position + 12 + length, len(data))
        yield _Part("" if kind in PNG_PIXEL_CHUNKS else PNG_KNOWN_CHUNKS.get(kind, "other"), position, end)
        position = end
        if kind == b"IEND":
            break
    if position < len(data):
        yield _Part("trailing", position, len(data))


def _is_plain_png(data: bytes) -> bool:
    """Whether the pixels fill a PNG's data to the last byte; grey or RGB, not interlaced, one frame."""
    width, height, depth, color, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if color not in PNG_CHANNELS or interlace:
        return False
    position, packed = len(PNG_SIGNATURE), []
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"acTL" or (kind == b"IEND" and length) or (kind == b"IHDR" and length != 13):
            return False
        if kind == b"IDAT":
            packed.append(data[position + 8 : position + 8 + length])
        position += 12 + length
        if kind == b"IEND":
            break
    wanted = height * (1 + (width * PNG_CHANNELS[color] * depth + 7) // 8)
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(b"".join(packed), wanted + 1)
    except zlib.error:
        return False
    return len(rows) == wanted and stream.eof and not stream.unused_data


def _gif_parts(data: bytes) -> Iterator[_Part]:
    end = 0
    for kind, start, end in gif_blocks(data):
        if kind in GIF_KINDS:
            yield _Part(GIF_KINDS[kind], start, end)
    if end + 1 < len(data):
        yield _Part("trailing", end + 1, len(data))


def _webp_parts(data: bytes) -> Iterator[_Part]:
    end = 12
    for kind, start, end in webp_chunks(data):
        if kind not in WEBP_PIXEL_CHUNKS:
            yield _Part(WEBP_KINDS.get(kind, "other"), start, end)
    if end < len(data):
        yield _Part("trailing", end, len(data))


def _tiff_parts(data: bytes) -> Iterator[_Part]:
    for tag, size in field_sizes(data):
        if tag in TIFF_KINDS or tag >= 32_768:
            yield _Part(TIFF_KINDS.get(tag, "other"), 0, size)
