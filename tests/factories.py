"""Images built in code, the hostile ones too, and the archives and folders that hold them."""

from __future__ import annotations

import binascii
import io
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def make_pixels(seed: int = 0, width: int = 64, height: int = 48, channels: int = 3) -> Pixels:
    """Return smooth, noisy, asymmetric pixels (H, W, channels); each seed gives another picture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR), dtype=np.int16)
    noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    if channels == 4:
        return np.dstack([noisy, rng.integers(0, 256, (height, width, 1), dtype=np.uint8)])
    return noisy[..., 0] if channels == 1 else noisy


def encode(image: Image.Image | Pixels, image_format: str, **options: object) -> bytes:
    """Encode with Pillow."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, image_format, **options)
    return out.getvalue()


def make_jpeg(seed: int = 0, width: int = 64, height: int = 48, **options: object) -> bytes:
    """Return a JPEG; `exif_orientation=n` adds the tag."""
    orientation = options.pop("exif_orientation", None)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    return encode(make_pixels(seed, width, height), "JPEG", **{"quality": 90, **options})


def make_png(seed: int = 0, width: int = 64, height: int = 48) -> bytes:
    """Return an 8-bit RGB PNG."""
    return encode(make_pixels(seed, width, height), "PNG")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return one PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", binascii.crc32(kind + body))


def raw_png(width: int, height: int, rows: bytes, *, depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    """Return a PNG of filtered rows as they are, whatever the header claims."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + png_chunk(b"IDAT", zlib.compress(rows, 9)) + png_chunk(b"IEND", b"")


def raw_tiff(width: int, height: int, *, strip_bytes: int = 10) -> bytes:
    """Return a grey TIFF whose single strip starts at byte 8, whatever it claims."""
    fields = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*fields, (279, strip_bytes)])
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields) + 1) + body + bytes(4)


@dataclass(frozen=True)
class ImageCase:
    """One input and what must become of it: `reason` of the refusal, or "" with the flags of the row."""

    name: str
    build: Callable[[], bytes]
    reason: str = ""
    flags: tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        return self.build()


def _flip(data: bytes, index: int) -> bytes:
    changed = bytearray(data)
    changed[index] ^= 0x5A
    return bytes(changed)


def _frames(image_format: str, count: int, size: int = 16) -> bytes:
    pictures = [Image.fromarray(make_pixels(i, size, size)) for i in range(count)]
    return encode(pictures[0], image_format, save_all=True, append_images=pictures[1:])


def _many_frame_gif(count: int) -> bytes:
    pictures = [Image.new("L", (2, 2), 255 * (i % 2)) for i in range(count)]
    return encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:], duration=10)


def _cmyk_jpeg(*, adobe: bool) -> bytes:
    plain = encode(Image.fromarray(make_pixels()).convert("CMYK"), "JPEG", quality=95)
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    return plain[:2] + marker + plain[2:] if adobe else plain


def _palette_png() -> bytes:
    return encode(Image.fromarray(make_pixels()).quantize(16), "PNG", transparency=0)


def _icon_bomb() -> bytes:
    inner = raw_png(30_000, 30_000, bytes(30_001), color=0)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


def _text_bomb(kind: bytes) -> bytes:
    packed = zlib.compress(bytes(8 * 2**20), 9)
    return raw_png(8, 8, (b"\0" + bytes(24)) * 8, extra=png_chunk(kind, b"k\0\0" + packed))


def _many_scans(count: int) -> bytes:
    """Repeat the last scan of a progressive JPEG: a small file that keeps a decoder busy."""
    whole = make_jpeg(progressive=True)
    last = whole.rfind(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


def _sof(old: bytes, new: bytes) -> bytes:
    return make_jpeg().replace(old, new, 1)


def image_cases() -> list[ImageCase]:
    """Return every single-file case with its expected outcome."""
    return [*_damaged_cases(), *_foreign_cases(), *_unusual_cases(), *_greedy_cases()]


def _damaged_cases() -> list[ImageCase]:
    jpeg, png = make_jpeg(), make_png()
    tenths = [
        ImageCase(f"jpeg-cut-{i}0pct.jpg", lambda i=i: jpeg[: len(jpeg) * i // 10], "TRUNCATED")  # type: ignore[misc]
        for i in range(1, 10)
    ]
    return [
        ImageCase("zero-bytes.jpg", lambda: b"", "EMPTY"),
        ImageCase("one-byte.png", lambda: b"\x89", "NOT_IMAGE"),
        ImageCase("magic-only.jpg", lambda: b"\xff\xd8\xff", "NOT_IMAGE"),
        *tenths,
        ImageCase("jpeg-no-end-marker.jpg", lambda: jpeg[:-2], "TRUNCATED"),
        ImageCase("png-cut-in-data.png", lambda: png[: len(png) // 2], "TRUNCATED"),
        ImageCase("png-without-end.png", lambda: png[:-12], "TRUNCATED"),
        ImageCase("png-data-flipped.png", lambda: _flip(png, -20), "CORRUPT"),
        ImageCase("jpeg-scan-flipped.jpg", lambda: _flip(jpeg, len(jpeg) // 2)),
        ImageCase("jpeg-trailing-garbage.jpg", lambda: jpeg + bytes(range(256)) * 16, flags=("trailing_bytes",)),
        ImageCase("png-zero-width.png", lambda: raw_png(0, 10, b"", color=0), "CORRUPT"),
        ImageCase("avif-cut.avif", lambda: encode(make_pixels(), "AVIF")[:200], "TRUNCATED"),
        ImageCase("webp-cut.webp", lambda: encode(make_pixels(), "WEBP")[:200], "TRUNCATED"),
        ImageCase("gif-cut.gif", lambda: _frames("GIF", 1, 64)[:600], "TRUNCATED"),
        ImageCase("tiff-strip-past-end.tif", lambda: raw_tiff(100, 100, strip_bytes=10_000), "TRUNCATED"),
        ImageCase("tiff-too-few-rows.tif", lambda: raw_tiff(100, 100), "TRUNCATED"),
        ImageCase("jpeg-arithmetic.jpg", lambda: _sof(b"\xff\xc0\x00\x11\x08", b"\xff\xc9\x00\x11\x08")),
        ImageCase("jpeg-12-bit.jpg", lambda: _sof(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"), "CORRUPT"),
    ]


def _foreign_cases() -> list[ImageCase]:
    entity = b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/hostname">]><svg>&x;</svg>'
    page = b"<!doctype html><html><title>404 Not Found</title></html>" * 9
    fits = b"SIMPLE  =                    T".ljust(2880) + bytes(100)
    heic = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(64)
    psd = b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(206)
    return [
        ImageCase("html-page.jpg", lambda: page, "NOT_IMAGE"),
        ImageCase("text.png", lambda: b"not a picture\n" * 40, "NOT_IMAGE"),
        ImageCase("random-64k.jpg", lambda: random.Random(0).randbytes(65_536), "NOT_IMAGE"),
        ImageCase("postscript.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "FORMAT_DENIED"),
        ImageCase("vector.svg", lambda: entity, "FORMAT_DENIED"),
        ImageCase("photo.heic", lambda: heic, "FORMAT_DENIED"),
        ImageCase("jpeg2000.jp2", lambda: encode(make_pixels(), "JPEG2000"), "FORMAT_DENIED"),
        ImageCase("layers.psd", lambda: psd, "FORMAT_DENIED"),
        ImageCase("telescope.fits", lambda: fits, "FORMAT_DENIED"),
        ImageCase("float32.tif", lambda: encode(Image.new("F", (8, 8), 0.5), "TIFF"), "MODE"),
    ]


def _unusual_cases() -> list[ImageCase]:
    grey16 = (np.arange(64 * 48, dtype=np.uint16) * 21).reshape(48, 64)
    bad_exif = b"\xff\xe1\x00\x10Exif\0\0" + bytes(range(8))
    jpeg = make_jpeg()
    return [
        ImageCase("jpeg.jpg", make_jpeg),
        ImageCase("png.png", make_png),
        ImageCase("cmyk.jpg", lambda: _cmyk_jpeg(adobe=False)),
        ImageCase("cmyk-adobe.jpg", lambda: _cmyk_jpeg(adobe=True)),
        ImageCase("grey.jpg", lambda: encode(make_pixels(channels=1), "JPEG")),
        ImageCase("progressive.jpg", lambda: make_jpeg(progressive=True)),
        ImageCase("grey16.png", lambda: encode(Image.fromarray(grey16), "PNG"), flags=("depth16",)),
        ImageCase("rgb16.png", lambda: raw_png(8, 8, (b"\0" + bytes(48)) * 8, depth=16), flags=("depth16",)),
        ImageCase("palette-transparent.png", _palette_png),
        ImageCase("rgba.png", lambda: encode(make_pixels(channels=4), "PNG")),
        ImageCase("la.png", lambda: encode(Image.fromarray(make_pixels(channels=4)).convert("LA"), "PNG")),
        ImageCase("one-bit.png", lambda: encode(Image.fromarray(make_pixels(channels=1)).convert("1"), "PNG")),
        ImageCase("color-key.png", lambda: raw_png(8, 8, (b"\0" + bytes(24)) * 8, extra=png_chunk(b"tRNS", bytes(6)))),
        *[
            ImageCase(f"exif-{n}.jpg", lambda n=n: make_jpeg(exif_orientation=n))  # type: ignore[misc]
            for n in range(1, 9)
        ],
        ImageCase("exif-99.jpg", lambda: make_jpeg(exif_orientation=99), flags=("exif_invalid",)),
        ImageCase("exif-garbage.jpg", lambda: jpeg[:2] + bad_exif + jpeg[2:], flags=("exif_invalid",)),
        ImageCase("animated.gif", lambda: _frames("GIF", 5), flags=("frames=5",)),
        ImageCase("animated.webp", lambda: _frames("WEBP", 5), flags=("frames=5",)),
        ImageCase("animated.png", lambda: _frames("PNG", 5), flags=("frames=5",)),
        ImageCase("pages.tif", lambda: _frames("TIFF", 5), flags=("frames=5",)),
        ImageCase("two-pictures.jpg", lambda: _frames("MPO", 2), flags=("frames=2",)),
        ImageCase("avif.avif", lambda: encode(make_pixels(), "AVIF")),
        ImageCase("bmp.bmp", lambda: encode(make_pixels(), "BMP")),
        ImageCase("ppm.ppm", lambda: encode(make_pixels(), "PPM")),
        ImageCase("webp.webp", lambda: encode(make_pixels(), "WEBP")),
        ImageCase("tiff.tif", lambda: encode(make_pixels(), "TIFF")),
        ImageCase("one-pixel.png", lambda: raw_png(1, 1, b"\0\1\2\3"), flags=("tiny",)),
    ]


def _greedy_cases() -> list[ImageCase]:
    return [
        ImageCase("gif-3000-frames.gif", lambda: _many_frame_gif(3_000), "FRAMES"),
        ImageCase("png-30000x30000.png", lambda: raw_png(30_000, 30_000, bytes(30_001), color=0), "BOMB_PIXELS"),
        ImageCase("icon-with-bomb.ico", _icon_bomb, "BOMB_PIXELS"),
        ImageCase("png-10000x10000.png", lambda: raw_png(10_000, 10_000, bytes(10_001), color=0), "BOMB_PIXELS"),
        ImageCase("png-2g-wide.png", lambda: raw_png(2**31 - 1, 1, b"\0", color=0), "BOMB_PIXELS"),
        ImageCase("jpeg-65500x1.jpg", lambda: encode(Image.new("RGB", (65_500, 1)), "JPEG"), "ASPECT"),
        ImageCase("tiff-2g-square.tif", lambda: raw_tiff(2**31 - 1, 2**31 - 1), "BOMB_PIXELS"),
        ImageCase("ppm-huge.ppm", lambda: b"P6 20000 20000 255\n" + bytes(99), "BOMB_PIXELS"),
        ImageCase("jpeg-1000-scans.jpg", lambda: _many_scans(1_000), "BOMB_META"),
        ImageCase("png-text-bomb.png", lambda: _text_bomb(b"zTXt"), "BOMB_META"),
        ImageCase("png-profile-bomb.png", lambda: _text_bomb(b"iCCP"), "BOMB_META"),
    ]


def write_class_folder(root: Path, images_per_class: dict[str, int], *, size: int = 32, seed: int = 0) -> Path:
    """Write `<root>/<class>/<number>.jpg` with a different picture in each file."""
    for class_index, (name, count) in enumerate(images_per_class.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture = make_jpeg(seed * 1_000_003 + class_index * 10_007 + i, size, size)
            (root / name / f"{i:04d}.jpg").write_bytes(picture)
    return root


def make_zip(members: Sequence[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip; equal names are written twice without a word."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore", UserWarning)
        for name, data in members:
            # a fixed time: the bytes depend on the members alone
            head = zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)) if isinstance(name, str) else name
            archive.writestr(head, data, method)
    return out.getvalue()


def make_tar(members: Sequence[tuple[str, bytes] | tarfile.TarInfo], *, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of files, and of whatever a TarInfo describes (links, devices)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


ZSTD_SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"pzst"
"""A skippable frame, which parallel packers write first."""


def zstd(data: bytes) -> bytes:
    """Return one compressed frame; Arrow writes no checksum."""
    packed: bytes = pa.compress(data, "zstd", asbytes=True)
    return packed


def zstd_stored(data: bytes) -> bytes:
    """Return a frame of raw blocks with a checksum, for a little data (RFC 8878, 3.1.1)."""
    assert len(data) < 2**17
    block = struct.pack("<I", (len(data) << 3) | 1)[:3] + data
    return bytes.fromhex("28b52ffd0468") + block + struct.pack("<I", xxhash.xxh64_intdigest(data) & 0xFFFFFFFF)


def tar_link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return a member that is no file: a link, a device or a pipe."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    """Return the head of a member that says it is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def overlapping_zip(count: int) -> bytes:
    """Return a zip whose directory lists one megabyte many times: a few bytes that would unpack to gigabytes."""
    whole = make_zip([("k.jpg", bytes(2**20))], zipfile.ZIP_DEFLATED)
    directory_at, end_at = whole.find(b"PK\x01\x02"), whole.find(b"PK\x05\x06")
    directory = whole[directory_at:end_at] * count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), directory_at, 0)
    return whole[:directory_at] + directory + end


def sparse_tar(size: int) -> bytes:
    """Return a pax tar of one sparse file that would unpack to `size` zeros."""
    info = tarfile.TarInfo("GNUSparseFile.0/s.jpg")
    info.size = 512
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
    return info.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n0\n".ljust(512, b"\0") + bytes(1024)
