"""Whether this machine, its storage and a cluster are fit for the stages, and what to mend where not."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pipelines.errors import AlreadyExists, PipelineError

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found and, where it is not well, what to do."""

    name: str
    status: Status
    found: str
    cure: str = ""


# Lowest versions without the known holes of each package (CVE numbers in .github/SECURITY.md).
_SAFE_VERSIONS = {
    "ray": (2, 56),
    "mlflow": (3, 17),
    "torch": (2, 10),
    "pillow": (12, 3),
    "pyarrow": (14, 0, 1),
}
# Python's own archive readers were mended in these.
_SAFE_PYTHON = {(3, 11): 17, (3, 12): 15, (3, 13): 16}

# A file by which each of our packages is known; a job's packages lie in folders of their own.
_MARKS = {"pipelines": "stage_output.py", "resnet_models": "spec.py", "cluster": "doctor.py"}

_UNSAFE_SWITCHES = (
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION",
)
_UNSAFE_PREFIX = "RAY_DATA_AUTOLOAD_"
_FALSE = ("", "0", "false", "no", "off")
_MIN_SHM_BYTES = 512 << 20
_MIN_DISK_BYTES = 5 << 30
_PORTS = {5000: "MLflow's server", 8265: "Ray's dashboard and jobs", 6379: "a Ray head node"}


def check_all(*, address: str = "", storage: str = "") -> list[Check]:
    """Run every check that applies; none of them raises.

    Args:
        address: a cluster's job server; empty: no cluster is looked at.
        storage: address of a place to write to; empty: the working directory.
    """
    checks = [
        check_python(),
        *check_versions(),
        check_environment(os.environ),
        check_packages(),
        check_torch(),
        check_cpus(),
        check_shared_memory(),
        check_disk(Path.cwd()),
        *check_ports(),
        check_storage(storage or str(Path.cwd() / "runs")),
    ]
    if address:
        checks += check_cluster(address)
    return checks


def check_python(info: tuple[int, int, int] | None = None) -> Check:
    """Warn of a Python whose tar and zip readers have known holes."""
    major, minor, micro = info or (sys.version_info.major, sys.version_info.minor, sys.version_info.micro)
    found = f"{major}.{minor}.{micro}"
    least = _SAFE_PYTHON.get((major, minor))
    if least is None:
        return Check("python", "warn", f"{found}, not among the tested 3.11 to 3.13", "use Python 3.11, 3.12 or 3.13")
    if micro < least:
        return Check(
            "python",
            "warn",
            f"{found}, whose archive readers have known holes (CVE-2024-0450, CVE-2025-8194, CVE-2026-82049)",
            f"upgrade to {major}.{minor}.{least} or later; our own archive checks hold meanwhile",
        )
    return Check("python", "ok", found)


def check_versions(installed: Callable[[str], str] = version) -> list[Check]:
    """Refuse package versions with known holes that we cannot close ourselves."""
    checks = []
    for name, least in _SAFE_VERSIONS.items():
        wanted = ".".join(map(str, least))
        try:
            found = installed(name)
        except PackageNotFoundError:
            checks.append(Check(name, "fail", "not installed", f"pip install '{name}>={wanted}'"))
            continue
        if _numbers(found) < least:
            checks.append(Check(name, "fail", f"{found} has known holes", f"pip install '{name}>={wanted}'"))
        else:
            checks.append(Check(name, "ok", found))
    return checks


def check_environment(environment: Mapping[str, str]) -> Check:
    """Refuse switches that open what Ray and MLflow keep shut."""
    on = [
        name
        for name, value in environment.items()
        if (name in _UNSAFE_SWITCHES or name.startswith(_UNSAFE_PREFIX)) and value.strip().lower() not in _FALSE
    ]
    if on:
        return Check("environment", "fail", f"unsafe switches are on: {', '.join(sorted(on))}", f"unset {' '.join(on)}")
    return Check("environment", "ok", "no unsafe switches")


def check_packages() -> Check:
    """Look for other packages that would be imported in place of ours; the names are ordinary words."""
    for name, mark in _MARKS.items():
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            return Check("packages", "fail", f"package {name} is not importable", "pip install resnet-pipelines")
        folder = Path(spec.origin).resolve().parent
        if not (folder / mark).is_file():
            return Check(
                "packages",
                "fail",
                f"{name} is imported from {folder}, which is not ours: something shadows it",
                f"remove {folder} from the import path, or run from another folder",
            )
    return Check("packages", "ok", "pipelines, resnet_models and cluster are ours")


def check_torch() -> Check:
    """Compare torch's build with the GPU that is there, so that no run is silently on the CPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"cannot be imported: {str(error).splitlines()[0]}", "reinstall torch")
    driver = _driver_version()
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Check("gpu", "ok", f"torch {torch.__version__} uses {names}")
    if driver:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU build"
        return Check(
            "gpu",
            "fail",
            f"an NVIDIA driver {driver} is loaded, and torch {torch.__version__} ({build}) can use no GPU:"
            " every run would be on the CPU",
            "install the torch build that fits the driver (pytorch.org/get-started), or update the driver",
        )
    if torch.backends.mps.is_available():
        return Check("gpu", "ok", f"torch {torch.__version__} uses Apple's MPS")
    return Check("gpu", "ok", f"none here; torch {torch.__version__} uses the CPU")


def check_cpus() -> Check:
    """Say how many CPUs this process may use."""
    from pipelines.capacity import available_cpus

    usable, present = available_cpus(), os.cpu_count() or 1
    note = f" of {present}" if usable < present else ""
    return Check("cpus", "ok", f"{usable}{note} usable")


def check_shared_memory(path: str = "/dev/shm") -> Check:  # noqa: S108 - Ray's object store lies there
    """Look whether Ray's object store has room; containers give 64 MB by default."""
    if not os.path.isdir(path):
        return Check("shared memory", "ok", f"no {path}; Ray uses the temporary folder")
    free = shutil.disk_usage(path).free
    if free < _MIN_SHM_BYTES:
        return Check(
            "shared memory",
            "warn",
            f"{free >> 20} MB free in {path}; Ray falls back to disk and slows down",
            "docker run --shm-size=4g, or shm_size in compose",
        )
    return Check("shared memory", "ok", f"{free >> 20} MB free in {path}")


def check_disk(folder: Path) -> Check:
    """Look whether there is room for outputs."""
    free = shutil.disk_usage(folder).free
    if free < _MIN_DISK_BYTES:
        return Check("disk", "warn", f"{free / 2**30:.1f} GB free in {folder}", "free some, or give an --out elsewhere")
    return Check("disk", "ok", f"{free / 2**30:.0f} GB free in {folder}")


def check_ports() -> list[Check]:
    """Tell of the usual ports which are taken; only starting a service there would fail."""
    checks = []
    for port, purpose in _PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(0.3)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        found = f"in use ({purpose}, or something else)" if taken else f"free for {purpose}"
        checks.append(Check(f"port {port}", "ok", found))
    return checks


def check_storage(uri: str) -> Check:
    """Write, read and delete a small object, and see that creating it twice is refused: publishing rests on that."""
    from pipelines.storage import Storage

    path = f"_work/doctor-{secrets.token_hex(6)}"
    was_there = "://" in uri or Path(uri).exists()
    cure = "check the address, the credentials in the environment (AWS_*) and AWS_ENDPOINT_URL"
    try:
        store = Storage.open(uri)
        try:
            store.create(path, b"first")
            try:
                store.create(path, b"second")
            except AlreadyExists:
                if store.read(path) == b"first":
                    return Check("storage", "ok", f"{store.uri}: written and read; a second create is refused")
            return Check(
                "storage",
                "fail",
                f"{store.uri} lets a second writer replace an object that was to be created once",
                "use a store with conditional writes (If-None-Match): here a run can replace another's catalog",
            )
        finally:
            with contextlib.suppress(PipelineError):  # the answer is what matters, not whether it could be tidied up
                store.delete(path)
            if not was_there:
                _remove_empty(Path(store.uri))
    except PipelineError as error:
        return Check("storage", "fail", error.what, error.mend or cure)


def check_cluster(address: str) -> list[Check]:
    """Ask a cluster's job server who it is, and compare its Ray with ours."""
    from cluster.client import is_loopback, probe

    try:
        facts = probe(address)
    except PipelineError as error:
        return [Check("cluster", "fail", error.what, error.mend)]
    checks = [Check("cluster", "ok", f"{facts.address} answers")]
    if facts.needs_token:
        checks.append(Check("cluster token", "ok", "asked for, and ours is there"))
    else:
        checks.append(
            Check(
                "cluster token",
                "warn" if is_loopback(facts.address) else "fail",
                "none is asked for: whoever reaches the address can run code there (CVE-2023-48022)",
                "start every node with RAY_AUTH_MODE=token and the same token file",
            )
        )
    ours = version("ray")
    if facts.ray_version != ours:
        cure = f"pip install 'ray[default]=={facts.ray_version}' here, or upgrade the cluster"
        checks.append(Check("cluster ray", "fail", f"runs Ray {facts.ray_version}, this machine {ours}", cure))
    else:
        checks.append(Check("cluster ray", "ok", f"Ray {ours}, as here"))
    return checks


def worst(checks: list[Check]) -> Status:
    """Return the gravest status."""
    found = {check.status for check in checks}
    return "fail" if "fail" in found else "warn" if "warn" in found else "ok"


def _remove_empty(root: Path) -> None:
    """Remove the folders that the probe made; one that meanwhile holds something stays."""
    for folder in (root / "_work" / "tmp", root / "_work", root):
        try:
            folder.rmdir()
        except OSError:
            return


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: 2.14.1+cu130 -> (2, 14, 1)."""
    numbers = []
    for part in text.split("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not digits or not part[0].isdigit():
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _driver_version() -> str:
    """Return the version of a loaded NVIDIA driver, or an empty text."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "unknown")
