"""TIFF pages (TIFF 6.0): size, sample format, strips that lie past the end, number of pages."""

from pipelines.image.header import ImageHeader, Limits, RefusedImage, check_size
from pipelines.image.ifd import BadDirectory, DirectoryLayout, read_directory, read_layout

TAG_WIDTH, TAG_HEIGHT, TAG_BITS, TAG_SAMPLE_FORMAT = 256, 257, 258, 339
TIFF_STRIP_TAGS = ((273, 279), (324, 325))
"""Offsets and byte counts, of strips and of tiles."""


def read_tiff_header(data: bytes, limits: Limits) -> ImageHeader:
    """Read the first page's fields and count the pages; raises RefusedImage (TRUNCATED, CORRUPT, FRAMES)."""
    try:
        layout = read_layout(data)
        fields, following = read_directory(data, layout, layout.first_offset)
        width, height = fields.get(TAG_WIDTH, (0,))[0], fields.get(TAG_HEIGHT, (0,))[0]
        check_size(width, height, 1, limits)
        _check_strips(fields, len(data))
        frames = _count_pages(data, layout, following, limits)
    except BadDirectory as bad:
        raise RefusedImage("TRUNCATED" if bad.is_cut else "CORRUPT", f"the TIFF is unreadable: {bad}") from bad
    bits = max(fields.get(TAG_BITS, (1,)))
    sample_format = max(fields.get(TAG_SAMPLE_FORMAT, (1,)))
    kind = {1: "unsigned", 2: "signed", 3: "float"}.get(sample_format, "unknown")
    wide = f"{bits}-bit {kind}" if sample_format != 1 or bits > 16 else ""
    return ImageHeader("TIFF", width, height, frames, flags=(f"depth{bits}",) if bits > 8 else (), wide_samples=wide)


def _check_strips(fields: dict[int, tuple[int, ...]], size: int) -> None:
    for offsets_tag, counts_tag in TIFF_STRIP_TAGS:
        offsets, counts = fields.get(offsets_tag, ()), fields.get(counts_tag, ())
        if any(offset + count > size for offset, count in zip(offsets, counts, strict=False)):
            raise RefusedImage("TRUNCATED", "the TIFF's pixels lie past its end")


def _count_pages(data: bytes, layout: DirectoryLayout, following: int, limits: Limits) -> int:
    frames, seen = 1, {layout.first_offset}
    while following:
        if following in seen:
            raise RefusedImage("CORRUPT", "the TIFF's pages form a ring")
        frames += 1
        if frames > limits.max_frames:
            raise RefusedImage("FRAMES", f"more than {limits.max_frames:,} pages")
        seen.add(following)
        _, following = read_directory(data, layout, following)
    return frames
