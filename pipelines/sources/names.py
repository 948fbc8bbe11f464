"""What a member's name says: whether it is safe, whether an image is meant, its label and its given split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import compress
from operator import not_

MAX_NAME_BYTES = 1_024

SYSTEM_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini", "ehthumbs.db", ".localized"})
SIDE_NAMES = frozenset({"readme", "license", "licence", "copying", "notice", "changelog", "makefile", "dockerfile"})
SIDE_EXTENSIONS = frozenset({
    "txt", "md", "rst", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "toml", "ini", "cfg", "html", "htm",
    "css", "js", "py", "ipynb", "sh", "log", "pdf", "doc", "docx", "xls", "xlsx", "npy", "npz", "mat", "pkl",
    "pickle", "pt", "pth", "h5", "cls", "parquet", "arrow", "db", "sqlite", "lock", "sha256", "md5", "asc", "sig",
})  # fmt: skip
ARCHIVE_EXTENSIONS = frozenset({"zip", "tar", "tgz", "gz", "bz2", "xz", "zst", "7z", "rar"})

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


_PLAIN = re.compile(
    rb"(?:(?!__macosx/)[\w -]+/)*(?!(?:%b)\.)[\w -]+\.(?:jpe?g|png)" % "|".join(sorted(SIDE_NAMES)).encode(),
    re.ASCII | re.IGNORECASE,
)


def is_plain(key_bytes: bytes) -> bool:
    """Return whether a member's name is one of the many with which nothing is the matter.

    It is that of an image, safe, short and ASCII; asking each of these alone takes five times as long.
    """
    return len(key_bytes) <= MAX_NAME_BYTES and _PLAIN.fullmatch(key_bytes) is not None


def ignored_as(key: str) -> str:
    """Return as what a member is left out and counted ("system files", ".txt files"), or "" if an image is meant.

    Names without or with an unknown extension are taken: their bytes decide.
    """
    name = _last_part(key).lower()
    if ("__MACOSX" in key and "__MACOSX" in path_parts(key)) or name in SYSTEM_NAMES or name.startswith("._"):
        return "system files"
    if name.startswith("."):
        return "hidden files"
    stem, dot, extension = name.rpartition(".")
    if dot and extension in SIDE_EXTENSIONS:
        return f".{extension} files"
    return "documents" if (stem if dot else name) in SIDE_NAMES else ""


def name_fault(key_bytes: bytes) -> tuple[str, str]:
    """Return (reason, message) when a member's name must not be used, else two empty texts."""
    if len(key_bytes) > MAX_NAME_BYTES:
        return "NAME_LONG", f"the name has {len(key_bytes):,} bytes; {MAX_NAME_BYTES:,} are allowed"
    path = key_bytes.replace(b"\\", b"/")
    is_absolute = not path or path.startswith(b"/") or (path[1:2] == b":" and path[2:3] in (b"", b"/"))
    if is_absolute or (b".." in path and b".." in path.split(b"/")) or b"\0" in path:
        return "UNSAFE_NAME", "the name leads out of the archive; nothing is ever written there, and it is not read"
    name = path[path.rfind(b"/") + 1 :]
    extension = name[name.rfind(b".") + 1 :].lower() if b"." in name else b""
    if extension.decode("latin-1") in ARCHIVE_EXTENSIONS:
        return "NESTED", "an archive this deep inside the source is not opened; give it as a source of its own"
    return "", ""


def readable_key(key_bytes: bytes) -> tuple[str, bool]:
    r"""Return a name as text, and whether it had to be escaped because it is not UTF-8.

    An escaped name keeps its bytes: other bytes become `\xNN`, and each backslash is doubled.
    """
    try:
        return key_bytes.decode(), False
    except UnicodeDecodeError:
        return key_bytes.replace(b"\\", b"\\\\").decode(errors="backslashreplace"), True


def escaped_bytes(key: str) -> bytes:
    """Return the bytes behind an escaped name; the inverse of `readable_key` for names that are not UTF-8."""
    return re.sub(rb"\\(\\|x[0-9a-f]{2})", _unescape, key.encode())


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match.group(1)
    return code if code == b"\\" else bytes.fromhex(code[1:].decode())


def path_parts(key: str) -> list[str]:
    """Return a key's components without empty ones and dots; backslashes part too, as some Windows tools write."""
    return [part for part in key.replace("\\", "/").split("/") if part not in ("", ".")]


def _last_part(key: str) -> str:
    name = key[max(key.rfind("/"), key.rfind("\\")) + 1 :]
    if name not in ("", "."):
        return name
    return next(iter(reversed(path_parts(key))), "")


def labels_and_splits(
    keys: Sequence[str], is_refused: Sequence[bool] | None = None
) -> list[tuple[str | None, str | None]]:
    """Return (label, given split) per key; the label is the parent folder's name.

    Folders named train, val and test above the class folders count as splits only when every key has one, since
    "train" may as well be a class. An image right inside a split folder, or in no folder, has no label.

    Args:
        keys: the members' keys.
        is_refused: which of them will not be read anyway; those have no say in what a folder means.
    """
    parents = _folders(keys)
    voting = set(parents) if is_refused is None else {*compress(parents, map(not_, is_refused))}
    positions = {folders: _split_position(folders) for folders in set(parents)}
    has_splits = bool(voting) and all(positions[folders] is not None for folders in voting)
    # judged once a folder, however many images are in it
    said = {folders: _said_by(folders, at if has_splits else None) for folders, at in positions.items()}
    return [said[folders] for folders in parents]


def _said_by(folders: Sequence[str], position: int | None) -> tuple[str | None, str | None]:
    if position is None:
        return (folders[-1] if folders else None, None)
    return (folders[-1] if position < len(folders) - 1 else None, SPLIT_WORDS[folders[position].lower()])


def outside_splits(keys: Sequence[str]) -> str:
    """Return the first key that keeps split folders from counting as splits, or "".

    Only where at least two different splits stand among the folders: one such folder may as well be a class.
    """
    folders = _folders(keys)
    positions = [_split_position(parts) for parts in folders]
    found = {SPLIT_WORDS[parts[at].lower()] for parts, at in zip(folders, positions, strict=True) if at is not None}
    if len(found) < 2:
        return ""
    return next((key for key, at in zip(keys, positions, strict=True) if at is None), "")


def _folders(keys: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the folders above each key; keys of one folder share them, since a listing may hold millions."""
    known: dict[str, tuple[str, ...]] = {}
    found = []
    for key in keys:
        cut = max(key.rfind("/"), key.rfind("\\")) + 1
        if key[cut:] in ("", "."):
            found.append(tuple(path_parts(key)[:-1]))
            continue
        folder = key[:cut]
        if folder not in known:
            known[folder] = tuple(path_parts(folder))
        found.append(known[folder])
    return found


def _split_position(folders: Sequence[str]) -> int | None:
    return next((i for i, part in enumerate(folders) if part.lower() in SPLIT_WORDS), None)
