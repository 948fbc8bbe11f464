"""GIF blocks (GIF89a) and WebP chunks (RFC 9649): size and number of frames, without decoding one."""

import struct
from collections.abc import Iterator

from pipelines.image.header import ImageHeader, Limits, RefusedImage
from pipelines.image.ifd import read_orientation


def read_gif_header(data: bytes, limits: Limits) -> ImageHeader:
    """Walk a GIF's blocks; raises RefusedImage (TRUNCATED, CORRUPT, FRAMES, BOMB_META)."""
    if len(data) < 13:
        raise RefusedImage("TRUNCATED", "the GIF ends in its header")
    width, height, packed = struct.unpack_from("<HHB", data, 6)
    position = 13 + _color_table_bytes(packed)
    frames, flags = 0, []
    while position < len(data) and data[position] != 0x3B:
        if data[position] == 0x2C and position + 10 <= len(data):
            left, top, frame_width, frame_height, packed = struct.unpack_from("<HHHHB", data, position + 1)
            if frames == 0:  # viewers and Pillow enlarge the canvas to the first frame
                width, height = max(width, left + frame_width), max(height, top + frame_height)
            frames += 1
            if frames > limits.max_frames:
                raise RefusedImage("FRAMES", f"more than {limits.max_frames:,} frames")
            position = _skip_sub_blocks(data, position + 11 + _color_table_bytes(packed))
        elif data[position] == 0x21:
            position = _skip_sub_blocks(data, position + 2)
        elif data[position] == 0x2C:
            raise RefusedImage("TRUNCATED", "the GIF ends in a frame's header")
        else:
            raise RefusedImage("CORRUPT", f"no GIF block starts with {data[position]:#04x}")
    if frames == 0:
        raise RefusedImage("TRUNCATED", "the GIF holds no frame")
    if position + 1 < len(data):
        flags.append("trailing_bytes")
    return ImageHeader("GIF", width, height, frames, flags=tuple(flags))


def gif_blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield kind, start and end of each block of an accepted GIF; extensions by their label, pictures as 0x2C."""
    position = 13 + _color_table_bytes(data[10])
    while position + 1 < len(data) and data[position] != 0x3B:
        start = position
        is_picture = data[position] == 0x2C and position + 10 <= len(data)
        body = position + 11 + _color_table_bytes(data[position + 9]) if is_picture else position + 2
        position = _skip_sub_blocks(data, body)
        yield (0x2C if is_picture else data[start + 1]), start, position


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk of an accepted WebP."""
    stop = 8 + struct.unpack_from("<I", data, 4)[0]
    position = 12
    while position + 8 <= stop:
        kind, length = struct.unpack_from("<4sI", data, position)
        end = min(position + 8 + length + (length & 1), len(data))
        yield kind, position, end
        position = end


def _color_table_bytes(packed: int) -> int:
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def _skip_sub_blocks(data: bytes, position: int) -> int:
    while position < len(data):
        length = data[position]
        position += 1 + length
        if length == 0:
            return position
    raise RefusedImage("TRUNCATED", "the GIF ends inside a block")


def read_webp_header(data: bytes, limits: Limits) -> ImageHeader:
    """Walk a WebP's chunks; raises RefusedImage (TRUNCATED, CORRUPT, BOMB_META)."""
    if len(data) < 30:
        raise RefusedImage("TRUNCATED", "the WebP ends in its header")
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise RefusedImage("TRUNCATED", f"the WebP claims {end:,} bytes and holds {len(data):,}")
    width, height = _webp_size(data)
    frames, orientation = 0, 1
    flags = ["trailing_bytes"] if end + (end & 1) < len(data) else []
    position = 12
    for _ in range(limits.max_blocks):
        if position + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            block = data[position + 8 : position + 8 + length]
            orientation = read_orientation(block.removeprefix(b"Exif\0\0"))
            if not orientation:
                flags.append("exif_invalid")
        position += 8 + length + (length & 1)
    else:
        raise RefusedImage("BOMB_META", f"more than {limits.max_blocks:,} WebP chunks")
    return ImageHeader("WEBP", width, height, max(1, frames), orientation or 1, flags=tuple(flags))


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    raise RefusedImage("CORRUPT", f"the WebP starts with an unknown chunk {kind!r}")
