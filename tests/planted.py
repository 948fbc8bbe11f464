"""Images with a secret in every place beside the pixels, and a search that finds it wherever it was left."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin, TiffImagePlugin

from tests import factories

SECRET = b"Erika Mustermann 1948-03-17"


def segment(marker: int, body: bytes) -> bytes:
    """Return one JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def exif_block(secret: bytes = SECRET) -> bytes:
    """Return an EXIF block, without its prefix: description, camera, GPS, UTF-16 comment, and a thumbnail with both."""
    exif = Image.Exif()
    exif[0x010E] = secret.decode()  # description
    exif[0x9C9C] = secret.decode().encode("utf-16-le")  # Windows comment
    exif.get_ifd(0x8825)[0x001D] = secret.decode()  # GPS date
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    thumbnail = factories.make_jpeg(9, 16, 16)
    return block + thumbnail[:2] + segment(0xFE, secret) + thumbnail[2:]


def _profile(secret: bytes) -> bytes:
    return bytes(128) + b"desc" + secret + bytes(40)


def jpeg_segments(secret: bytes = SECRET) -> list[bytes]:
    """Return a segment of each kind that says the secret."""
    named = [
        segment(0xE1, b"Exif\0\0" + exif_block(secret)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x>" + secret + b"</x>"),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + _profile(secret)),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0" + secret),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0" + secret),
        segment(0xE0, b"JFXX\0\x10" + secret),
        segment(0xFE, secret.decode().encode("utf-16-be")),
    ]
    return [*named, *(segment(marker, zlib.compress(secret)) for marker in (*range(0xE3, 0xF0), 0xFE))]


def jpeg(width: int, height: int, secret: bytes = SECRET, **options: object) -> bytes:
    """Return a JPEG with the secret in every segment, in the JFIF thumbnail, between scans and after its end."""
    plain = factories.make_jpeg(1, width, height, **options)
    jfif_length = 2 + (plain[4] << 8 | plain[5])
    jfif = segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\x09\x01" + secret)
    scan = plain.rfind(b"\xff\xda")
    body = plain[2 + jfif_length : scan] + segment(0xFE, secret) + plain[scan:]
    return plain[:2] + jfif + b"".join(jpeg_segments(secret)) + body + secret


def png(width: int, height: int, secret: bytes = SECRET) -> bytes:
    """Return a PNG with the secret in text, profile, EXIF and private chunks, around its pixels and after its end."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", secret.decode())
    info.add_text("Packed", secret.decode(), zip=True)
    info.add_itxt("Title", secret.decode(), zip=True)
    info.add(b"prVt", secret)
    info.add(b"prVt", zlib.compress(secret), after_idat=True)
    pixels = Image.fromarray(factories.make_pixels(1, width, height))
    data = factories.encode(
        pixels, "PNG", pnginfo=info, exif=b"Exif\0\0" + exif_block(secret), icc_profile=_profile(secret)
    )
    return data + secret


def png_with_more_data(secret: bytes = SECRET) -> list[bytes]:
    """Return PNGs whose pixel stream says the secret: behind its end, in rows below the last, in an unused palette."""
    rows = (b"\0" + bytes(24)) * 8
    whole = factories.raw_png(8, 8, rows)
    packed = zlib.compress(rows, 9)
    chunk = factories.png_chunk(b"IDAT", packed)
    behind = whole.replace(chunk, factories.png_chunk(b"IDAT", packed + secret))
    second = whole.replace(chunk, chunk + factories.png_chunk(b"IDAT", secret))
    below = factories.raw_png(8, 8, rows + secret)
    palette = factories.png_chunk(b"PLTE", secret.ljust(30, b"\0"))
    indexed = factories.raw_png(8, 8, (b"\0" + bytes(8)) * 8, color=3, extra=palette)
    return [behind, second, below, indexed]


def webp(width: int, height: int, secret: bytes = SECRET) -> bytes:
    """Return a WebP with the secret in EXIF, XMP, profile and an unknown chunk, and after its end."""
    pixels = Image.fromarray(factories.make_pixels(1, width, height))
    data = factories.encode(
        pixels, "WEBP", exif=exif_block(secret), xmp=b"<x>" + secret + b"</x>", icc_profile=_profile(secret)
    )
    data += b"prVt" + struct.pack("<I", len(secret)) + secret + b"\0" * (len(secret) & 1)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:] + secret


def tiff(width: int, height: int, secret: bytes = SECRET) -> bytes:
    """Return a TIFF with the secret in text tags, XMP, IPTC and a private tag, and after its end."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = secret.decode()
    tags[315] = secret.decode()
    for tag in (700, 33723, 65000):
        tags[tag] = secret
        tags.tagtype[tag] = 7
    pixels = Image.fromarray(factories.make_pixels(1, width, height))
    return factories.encode(pixels, "TIFF", tiffinfo=tags) + secret


def gif(width: int, height: int, secret: bytes = SECRET) -> bytes:
    """Return a GIF with the secret in a comment and an application block, and after its end."""
    data = factories.encode(factories.make_pixels(1, width, height), "GIF", comment=secret)
    block = b"!\xff\x0bXMP DataXMP" + bytes([len(secret)]) + secret + b"\0"
    start = data.find(b",", 13 + 3 * 256)
    return data[:start] + block + data[start:] + secret


MAKERS: dict[str, Callable[[int, int], bytes]] = {"jpg": jpeg, "png": png, "webp": webp, "tif": tiff, "gif": gif}


def is_told(data: bytes, secret: bytes = SECRET) -> bool:
    """Return whether bytes say the secret: as they are, as UTF-16, or in a zlib stream that starts anywhere."""
    forms = (secret, secret.decode().encode("utf-16-le"), secret.decode().encode("utf-16-be"))
    return any(form in part for part in (data, *_unpacked(data)) for form in forms)


def _unpacked(data: bytes) -> Iterator[bytes]:
    for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data):
        try:
            yield zlib.decompressobj().decompress(data[start.start() :], 2**20)
        except zlib.error:
            continue
    position, packed = 8, b""
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        packed += data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += 12 + length
    if packed:
        yield zlib.decompressobj().decompress(packed)


def tellers(folder: Path, secret: bytes = SECRET) -> list[str]:
    """Return the files below a folder that say the secret, those in compressed Parquet pages too."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blobs = [path.read_bytes()]
        if path.suffix == ".parquet":
            blobs += [blob for row in pq.read_table(io.BytesIO(blobs[0])).to_pylist() for blob in _blobs(row)]
        if any(is_told(blob, secret) for blob in blobs):
            found.append(str(path.relative_to(folder)))
    return found


def _blobs(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _blobs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _blobs(inner)
