"""What code travels with a job: our three packages, sources only: a cluster needs just the dependencies."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ClusterError

PACKAGES = ("pipelines", "resnet_models", "cluster")

_SHIPPED_SUFFIXES = (".py", ".yaml")  # an allow-list: data, models and secrets have other names
_SHIPPED_NAMES = ("py.typed",)
_LIMIT_BYTES = 20 << 20  # Ray's Jobs API takes 100 MiB; our sources are below 2
IGNORE_FILE = ".rayignore"


@dataclass(frozen=True)
class ShippedFile:
    """One file that travels: where it lies, and its path on the cluster's import path."""

    source: Path
    path: str


def find_packages(packages: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Return the folders that the packages are imported from.

    Raises:
        ClusterError: one cannot be found, or lies in a zip file.
    """
    folders = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin) if spec is not None and spec.origin else None
        if origin is None or not origin.parent.is_dir():
            raise ClusterError(
                f"package {name} is not installed as plain files, so it cannot be shipped",
                mend="pip install resnet-pipelines (or pip install -e .), or submit with an image that holds it",
            )
        folders[name] = origin.parent
    return folders


def list_code(folders: dict[str, Path] | None = None) -> list[ShippedFile]:
    """Return the files that would be shipped, sorted by path: sources and presets that no .rayignore excludes.

    A `.rayignore` beside or inside a package holds, as Ray's own uploads would have it.
    """
    found = []
    for name, folder in (folders or find_packages()).items():
        ignored = _ignore_patterns(folder.parent) + _ignore_patterns(folder)
        for path in sorted(_walk(folder)):
            relative = f"{name}/{path.relative_to(folder).as_posix()}"
            if not _is_ignored(relative, ignored):
                found.append(ShippedFile(path, relative))
    return found


def stage_code(target: Path, folders: dict[str, Path] | None = None) -> list[str]:
    """Copy the code into an empty folder and return the package folders there, as `py_modules` takes them.

    Raises:
        ClusterError: the code is larger than any code of ours could be.
    """
    files = list_code(folders)
    total = sum(file.source.stat().st_size for file in files)
    if total > _LIMIT_BYTES:
        largest = max(files, key=lambda file: file.source.stat().st_size)
        raise ClusterError(
            f"the code to ship is {total >> 20} MiB, more than {_LIMIT_BYTES >> 20} MiB",
            where=str(largest.source),
            mend=f"list what does not belong in {IGNORE_FILE}",
        )
    for file in files:
        destination = target / file.path
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.source, destination)
    return [str(target / name) for name in sorted({file.path.split("/", 1)[0] for file in files})]


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file() or "__pycache__" in path.parts:
            continue
        if path.suffix in _SHIPPED_SUFFIXES or path.name in _SHIPPED_NAMES:
            yield path


def _ignore_patterns(folder: Path) -> list[str]:
    file = folder / IGNORE_FILE
    if not file.is_file():
        return []
    lines = (line.strip() for line in file.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _is_ignored(path: str, patterns: list[str]) -> bool:
    if not patterns:
        return False
    from ray._private.thirdparty.pathspec import PathSpec  # Ray reads these files with it: one meaning for both

    return bool(PathSpec.from_lines("gitwildmatch", patterns).match_file(path))
