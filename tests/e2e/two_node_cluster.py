"""A two-node Ray cluster on one machine that shares nothing but an S3-compatible server and an MLflow server."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BUCKET = "road"
SECRET = "planted-storage-secret-0451"
_SCRIPTS = Path(sys.executable).parent
_START_ATTEMPTS = 3
_NODE_WORDS = ("--block", "--disable-usage-stats", "--node-ip-address", "127.0.0.1", "--num-cpus", "1")


@dataclass(frozen=True)
class TwoNodes:
    """Addresses of the services, the environment of a user of them, and the folders of the nodes."""

    address: str
    gcs: str
    s3: str
    mlflow: str
    token_path: Path
    environment: dict[str, str]
    folders: tuple[Path, Path]


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def two_nodes(logs: Path) -> Iterator[TwoNodes]:
    """Start moto's S3 server, MLflow, a head and a worker, one CPU each; stop them all at the end, by process group."""
    s3, mlflow, gcs, dashboard = (free_port() for _ in range(4))
    # Sockets below a node's folder must fit into 107 characters, which pytest's folders do not leave.
    with tempfile.TemporaryDirectory(prefix="rn") as root:
        token_path = Path(root, "token")
        token_path.touch(mode=0o600)
        token_path.write_text(secrets.token_hex(32))
        folders = (Path(root, "a"), Path(root, "b"))
        shared = {
            "PATH": f"{_SCRIPTS}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # other tests may fill the machine
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        storage = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test-access-key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        }
        tracking = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}"}
        with contextlib.ExitStack() as stack:
            stack.callback(_end_leftovers, root)

            def start(name: str, words: list[str], environment: dict[str, str], home: Path) -> subprocess.Popen[bytes]:
                home.mkdir(exist_ok=True)
                log = stack.enter_context((logs / f"{name}.log").open("wb"))
                process = subprocess.Popen(
                    words,
                    env={**shared, **environment, "HOME": str(home), "TMPDIR": str(home)},
                    cwd=home,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                stack.callback(stop_group, process)
                return process

            start("s3", [str(_SCRIPTS / "moto_server"), "-H", "127.0.0.1", "-p", str(s3)], {}, Path(root, "s"))
            wait_for(lambda: _answers(f"http://127.0.0.1:{s3}/moto-api/"), "moto's S3 server", None, 180)
            _put_bucket(f"http://127.0.0.1:{s3}/{BUCKET}")
            start(
                "mlflow",
                [str(_SCRIPTS / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1",
                 "--backend-store-uri", f"sqlite:///{root}/m/mlflow.db", "--artifacts-destination", f"s3://{BUCKET}/mlflow"],
                storage,
                Path(root, "m"),
            )  # fmt: skip
            node = {**storage, **tracking}
            ray = str(_SCRIPTS / "ray")
            head_words = [
                "--head",
                "--port",
                str(gcs),
                "--dashboard-host",
                "127.0.0.1",
                "--dashboard-port",
                str(dashboard),
            ]
            worker_words = ["--address", f"127.0.0.1:{gcs}"]
            for name, words, folder in (("head", head_words, folders[0]), ("worker", worker_words, folders[1])):
                for _ in range(_START_ATTEMPTS):  # Ray gives a node 30 s to come up, which a busy machine exceeds
                    whole = [ray, "start", *words, *_NODE_WORDS, "--temp-dir", str(folder), *_agent_ports()]
                    if _came_up(start(name, whole, node, folder), logs / f"{name}.log"):
                        break
                else:
                    raise AssertionError((logs / f"{name}.log").read_text()[-2000:])
            address = f"http://127.0.0.1:{dashboard}"
            wait_for(lambda: _answers(f"{address}/api/authentication_mode"), "the head's dashboard", None, 120)
            wait_for(lambda: _answers(f"http://127.0.0.1:{mlflow}/health"), "MLflow's server", None, 120)
            user = {**os.environ, **shared, **storage, **tracking, "HOME": str(Path(root, "u"))}
            Path(root, "u").mkdir()
            user.pop("RAY_ADDRESS", None)
            yield TwoNodes(
                address,
                f"127.0.0.1:{gcs}",
                storage["AWS_ENDPOINT_URL"],
                tracking["MLFLOW_TRACKING_URI"],
                token_path,
                user,
                folders,
            )


def _came_up(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Return whether a node started; False when it gave up."""
    while "Ray runtime started" not in log.read_text():
        if process.poll() is not None:
            return False
        time.sleep(0.2)
    return True


def _end_leftovers(root: str) -> None:
    """End what outlived its parent: a node that fails to start leaves its processes behind."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if any(root in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def wait_for(
    ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None, timeout_s: float = 60.0
) -> None:
    """Poll until ready; fail when the process ends or the time is up."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert process is None or process.poll() is None, f"{what} ended with {process.poll()}"
        assert time.monotonic() < deadline, f"{what} did not come up in {timeout_s:.0f} s"
        time.sleep(0.2)


def stop_group(process: subprocess.Popen[bytes], grace_s: float = 15.0) -> None:
    """End a process and everything it started that is still in its process group or below it."""
    import psutil

    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    for left in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait(timeout=grace_s)


def _agent_ports() -> list[str]:
    """Return ports of its own for a node's agents: two nodes on one address would meet on the default ones."""
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    return [f"--{name}={free_port()}" for name in names]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _put_bucket(url: str) -> None:
    authorization = (
        "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x"
    )
    request = urllib.request.Request(url, method="PUT", headers={"Authorization": authorization})
    with urllib.request.urlopen(request, timeout=10):
        pass
