"""PNG chunks (ISO/IEC 15948, sec. 5): size, frames, orientation, checksums and metadata bombs."""

import struct
import zlib

from pipelines.image.header import ImageHeader, Limits, RefusedImage, check_size
from pipelines.image.ifd import read_orientation

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_png_header(data: bytes, limits: Limits) -> ImageHeader:
    """Walk all chunks; raises RefusedImage (TRUNCATED, CORRUPT, BOMB_META, and the size codes)."""
    if len(data) < 33:
        raise RefusedImage("TRUNCATED", "the PNG ends in its header")
    if data[12:16] != b"IHDR":
        raise RefusedImage("CORRUPT", "the PNG does not start with its header chunk")
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    check_size(width, height, 1, limits)  # before the walk: a bomb is named a bomb even when it is also cut
    frames, orientation, flags = 1, 1, ["depth16"] if depth == 16 else []
    position = 8
    for _ in range(limits.max_blocks):
        if position + 12 > len(data):
            raise RefusedImage("TRUNCATED", "the PNG has no end chunk")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise RefusedImage("TRUNCATED", f"the PNG ends inside its {kind.decode('latin-1')} chunk")
        body = data[position + 8 : position + 8 + length]
        if not kind[0] & 0x20 and zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, end - 4)[0]:
            raise RefusedImage("CORRUPT", f"checksum of a {kind.decode('latin-1')} chunk is wrong")
        if kind == b"IEND":
            if end < len(data):
                flags.append("trailing_bytes")
            break
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            _check_png_text(kind, body, limits.max_meta_bytes)
        elif kind == b"acTL" and length >= 4:
            frames = max(1, struct.unpack_from(">I", body)[0])
        elif kind == b"eXIf":
            orientation = read_orientation(body)
            if not orientation:
                flags.append("exif_invalid")
        position = end
    else:
        raise RefusedImage("BOMB_META", f"more than {limits.max_blocks:,} PNG chunks")
    return ImageHeader("PNG", width, height, frames, orientation or 1, flags=tuple(flags))


def _check_png_text(kind: bytes, body: bytes, max_bytes: int) -> None:
    """Decompress a text or profile chunk only as far as the limit."""
    _, _, rest = body.partition(b"\0")
    if kind == b"iTXt":
        if rest[:1] != b"\x01":
            return  # stored as it is, so bounded by the file's own size
        _, _, rest = rest[2:].partition(b"\0")
        _, _, rest = rest.partition(b"\0")
        rest = b"\0" + rest
    try:
        text = zlib.decompressobj().decompress(rest[1:], max_bytes + 1)
    except zlib.error:
        return  # metadata only, and never read: Pillow judges whether the picture stands
    if len(text) > max_bytes:
        raise RefusedImage("BOMB_META", f"a {kind.decode()} chunk unpacks to more than {max_bytes:,} bytes")
