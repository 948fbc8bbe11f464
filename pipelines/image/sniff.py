"""Which format the bytes are, and whether it and its claimed size are allowed; nothing is decoded here."""

import struct

from pipelines.image.animated_header import read_gif_header, read_webp_header
from pipelines.image.header import DEFAULT_LIMITS, ImageHeader, Limits, RefusedImage, check_size
from pipelines.image.jpeg_header import read_jpeg_header
from pipelines.image.png_header import PNG_SIGNATURE, read_png_header
from pipelines.image.tiff_header import read_tiff_header

FORMAT_BY_EXTENSION = {
    "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "mpo": "JPEG", "png": "PNG", "apng": "PNG",
    "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "dib": "BMP", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF",
    "ppm": "PPM", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM",
}  # fmt: skip

DENIED_SIGNATURES = (
    (b"%!PS", "EPS"),
    (b"8BPS", "PSD"),
    (b"SIMPLE  =", "FITS"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"%PDF-", "PDF"),
    (b"\0\0\2\0", "CUR"),
    (b"P7\n", "PAM"),
)


def sniff_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> ImageHeader:
    """Return the header of an allowed image, or raise RefusedImage with the code that fits.

    Width and height are 0 for BMP, PPM and AVIF, whose size the decoder reads from the header before it decodes.
    """
    if not data:
        raise RefusedImage("EMPTY", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise RefusedImage("TOO_LARGE", f"{len(data):,} bytes are more than {limits.max_bytes:,}")
    header = _read_header(data, limits)
    if header.width or header.height or header.format not in ("BMP", "PPM", "AVIF"):
        check_size(header.width, header.height, header.frames, limits)
    return header


def _read_header(data: bytes, limits: Limits) -> ImageHeader:
    if data[:3] == b"\xff\xd8\xff":
        return read_jpeg_header(data, limits)
    if data[:8] == PNG_SIGNATURE:
        return read_png_header(data, limits)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return read_gif_header(data, limits)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return read_webp_header(data, limits)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return read_tiff_header(data, limits)
    if data[4:8] == b"ftyp":
        return _read_isobmff(data)
    if data[:2] == b"BM" and len(data) >= 26 and data[6:10] == b"\0\0\0\0":
        return ImageHeader("BMP")
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return ImageHeader("PPM")
    if data[:3] == b"Pf\n":
        return ImageHeader("PPM", flags=("depth32",), wide_samples="32-bit float")
    if data[:3] == b"PF\n":
        raise RefusedImage("MODE", "float samples of three colours (PFM) are not read; one channel of them is")
    raise _refuse_unknown(data, limits)


def _read_isobmff(data: bytes) -> ImageHeader:
    """Tell AVIF from its relatives and check that its boxes are whole (ISO/IEC 14496-12, sec. 4.2)."""
    length = struct.unpack_from(">I", data)[0]
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, min(length, len(data), 256), 4))}
    if not brands & {b"avif", b"avis"}:
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            raise RefusedImage("FORMAT_DENIED", "HEIC is not decoded; convert it first, for example with pillow-heif")
        raise RefusedImage("FORMAT_DENIED", "an ISO media file that is not AVIF")
    position = 0
    while position + 8 <= len(data):
        length = struct.unpack_from(">I", data, position)[0]
        if length == 1 and position + 16 <= len(data):
            length = struct.unpack_from(">Q", data, position + 8)[0]
        elif length == 0:
            break  # runs to the end of the file
        if length < 8:
            raise RefusedImage("CORRUPT", f"an AVIF box of {length} bytes")
        position += length
        if position > len(data):
            raise RefusedImage("TRUNCATED", "the AVIF ends inside a box")
    return ImageHeader("AVIF", flags=("trailing_bytes",) if position < len(data) and length else ())


def _refuse_unknown(data: bytes, limits: Limits) -> RefusedImage:
    if data[:4] == b"\0\0\1\0":
        inner = data.find(PNG_SIGNATURE, 6, 65_536)
        if inner > 0 and inner + 24 <= len(data):
            width, height = struct.unpack_from(">II", data, inner + 16)
            check_size(width, height, 1, limits)  # a bomb in an icon is still a bomb
        return RefusedImage("FORMAT_DENIED", "ICO is not among the allowed formats")
    for signature, name in DENIED_SIGNATURES:
        if data.startswith(signature):
            return RefusedImage("FORMAT_DENIED", f"{name} is not among the allowed formats")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in data[:4096].lower()):
        return RefusedImage("FORMAT_DENIED", "SVG is not among the allowed formats")
    return RefusedImage("NOT_IMAGE", "the first bytes are of no image format")


def name_flags(key: str, image_format: str) -> tuple[str, ...]:
    """Flag a key whose extension does not say what the bytes are, or that has none."""
    name = key.rpartition("/")[2]
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    return () if FORMAT_BY_EXTENSION.get(extension) == image_format else ("ext_mismatch",)
