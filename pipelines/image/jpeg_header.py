"""JPEG markers up to the first scan (ITU-T T.81, annex B), and whether the file has its end."""

from dataclasses import dataclass, field

import numpy as np

from pipelines.image.header import ImageHeader, Limits, RefusedImage
from pipelines.image.ifd import BadDirectory, read_directory, read_layout, read_orientation

JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
JPEG_PLAIN_MARKERS = frozenset({0xC0, 0xC1, 0xC2})
JPEG_PROGRESSIVE_MARKERS = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
JFIF_BYTES = 14
"""A shorter JFIF segment is none to libjpeg, which then goes by the component ids."""
TAG_MPO_IMAGES = 0xB001
FEW_BYTES = 16_384


@dataclass
class _JpegFindings:
    width: int = 0
    height: int = 0
    frame_marker: int = 0
    component_ids: bytes = b""
    has_jfif: bool = False
    adobe_transform: int = -1
    orientation: int = 1
    frames: int = 1
    flags: list[str] = field(default_factory=list)


def read_jpeg_header(data: bytes, limits: Limits) -> ImageHeader:
    """Parse a JPEG's markers; raises RefusedImage (NOT_IMAGE, TRUNCATED, CORRUPT, BOMB_META)."""
    found = _JpegFindings()
    scan = _walk_jpeg_markers(data, found, limits)
    if not found.frame_marker:
        raise RefusedImage("CORRUPT", "the JPEG has a scan before its frame header")
    end = _find_end(data, scan)
    if end < 0:
        raise RefusedImage("TRUNCATED", "the JPEG has no end marker")
    if found.frame_marker in JPEG_PROGRESSIVE_MARKERS and data.count(b"\xff\xda", scan) >= limits.max_scans:
        raise RefusedImage("BOMB_META", f"more than {limits.max_scans} scans over the same pixels")
    if end + 2 < len(data) and found.frames == 1:
        found.flags.append("trailing_bytes")
    # libjpeg guesses the colour space from these; only the certain case takes the fast decoder
    is_ycc = found.adobe_transform in (-1, 1) and (found.has_jfif or found.component_ids == b"\x01\x02\x03")
    is_plain = len(found.component_ids) == 3 and is_ycc and found.frame_marker in JPEG_PLAIN_MARKERS
    return ImageHeader(
        format="JPEG",
        width=found.width,
        height=found.height,
        frames=found.frames,
        orientation=found.orientation or 1,
        is_plain_jpeg=is_plain,
        flags=tuple(found.flags),
    )


def _find_end(data: bytes, scan: int) -> int:
    """Return where the first end marker is, or -1; entropy-coded bytes never hold one: a true FF is followed by 00.

    Photographs have an FF every 256 bytes, at which `find` halts; comparing pairs of bytes takes a fifth of its time.
    """
    if len(data) - scan <= FEW_BYTES:
        return data.find(b"\xff\xd9", scan)
    found = []
    for start in (scan, scan + 1):
        is_end = np.frombuffer(data, "<u2", (len(data) - start) // 2, start) == 0xD9FF
        first = int(is_end.argmax())
        if is_end[first]:
            found.append(start + 2 * first)
    return min(found, default=-1)


def _walk_jpeg_markers(data: bytes, found: _JpegFindings, limits: Limits) -> int:
    """Fill `found` and return the offset of the first scan."""
    position, size = 2, len(data)
    for number in range(limits.max_blocks):
        if position + 4 > size:
            # three bytes of FF D8 FF name a format but hold nothing of an image
            raise RefusedImage(*(("TRUNCATED", "the JPEG ends in its header") if number else _NOT_JPEG))
        if data[position] != 0xFF:
            raise RefusedImage(*(("CORRUPT", f"no JPEG marker at byte {position}") if number else _NOT_JPEG))
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
            continue
        if marker in (0x00, 0xD9):
            raise RefusedImage("CORRUPT", f"JPEG marker {marker:#04x} before the first scan")
        length = data[position + 2] << 8 | data[position + 3]
        if length < 2:
            raise RefusedImage("CORRUPT", f"JPEG segment of {length} bytes")
        if marker == 0xDA:
            return position + 2 + length
        if position + 2 + length > size:
            raise RefusedImage("TRUNCATED", "the JPEG ends in its header")
        if marker in JPEG_FRAME_MARKERS or marker in (0xE0, 0xE1, 0xE2, 0xEE):
            _note_jpeg_segment(marker, data[position + 4 : position + 2 + length], found)
        position += 2 + length
    raise RefusedImage("BOMB_META", f"more than {limits.max_blocks:,} JPEG markers")


_NOT_JPEG = ("NOT_IMAGE", "the first bytes are a JPEG's, the rest is not")


def _note_jpeg_segment(marker: int, body: bytes, found: _JpegFindings) -> None:
    if marker in JPEG_FRAME_MARKERS:
        if len(body) < 6 or body[0] != 8:
            raise RefusedImage("CORRUPT", f"JPEG frame of {body[0] if body else 0} bits a sample; 8 are decoded")
        found.frame_marker = marker
        found.height, found.width = body[1] << 8 | body[2], body[3] << 8 | body[4]
        found.component_ids = body[6 : 6 + 3 * body[5] : 3]
    elif marker == 0xE0:
        found.has_jfif = found.has_jfif or (body[:5] == b"JFIF\0" and len(body) >= JFIF_BYTES)
    elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
        found.adobe_transform = body[11]
    elif marker == 0xE1 and body[:6] == b"Exif\0\0":
        found.orientation = read_orientation(body[6:])
        if not found.orientation:
            found.flags.append("exif_invalid")
    elif marker == 0xE2 and body[:4] == b"MPF\0":
        found.frames = _count_mpo_images(body[4:])


def _count_mpo_images(block: bytes) -> int:
    """Number of images of a multi-picture file (CIPA DC-007); 1 when the index is unreadable."""
    try:
        layout = read_layout(block)
        fields, _ = read_directory(block, layout, layout.first_offset)
    except BadDirectory:
        return 1
    return max(1, fields.get(TAG_MPO_IMAGES, (1,))[0])
