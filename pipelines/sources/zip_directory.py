"""The central directory of a zip (APPNOTE 6.3.10): parsed strictly, since two readings of one archive are an attack."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from pipelines.errors import InputError
from pipelines.sources.base import Found
from pipelines.storage import Storage

MAX_RATIO = 100
RATIO_FREE_BYTES = 2**20
"""Small members may pack as well as they like."""
MAX_MEMBER_BYTES = 64 * 2**20
MAX_DIRECTORY_BYTES = 2 * 2**30

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
_FIELDS = np.dtype(
    [
        *(
            (name, "<u2")
            for name in ("signature", "signature2", "made_by", "needed", "flags", "method", "time", "date")
        ),
        *((name, "<u4") for name in ("crc", "packed", "size")),
        *((name, "<u2") for name in ("name_size", "extra_size", "comment_size", "disk", "internal")),
        *((name, "<u4") for name in ("attributes", "offset")),
    ]
)
"""`_CENTRAL` as columns."""

_STORED, _DEFLATED, _BZIP2, _LZMA = 0, 8, 12, 14
METHODS = (_STORED, _DEFLATED, _BZIP2, _LZMA)


def read_directory(storage: Storage, path: str, size: int) -> tuple[bytes, int, int] | None:
    """Return (directory bytes, entries claimed, bytes before the zip proper); None when the archive has no end.

    Raises:
        InputError: two readings of the archive's end are possible.
    """
    tail_at = max(0, size - 66_000)
    tail = storage.read(path, tail_at, size - tail_at)
    end_at = _find_end(tail, storage.address(path))
    if end_at is None:
        return None
    _, _, _, _, count, directory_size, directory_offset, _ = _END.unpack_from(tail, end_at)
    directory_end = tail_at + end_at
    if end_at >= _LOCATOR.size and tail[end_at - _LOCATOR.size :][:4] == b"PK\6\7":
        locator_at = directory_end - _LOCATOR.size
        found = _read_end64(storage, path, locator_at, tail[end_at - _LOCATOR.size : end_at])
        claims = (count, directory_size, directory_offset)
        for claim, limit, value in zip(claims, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), found[:3], strict=True):
            if claim not in (limit, value):
                raise _ambiguous(storage.address(path), "its two end records disagree")
        count, directory_size, directory_offset, directory_end = found
    if directory_size > min(directory_end, MAX_DIRECTORY_BYTES):
        raise _ambiguous(storage.address(path), "its directory is larger than the archive")
    start = directory_end - directory_size
    prefix = start - directory_offset
    if prefix < 0:
        raise _ambiguous(storage.address(path), "its directory is not where its end says")
    return storage.read(path, start, directory_size), count, prefix


def _find_end(tail: bytes, address: str) -> int | None:
    """Find the one end record whose comment ends with the file; two of them would be two archives in one."""
    exact, loose = [], []
    position = tail.rfind(b"PK\5\6")
    while position >= 0:
        if position + _END.size <= len(tail):
            stop = position + _END.size + _END.unpack_from(tail, position)[7]
            exact += [position] if stop == len(tail) else []
            loose += [position] if stop < len(tail) else []
        position = tail.rfind(b"PK\5\6", 0, position)
    if len(exact) > 1:
        raise _ambiguous(address, "a second directory hides in its comment")
    return exact[0] if exact else loose[0] if loose else None


def _read_end64(storage: Storage, path: str, locator_at: int, locator: bytes) -> tuple[int, int, int, int]:
    _, _, claimed_at, _ = _LOCATOR.unpack(locator)
    at = locator_at - _END64.size
    record = storage.read(path, at, _END64.size) if at >= 0 else b""
    if record[:4] != b"PK\6\6" or claimed_at > at:
        raise _ambiguous(storage.address(path), "its zip64 locator points elsewhere (CVE-2025-8291)")
    _, _, _, _, _, _, _, count, directory_size, directory_offset = _END64.unpack(record)
    if at - claimed_at != at - directory_size - directory_offset:
        raise _ambiguous(storage.address(path), "its zip64 locator points elsewhere (CVE-2025-8291)")
    return count, directory_size, directory_offset, at


_Record = tuple[int, int, bytes, int, tuple[int, ...], str, str, str]
"""Offset, extent, name, size, detail, reason, message and text of one member; plain, for there may be millions."""


def parse_directory(directory: bytes, count: int, prefix: int, address: str, *, tells_keys: bool = True) -> list[Found]:
    """Return the members in the order of their bytes.

    Raises:
        InputError: members overlap, or the directory holds other than `count` of them.
    """
    members = sorted(_central_records(directory, prefix, address))
    if len(members) != count:
        raise _ambiguous(address, f"its end counts {count:,} members and its directory holds {len(members):,}")
    for one, following in itertools.pairwise(members):
        if one[0] + one[1] > following[0]:
            raise InputError(
                f"{address} has overlapping members (OVERLAP)"
                + (f": {one[2]!r} and {following[2]!r}" if tells_keys else ""),
                mend="such archives unpack to many times their size on purpose; do not use it",
            )
    # a member's bytes end where the next one starts; its own header does not tell how long its local header is
    ends = [*(member[0] for member in members[1:]), 1 << 62]
    marks = ("prefix",) if prefix else ()
    return [
        Found(name, size, offset, min(end - offset, extent + 2 * 65_536), detail, reason, message, marks, text)
        for (offset, extent, name, size, detail, reason, message, text), end in zip(members, ends, strict=False)
        if size or not name.endswith(b"/")
    ]


def _central_records(directory: bytes, prefix: int, address: str) -> list[_Record]:
    """Return the members in the order of the directory.

    Every signature is found at once, and where each record ends at the next one (no signature hides in a name or a
    comment) the fields are read as columns; only what is out of the usual is then looked at by itself.
    """
    starts = _signatures(directory)
    if not len(starts):
        return []
    fields = sliding_window_view(np.frombuffer(directory, np.uint8), _FIELDS.itemsize)[starts].view(_FIELDS)[:, 0]
    name_at = starts + _CENTRAL.size
    extra_at = name_at + fields["name_size"]
    ends = extra_at + fields["extra_size"] + fields["comment_size"]
    if starts[0] != 0 or (ends[:-1] != starts[1:]).any():
        return list(_walk_records(directory, prefix, address))
    names = [directory[start:end] for start, end in zip(name_at.tolist(), extra_at.tolist(), strict=True)]
    packed, method, crc = (fields[column].tolist() for column in ("packed", "method", "crc"))
    records: list[_Record] = list(
        zip(
            (fields["offset"].astype(np.int64) + prefix).tolist(),
            (fields["packed"].astype(np.int64) + fields["name_size"] + LOCAL.size).tolist(),
            names,
            fields["size"].tolist(),
            zip(packed, method, crc, strict=True),
            *(itertools.repeat("", len(names)) for _ in range(3)),
            strict=True,
        )
    )
    is_text = ((fields["flags"] & 0x800) != 0) | np.fromiter(map(bytes.isascii, names), bool, len(names))
    for place in np.flatnonzero(~(_is_usual(fields) & is_text)).tolist():
        records[place], _ = _read_record(directory, int(starts[place]), prefix, address)
    return records


def _signatures(directory: bytes) -> npt.NDArray[np.int64]:
    """Return where records could begin, as far as a whole one fits."""
    data = np.frombuffer(directory, np.uint8)
    found = np.flatnonzero(data[: max(0, len(data) - _CENTRAL.size + 1)] == b"P"[0])
    for step, byte in enumerate(b"K\1\2", start=1):
        found = found[data[found + step] == byte]
    return found


def _is_usual(fields: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which members are plain files, small and packed in a usual way: nothing need be asked about them."""
    sizes = np.stack([fields["packed"], fields["size"], fields["offset"]])
    usual: npt.NDArray[np.bool_] = (
        np.isin(fields["method"], (_STORED, _DEFLATED))
        & ((fields["flags"] & 1) == 0)
        & (fields["size"] <= RATIO_FREE_BYTES)
        & np.isin(fields["attributes"] >> 28, (0, 8))
        & (sizes != 0xFFFFFFFF).all(axis=0)
    )
    return usual


def _walk_records(directory: bytes, prefix: int, address: str) -> Iterator[_Record]:
    position = 0
    while position + _CENTRAL.size <= len(directory) and directory.startswith(b"PK\1\2", position):
        record, position = _read_record(directory, position, prefix, address)
        yield record


def _read_record(directory: bytes, position: int, prefix: int, address: str) -> tuple[_Record, int]:
    """Return one member, and where the next one's record begins."""
    fields = _CENTRAL.unpack_from(directory, position)
    _, made_by, _, flags, method, _, _, crc, packed, size, name_size, extra_size, comment_size = fields[:13]
    attributes, offset = fields[15], fields[16]
    name_at = position + _CENTRAL.size
    name = directory[name_at : name_at + name_size]
    extra = directory[name_at + name_size : name_at + name_size + extra_size]
    if 0xFFFFFFFF in (packed, size, offset):
        size, packed, offset = _zip64_values(extra, size, packed, offset, address)
    reason, message = _member_fault(flags, method, packed, size, made_by >> 8, attributes >> 16)
    is_text = bool(flags & 0x800) or name.isascii()
    text = "" if is_text or _is_utf8(name) else name.decode("cp437")
    extent, detail = LOCAL.size + name_size + packed, (packed, method, crc)
    record = (offset + prefix, extent, name, size, detail, reason, message, text)
    return record, name_at + name_size + extra_size + comment_size


def _zip64_values(extra: bytes, size: int, packed: int, offset: int, address: str) -> tuple[int, int, int]:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            body = extra[position + 4 : position + 4 + length]
            values = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            try:
                size = next(values) if size == 0xFFFFFFFF else size
                packed = next(values) if packed == 0xFFFFFFFF else packed
                offset = next(values) if offset == 0xFFFFFFFF else offset
            except StopIteration:
                break
            return size, packed, offset
        position += 4 + length
    raise _ambiguous(address, "a zip64 member lacks its sizes")


def _member_fault(flags: int, method: int, packed: int, size: int, system: int, mode: int) -> tuple[str, str]:
    kind = mode & 0xF000 if system == 3 else 0
    if kind == 0xA000:
        return "LINK", "a symbolic link; links are not followed"
    if kind not in (0, 0x8000, 0x4000):
        return "SPECIAL", "a device, pipe or socket"
    if flags & 1:
        return "ENCRYPTED", "the member is encrypted"
    if method not in METHODS:
        return "METHOD", f"packed with method {method}; stored, deflate, bzip2 and LZMA are read"
    if size > RATIO_FREE_BYTES and size > MAX_RATIO * max(1, packed):
        return "BOMB_RATIO", f"{packed:,} bytes would unpack to {size:,}"
    if size > MAX_MEMBER_BYTES:
        return "TOO_LARGE", f"{size:,} bytes are more than 64 MB"
    return "", ""


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _ambiguous(address: str, what: str) -> InputError:
    return InputError(
        f"{address} can be read in two ways (AMBIGUOUS): {what}", mend="pack it again with a common zip program"
    )
