"""From an address to the source behind it, or to a sentence that says why there is none."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipelines.errors import InputError
from pipelines.image.sniff import FORMAT_BY_EXTENSION
from pipelines.sources.addresses import TORCHVISION, default_name, split_pattern
from pipelines.sources.archives import ArchivesSource
from pipelines.sources.base import Source
from pipelines.sources.byte_stream import PACKED_MAGICS
from pipelines.sources.columns import Columns
from pipelines.sources.folder import FolderSource
from pipelines.sources.idx import IdxSource, is_idx
from pipelines.sources.names import ARCHIVE_EXTENSIONS, ignored_as
from pipelines.sources.nested import NestedSource
from pipelines.sources.tar import TarSource
from pipelines.sources.zip import ZipSource
from pipelines.storage import Storage

PARQUET = ".parquet"
TABLE_EXTENSIONS = ("csv", "tsv", "json", "jsonl", "xlsx", "xls")
KINDS = (
    "a folder of class folders (SOURCE/<class>/<image>), a .zip, a .tar (.gz, .bz2, .xz, .zst), Parquet,"
    " or a folder of archives"
)


def open_source(uri: str, name: str = "", *, columns: Columns | None = None) -> Source:
    """Return the source at a local path, an object store's address, a pattern over one, or `torchvision:NAME`.

    Its name is the last part of the path (`addresses.default_name`). `columns` says where images and labels are in
    Parquet, if that has to be said. Only the first bytes are read; `listing()` reads the rest.

    Raises:
        InputError: there is nothing, or nothing that images are read from.
    """
    address = uri.rstrip("/")
    if not address:
        raise InputError(f"source {uri!r} names no folder or archive", mend=f"give {KINDS}")
    if address.startswith(TORCHVISION):
        from pipelines.sources.torchvision_sets import open_set

        return open_set(address, name)
    pattern = split_pattern(address)
    if pattern is not None:
        folder = FolderSource(Storage.open(pattern.base), name or default_name(address), pattern)
        if not folder.files():
            raise InputError(
                f"nothing matches {folder.uri}", mend="quote the pattern, so that the shell leaves it alone"
            )
        return _open_folder(folder, uri, columns or Columns())
    whole = Storage.open(address)
    parent, _, last = whole.uri.rpartition("/")
    has_parent = bool(last) and not parent.endswith("/")  # s3://bucket alone is a folder
    if has_parent:
        storage = Storage.open(parent or "/")
        size = storage.size(last)
        if size is not None:
            source = _open_file(storage, last, size, name or last, columns or Columns())
            return NestedSource(source, open_inner) if isinstance(source, (ZipSource, TarSource)) else source
    folder = FolderSource(whole, name or last)
    if not folder.files():
        raise _missing(uri, whole)
    return _open_folder(folder, uri, columns or Columns())


def _open_folder(folder: FolderSource, uri: str, columns: Columns) -> Source:
    """Return the source behind the files of a folder: images, archives, IDX files or Parquet."""
    whole = folder.storage
    if any(file.path.startswith("_versions/") for file in folder.files()):
        raise InputError(
            f"{whole.uri} is a dataset or predictions of resnet-pipelines, not a source of images",
            mend=f"use it as it is (resnet train {uri}), or write its images out: resnet data export {uri}",
        )
    numbers = [file for file in folder.files() if is_idx(file.path)]
    if numbers and all(is_idx(file.path) or ignored_as(file.path) for file in folder.files()):
        return IdxSource(whole, numbers, folder.name)
    packed = [file for file in folder.files() if _is_archive(file.path)]
    if packed and all(ignored_as(file.path) or _is_archive(file.path) for file in folder.files()):
        archives = [(file.path, _open_file(whole, file.path, file.size, file.path, columns)) for file in packed]
        return ArchivesSource(folder.uri, folder.name, archives)
    tables = [file for file in folder.files() if file.path.lower().endswith(PARQUET)]
    if tables and all(ignored_as(file.path) for file in folder.files()):
        from pipelines.sources.parquet import ParquetSource  # pyarrow, which no other source needs

        return ParquetSource(whole, folder.uri, tables, folder.name, columns)
    return NestedSource(folder, open_inner) if packed else folder


def open_inner(storage: Storage, path: str, size: int) -> Source:
    """Return the archive that lies inside another, at a path of a storage that holds it alone."""
    source = _open_file(storage, path, size, path, Columns())
    if not isinstance(source, (ZipSource, TarSource)):
        raise InputError(f"{storage.address(path)} is no archive of images")
    return source


def _open_file(storage: Storage, path: str, size: int, name: str, columns: Columns) -> Source:
    address = storage.address(path)
    if size == 0:
        raise InputError(f"{address} is empty (0 bytes)", mend=f"give {KINDS}")
    head = storage.read(path, 0, min(size, 512))
    suffix = PurePosixPath(path).suffix.lower().lstrip(".")
    if head[:4] in (b"PK\3\4", b"PK\5\6", b"PK\7\x08") or suffix == "zip":
        return ZipSource(storage, path, name)
    for magic in PACKED_MAGICS:
        if head.startswith(magic):
            return TarSource(storage, path, name, magic)
    if head[257:262] == b"ustar" or suffix == "tar":
        return TarSource(storage, path, name)
    if path.lower().endswith(PARQUET):
        from pipelines.sources.parquet import ParquetSource

        file = storage.stat(path)
        assert file is not None
        return ParquetSource(storage, address, [file], name, columns)
    if suffix in TABLE_EXTENSIONS:
        raise InputError(
            f"{address} is a table (.{suffix}), and a place that holds the images themselves is needed",
            mend=f"give {KINDS}; a table of labels is given beside it: labels=PATH",
        )
    if suffix in FORMAT_BY_EXTENSION:
        raise InputError(f"{address} is a single image", mend=f"give the folder that it is in: {storage.uri}")
    raise InputError(f"{address} is neither a folder nor an archive that is read", mend=f"give {KINDS}")


def _is_archive(path: str) -> bool:
    return path.lower().rpartition(".")[2] in ARCHIVE_EXTENSIONS


def _missing(uri: str, storage: Storage) -> InputError:
    if storage.is_local and _is_folder(storage.uri):
        return InputError(f"no images in {uri}; it is empty", mend=f"give {KINDS}")
    return InputError(f"source {uri} does not exist", where=storage.uri, mend="check the path; it is taken from here")


def _is_folder(path: str) -> bool:
    from pathlib import Path

    return Path(path).is_dir()
