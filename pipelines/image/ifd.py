"""Image file directories (TIFF 6.0, sec. 2), the structure that TIFF, EXIF and MPO share."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

IFD_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
IFD_INTEGER_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
TAG_ORIENTATION = 0x0112


class BadDirectory(ValueError):
    """The bytes are not a readable directory; `is_cut` when they end inside it."""

    def __init__(self, message: str, *, is_cut: bool = False) -> None:
        super().__init__(message)
        self.is_cut = is_cut


@dataclass(frozen=True)
class DirectoryLayout:
    """Byte order and field sizes of one TIFF structure."""

    endian: str
    is_big: bool
    first_offset: int

    def unpack(self, code: str, data: bytes, offset: int) -> int:
        """Read one unsigned integer."""
        size = struct.calcsize("<" + code)
        if offset < 0 or offset + size > len(data):
            raise BadDirectory(f"offset {offset} lies past the end", is_cut=True)
        return int(struct.unpack_from(self.endian + code, data, offset)[0])


def read_layout(data: bytes) -> DirectoryLayout:
    """Read the 8 or 16 byte head of a TIFF structure; raises BadDirectory."""
    endian = {b"II": "<", b"MM": ">"}.get(data[:2])
    if endian is None or len(data) < 8:
        raise BadDirectory("no byte order mark")
    magic = struct.unpack_from(endian + "H", data, 2)[0]
    if magic == 42:
        return DirectoryLayout(endian, False, struct.unpack_from(endian + "I", data, 4)[0])
    if magic == 43 and len(data) >= 16:
        return DirectoryLayout(endian, True, struct.unpack_from(endian + "Q", data, 8)[0])
    raise BadDirectory(f"magic number {magic} is neither 42 nor 43")


def read_directory(data: bytes, layout: DirectoryLayout, offset: int) -> tuple[dict[int, tuple[int, ...]], int]:
    """Read the integer fields of the directory at `offset`; return them by tag, and the next directory's offset (or 0).

    Fields of other types are left out. Raises BadDirectory.
    """
    count_code, entry_size, value_code = ("Q", 20, "Q") if layout.is_big else ("H", 12, "I")
    count = layout.unpack(count_code, data, offset)
    start = offset + struct.calcsize("<" + count_code)
    end = start + count * entry_size
    if count > 4_096 or end > len(data):
        raise BadDirectory(f"a directory of {count} fields at {offset}", is_cut=count <= 4_096)
    fields = dict(_directory_fields(data, layout, range(start, end, entry_size), value_code))
    has_next = end + struct.calcsize("<" + value_code) <= len(data)
    return fields, layout.unpack(value_code, data, end) if has_next else 0


def _directory_fields(
    data: bytes, layout: DirectoryLayout, entries: range, value_code: str
) -> Iterator[tuple[int, tuple[int, ...]]]:
    inline_size = struct.calcsize("<" + value_code)
    for entry in entries:
        tag, kind = layout.unpack("H", data, entry), layout.unpack("H", data, entry + 2)
        code = IFD_INTEGER_CODES.get(kind)
        if code is None:
            continue
        count = layout.unpack(value_code, data, entry + 4)
        if count == 0:
            continue  # callers may take the first value
        size = count * IFD_TYPE_SIZES[kind]
        where = entry + 4 + inline_size
        if size > inline_size:
            where = layout.unpack(value_code, data, where)
        if size > len(data) or where + size > len(data):
            raise BadDirectory(f"field {tag} lies past the end", is_cut=True)
        yield tag, struct.unpack_from(f"{layout.endian}{count}{code}", data, where)


def field_sizes(data: bytes) -> list[tuple[int, int]]:
    """Return tag and size in bytes of each field of the first directory, of whatever type; none where it is damaged."""
    try:
        layout = read_layout(data)
        count_code, entry_size, value_code = ("Q", 20, "Q") if layout.is_big else ("H", 12, "I")
        count = layout.unpack(count_code, data, layout.first_offset)
        start = layout.first_offset + struct.calcsize("<" + count_code)
        found = []
        for entry in range(start, start + min(count, 4_096) * entry_size, entry_size):
            kind = layout.unpack("H", data, entry + 2)
            size = layout.unpack(value_code, data, entry + 4) * IFD_TYPE_SIZES.get(kind, 1)
            found.append((layout.unpack("H", data, entry), min(size, len(data))))
    except BadDirectory:
        return []
    return found


def read_orientation(block: bytes) -> int:
    """Read the orientation of an EXIF block (without its `Exif` prefix): 1 to 8, 1 when absent, 0 when unreadable."""
    try:
        layout = read_layout(block)
        fields, _ = read_directory(block, layout, layout.first_offset)
    except BadDirectory:
        return 0
    values = fields.get(TAG_ORIENTATION, (1,))
    return values[0] if len(values) == 1 and 1 <= values[0] <= 8 else 0
