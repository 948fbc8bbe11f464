"""By what a run was made: the version of the code, of Python and of the packages that compute, and the platform.

It is that of the driver, the process of the command: workers on other machines may have another platform.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.errors import NotFound
from pipelines.storage import Storage
from pipelines.train.versioned import parse_versioned

_LOGGER = logging.getLogger(__name__)

PATH = "environment.json"
FORMAT_VERSION = 1
_OURS = "resnet-pipelines"
_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy", "pyarrow", "opencv-python-headless", "simplejpeg")
_CODE = ("pipelines/*.py", "pipelines/*.yaml", "resnet_models/*.py", "cluster/*.py")
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
    """Keep this process's environment, the driver's, with the run that it begins to train.

    A run that is gone on with has that of the command that trained last.
    """
    run.put(PATH, json.dumps(describe_environment(), indent=1).encode())


def read_environment(run: Storage) -> dict[str, Any] | None:
    """Return what `write_environment` kept; None of a run by an earlier release, or said, where it is no use."""
    try:
        data = run.read(PATH)
    except NotFound:
        return None
    try:
        environment = parse_versioned(data, FORMAT_VERSION)
        environment_tags(environment)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        _LOGGER.warning("%s is left out of what MLflow is told: %s", run.address(PATH), error)
        return None
    return environment


def environment_tags(environment: dict[str, Any]) -> dict[str, str]:
    """Return the tags of an MLflow run that say so; the commit under the name that MLflow's pages look for."""
    code, packages = environment["code"], environment["packages"]
    tags = {"mlflow.source.name": "resnet train", "mlflow.source.type": "LOCAL", "resnet.version": code["version"]}
    if "commit" in code:
        tags["mlflow.source.git.commit"] = code["commit"]
    if "changed" in code:
        tags["resnet.code_changed"] = str(code["changed"]).lower()
    tags |= {"python": environment["python"], "platform": environment["platform"]}
    return tags | {name: packages[name] for name in ("torch", "ray") if name in packages}


def _describe_code(root: Path) -> dict[str, Any]:
    """Return the installed version and, in a git checkout, the commit and, where git tells, `changed`.

    Changed is a checkout in which a file differs from the commit, or code is not in it.
    """
    code: dict[str, Any] = {"version": _version(_OURS) or "unknown"}
    if not (root / ".git").exists():  # a file in a worktree
        return code
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return code
    code["commit"] = commit
    differing = _git(root, "status", "--porcelain", "--untracked-files=no")
    added = _git(root, "ls-files", "--others", "--exclude-standard", "--", *_CODE)
    if differing or added:
        return {**code, "changed": True}
    return code if None in (differing, added) else {**code, "changed": False}


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
