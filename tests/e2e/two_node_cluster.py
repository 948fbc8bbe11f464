"""Ray clusters on one machine whose nodes share nothing but an S3-compatible server and an MLflow server."""

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
from dataclasses import dataclass, field
from pathlib import Path

BUCKET = "road"
SECRET = "planted-storage-secret-0451"
_SCRIPTS = Path(sys.executable).parent
_START_ATTEMPTS = 3
_NODE_WORDS = ("--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", "--num-cpus=1")


@dataclass(frozen=True)
class TwoNodes:
    """Addresses of the services, the environment of a user of them, and the folders of the nodes."""

    address: str
    s3: str
    mlflow: str
    token_path: Path
    environment: dict[str, str]
    folders: tuple[Path, Path]


@dataclass
class Family:
    """Processes that are started here and ended together; each has a home and a temporary folder of its own."""

    root: Path
    logs: Path
    stack: contextlib.ExitStack
    token_path: Path = field(init=False)
    shared: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.stack.callback(_end_leftovers, str(self.root))
        self.token_path = self.root / "token"
        self.token_path.touch(mode=0o600)
        self.token_path.write_text(secrets.token_hex(32))
        self.shared = {
            "PATH": f"{_SCRIPTS}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # other tests may fill the machine
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def start(self, name: str, words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process group."""
        home = self.root / name
        home.mkdir(exist_ok=True)
        log = self.stack.enter_context((self.logs / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            words,
            env={**self.shared, **environment, "HOME": str(home), "TMPDIR": str(home)},
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.stack.callback(stop_group, process)
        return process

    def start_node(self, name: str, words: list[str], environment: dict[str, str]) -> Path:
        """Start a Ray node of one CPU and return its folder."""
        log = self.logs / f"{name}.log"
        folder = self.root / name
        for _ in range(_START_ATTEMPTS):  # Ray gives a node 30 s to come up, which a busy machine exceeds
            whole = [str(_SCRIPTS / "ray"), "start", *words, *_NODE_WORDS, f"--temp-dir={folder}", *_agent_ports()]
            process = self.start(name, whole, environment)
            while process.poll() is None:
                if "Ray runtime started" in log.read_text():
                    return folder
                time.sleep(0.2)
        raise AssertionError(log.read_text()[-2000:])

    def start_head(self, environment: dict[str, str]) -> tuple[str, str, Path]:
        """Start a head node; return the job server's address, the head's own address, and its folder."""
        gcs, dashboard = free_port(), free_port()
        words = ["--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        folder = self.start_node("a", words, environment)
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(lambda: _answers(f"{address}/api/authentication_mode"), "the head's dashboard", 120)
        return address, f"127.0.0.1:{gcs}", folder

    def user(self, environment: dict[str, str]) -> dict[str, str]:
        """Return the environment of somebody who uses what runs here, from a home of their own."""
        home = self.root / "user"
        home.mkdir(exist_ok=True)
        whole = {**os.environ, **self.shared, **environment, "HOME": str(home)}
        whole.pop("RAY_ADDRESS", None)
        return whole


@contextlib.contextmanager
def family(logs: Path) -> Iterator[Family]:
    """Yield an empty family and end its processes afterwards."""
    # Sockets below a node's folder must fit into 107 characters, which pytest's folders do not leave.
    with tempfile.TemporaryDirectory(prefix="rn", ignore_cleanup_errors=True) as root, contextlib.ExitStack() as stack:
        yield Family(Path(root), logs, stack)


@contextlib.contextmanager
def two_nodes(logs: Path) -> Iterator[TwoNodes]:
    """Start moto's S3 server, MLflow, a head and a worker."""
    with family(logs) as processes:
        s3, mlflow = free_port(), free_port()
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
        processes.start("s3", [str(_SCRIPTS / "moto_server"), "-H", "127.0.0.1", "-p", str(s3)], {})
        wait_for(lambda: _answers(f"http://127.0.0.1:{s3}/moto-api/"), "moto's S3 server", 180)
        _put_bucket(f"http://127.0.0.1:{s3}/{BUCKET}")
        server = [str(_SCRIPTS / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1"]
        stores = [
            f"--backend-store-uri=sqlite:///{processes.root}/m.db",
            f"--artifacts-destination=s3://{BUCKET}/mlflow",
        ]
        processes.start("mlflow", [*server, *stores], storage)
        node = {**storage, **tracking}
        address, gcs, head = processes.start_head(node)
        worker = processes.start_node("b", [f"--address={gcs}"], node)
        wait_for(lambda: _answers(f"http://127.0.0.1:{mlflow}/health"), "MLflow's server", 180)
        user = processes.user(node)
        yield TwoNodes(
            address,
            storage["AWS_ENDPOINT_URL"],
            tracking["MLFLOW_TRACKING_URI"],
            processes.token_path,
            user,
            (head, worker),
        )


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(ready: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Poll until ready; fail when the time is up."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come up in {timeout_s:.0f} s"
        time.sleep(0.2)


def stop_group(process: subprocess.Popen[bytes], grace_s: float = 15.0) -> None:
    """End a process, its group, and everything below it."""
    import psutil

    try:
        members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        members = []
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=grace_s)
    for left in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait(timeout=grace_s)


def _end_leftovers(root: str) -> None:
    """End what outlived its parent: a node that fails to start leaves its processes behind."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if any(root in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _agent_ports() -> list[str]:
    """Return ports of its own for a node's agents: two nodes on one address would meet on the default ones."""
    agents = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    return [f"--{agent}-port={free_port()}" for agent in agents]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _put_bucket(url: str) -> None:
    who = "Credential=test/20200101/us-east-1/s3/aws4_request"  # moto looks for the service's name in it, no further
    authorization = f"AWS4-HMAC-SHA256 {who}, SignedHeaders=host, Signature=x"
    request = urllib.request.Request(url, method="PUT", headers={"Authorization": authorization})
    with urllib.request.urlopen(request, timeout=10):
        pass
