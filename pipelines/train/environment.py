"""By what a run was made: the version of the code, of Python and of the packages that compute, and the platform."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.errors import NotFound
from pipelines.storage import Storage

PATH = "environment.json"
FORMAT_VERSION = 1
_OURS = "resnet-pipelines"
_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy", "pyarrow", "opencv-python-headless", "simplejpeg")
_GIT_S = 10.0


def describe_environment() -> dict[str, Any]:
    """Return this process's environment as JSON values: nothing of who or where, no variable, no address."""
    return {
        "format_version": FORMAT_VERSION,
        "code": _describe_code(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def write_environment(run: Storage) -> None:
    """Keep the environment with the run; one that is gone on with has that of the command that did so last."""
    run.put(PATH, json.dumps(describe_environment(), indent=1).encode())


def read_environment(run: Storage) -> dict[str, Any] | None:
    """Return what `write_environment` kept, or None of a run by an earlier release."""
    try:
        environment: dict[str, Any] = json.loads(run.read(PATH))
    except NotFound:
        return None
    return environment


def environment_tags(environment: dict[str, Any]) -> dict[str, str]:
    """Return the tags of an MLflow run that say so; the commit under the name that MLflow's pages look for."""
    code, packages = environment["code"], environment["packages"]
    tags = {"mlflow.source.name": "resnet train", "mlflow.source.type": "LOCAL", "resnet.version": code["version"]}
    if "commit" in code:
        tags |= {"mlflow.source.git.commit": code["commit"], "resnet.code_changed": str(code["changed"]).lower()}
    tags |= {"python": environment["python"], "platform": environment["platform"]}
    return tags | {name: packages[name] for name in ("torch", "ray") if name in packages}


def _describe_code(root: Path) -> dict[str, Any]:
    """Return the installed version and, in a git checkout, the commit and whether files differ from it."""
    code: dict[str, Any] = {"version": _version(_OURS) or "unknown"}
    if not (root / ".git").exists():  # a file in a worktree
        return code
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return code
    return {**code, "commit": commit, "changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}


def _git(root: Path, *words: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    # Run from a hook of another repository, git's own variables would name that one.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(  # noqa: S603 our words
            command, capture_output=True, text=True, timeout=_GIT_S, check=True, env=variables
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or a checkout that is not ours to read
        return None
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
