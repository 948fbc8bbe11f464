"""Tar headers (POSIX pax, GNU) read forward from a stream: types, long names, sparse files, damage; no extraction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

BLOCK = 512
MAX_HEADER_BYTES = 2**20
"""Long names and pax records above this are damage, not names."""


class TarStream(Protocol):
    """Bytes that are read forward; `size` is None where the end is not known beforehand."""

    position: int
    size: int | None

    def read(self, length: int) -> bytes:
        """Return the next bytes, fewer only at the end."""

    def skip_to(self, position: int) -> int:
        """Go forward; return the position reached, which is lower where the data ends before."""


class TarMember(NamedTuple):
    """One member; or, with `is_fault`, the damage that ends the archive.

    A fault bears the name and offset of the member it is in, which may have been yielded already, else no name.
    """

    name: bytes
    size: int
    offset: int
    reason: str = ""
    message: str = ""
    is_fault: bool = False
    modified: int = 0
    """Microseconds since 1970; 0 where the header says none."""


class _Damage(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


_KINDS = {
    b"1": ("LINK", "a hard link; links are not followed"),
    b"2": ("LINK", "a symbolic link; links are not followed"),
    b"3": ("SPECIAL", "a character device"),
    b"4": ("SPECIAL", "a block device"),
    b"6": ("SPECIAL", "a pipe"),
}


def walk_tar(stream: TarStream) -> Iterator[TarMember]:
    """Yield every member; while one is yielded the stream stands at its data. Damage is yielded last and ends it."""
    name, start = b"", 0
    try:
        pending: dict[bytes, bytes] = {}
        while (header := _read_header(stream)) is not None:
            kind = header[156:157]
            size = _number(header[124:136])
            if kind in (b"L", b"K", b"x", b"g"):
                body = _read_body(stream, size)
                if kind == b"L":
                    pending[b"path"] = body.rstrip(b"\0")
                elif kind == b"x":
                    pending.update(_pax_records(body))
                continue
            name = pending.get(b"path", _short_name(header))
            size = int(pending[b"size"]) if pending.get(b"size", b"").isdigit() else size
            modified = _time(pending.get(b"mtime", b""), header[136:148])
            is_sparse = kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in pending)
            pending = {}
            if kind == b"5" or (kind in (b"0", b"\0") and name.endswith(b"/")) or kind == b"V":
                continue
            if kind in _KINDS:
                yield TarMember(name, 0, stream.position, *_KINDS[kind])
                continue
            if kind == b"S":
                _skip_sparse_map(stream, header)
            start = stream.position
            if stream.size is not None and start + size > stream.size:
                raise _Damage("ARCHIVE_TRUNCATED", f"the archive ends inside this member of {size:,} bytes")
            sparse = (
                ("SPARSE", "a sparse file, which would unpack to more bytes than it has") if is_sparse else ("", "")
            )
            yield TarMember(name, size, start, *sparse, modified=modified)
            if stream.skip_to(start + -(-size // BLOCK) * BLOCK) < start + size:
                raise _Damage("ARCHIVE_TRUNCATED", f"the archive ends inside this member of {size:,} bytes")
            name = b""
    except _Damage as damage:
        yield TarMember(name, 0, start if name else stream.position, damage.reason, damage.message, is_fault=True)


def _read_header(stream: TarStream) -> bytes | None:
    """Return the next header block; None at the end of the archive."""
    block = stream.read(BLOCK)
    if not block or block == bytes(BLOCK):
        return None
    if len(block) < BLOCK:
        raise _Damage("ARCHIVE_TRUNCATED", "the archive ends inside a header")
    stated = block[148:156].strip(b" \0")
    rest = block[:148] + b" " * 8 + block[156:]
    signed = sum(rest) - 256 * sum(byte > 127 for byte in rest)  # some old writers summed signed characters
    try:
        is_right = int(stated or b"0", 8) in (sum(rest), signed)
    except ValueError:
        is_right = False
    if not is_right:
        raise _Damage("ARCHIVE_CORRUPT", f"the header at byte {stream.position - BLOCK:,} has a wrong checksum")
    return block


def _number(field: bytes) -> int:
    """Read a size: octal text, or GNU's base 256 when the top bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else int.from_bytes(field[1:], "big")
    else:
        try:
            value = int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            value = -1
    if value < 0 or value > 1 << 60:
        raise _Damage("ARCHIVE_CORRUPT", "a member's size is no possible size")
    return value


def _time(record: bytes, field: bytes) -> int:
    """Return the microseconds in a pax record, else in the header's field of octal seconds; 0 for what is neither."""
    try:
        return round(float(record) * 1e6) if record else int(field.strip(b" \0") or b"0", 8) * 1_000_000
    except (ValueError, OverflowError):
        return 0


def _read_body(stream: TarStream, size: int) -> bytes:
    if size > MAX_HEADER_BYTES:
        raise _Damage("ARCHIVE_CORRUPT", f"an extended header of {size:,} bytes")
    end = stream.position + -(-size // BLOCK) * BLOCK
    body = stream.read(size)
    if len(body) < size:
        raise _Damage("ARCHIVE_TRUNCATED", "the archive ends inside an extended header")
    stream.skip_to(end)
    return body


def _pax_records(body: bytes) -> dict[bytes, bytes]:
    """Read records of the form `LENGTH KEY=VALUE`; what follows an unreadable one is left out."""
    records = {}
    position = 0
    while position < len(body):
        digits, space, _ = body[position : position + 20].partition(b" ")
        if not space or not digits.isdigit() or int(digits) < 5:
            break
        key, equals, value = body[position + len(digits) + 1 : position + int(digits) - 1].partition(b"=")
        if equals:
            records[key] = value
        position += int(digits)
    return records


def _short_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _skip_sparse_map(stream: TarStream, header: bytes) -> None:
    has_more = header[482] != 0
    while has_more:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise _Damage("ARCHIVE_TRUNCATED", "the archive ends inside a sparse map")
        has_more = block[504] != 0
