"""The only place that connects to Ray: a cluster when one is named, else an embedded one on this machine."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.capacity import available_cpus
from pipelines.config.strict import StrictModel, runtime_field
from pipelines.errors import ClusterError, ConfigError
from pipelines.redact import is_secret_name, redact

logger = logging.getLogger(__name__)

_PASSED_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "MLFLOW_", "RESNET_")

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A report waits for the controller's next poll, 2 s apart by default: short epochs are ruled by it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # Train would move a worker's working directory, and relative paths with it.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}

_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


class RayConfig(StrictModel):
    """Where stages run."""

    address: str = runtime_field("")
    """Address of a running Ray cluster, for example `auto`; empty: RAY_ADDRESS if set, else an embedded cluster."""
    num_cpus: int = runtime_field(0, ge=0)
    """CPUs of the embedded cluster; 0: all of this machine."""


@dataclass(frozen=True)
class RaySession:
    """What the connected cluster has: CPUs and GPUs in all, nodes, and the CPUs of each node."""

    num_cpus: float
    num_gpus: float
    num_nodes: int
    node_cpus: tuple[float, ...] = ()


@contextlib.contextmanager
def ray_session(config: RayConfig | None = None, *, imports: Sequence[str] = ()) -> Iterator[RaySession]:
    """Connect to Ray for a stage and leave things as they were found.

    A session inside another one shares it, so that a pipeline pays for Ray's start once. The embedded cluster has
    no dashboard and no metrics collection: together they cost about 12% of a small machine.

    Args:
        config: where to connect.
        imports: modules that will be wanted, imported while Ray's processes come up.

    Raises:
        ConfigError: workers would import other code than this.
        ClusterError: the named cluster does not answer.
    """
    settings = config or RayConfig()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = settings.address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
    import ray

    if ray.is_initialized():
        yield _describe()
        return
    _refuse_namesakes(Path.cwd())
    with _results_stream_kept(), contextlib.nullcontext() if address else _unwatched():
        try:
            handler = signal.getsignal(signal.SIGTERM)
            importing = threading.Thread(target=_import, args=(imports,), name="imports", daemon=True)
            importing.start()
            _connect(address, settings)
            importing.join()
            _give_back_sigterm(handler)
            yield _describe()
        finally:
            ray.shutdown()


def _refuse_namesakes(folder: Path) -> None:
    """Refuse to start in a folder with packages of our names: Ray has its workers look there before anywhere else."""
    for ours in (Path(__file__).parent, *(Path(__file__).parents[1] / name for name in ("resnet_models", "cluster"))):
        for there in (folder / ours.name / "__init__.py", folder / f"{ours.name}.py"):
            if there.is_file() and not there.parent.samefile(ours):
                raise ConfigError(
                    f"{there} has the name of a part of this program, and Ray's workers would import it instead",
                    mend="give the command in another folder, with absolute paths",
                )


def _import(names: Sequence[str]) -> None:
    """Import modules; whoever uses one that is not there is told then."""
    with contextlib.suppress(ImportError):
        for name in names:
            importlib.import_module(name)


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Have Ray Train not watch for drained nodes: a process more for each training, and the only node never is one.

    Only for an embedded cluster of our own; the one that is connected next may be a real one.
    """
    if _WATCHER in os.environ:
        yield
        return
    os.environ[_WATCHER] = "0"
    try:
        yield
    finally:
        os.environ.pop(_WATCHER, None)


@contextlib.contextmanager
def _results_stream_kept() -> Iterator[None]:
    """Send what Ray prints (when a worker dies, say) to standard error: standard output belongs to results."""
    before, meanwhile = sys.stdout, sys.stderr
    sys.stdout = meanwhile
    try:
        yield
    finally:
        if sys.stdout is meanwhile:  # else somebody, a test runner for one, has put another stream there since
            sys.stdout = before


def worker_environment() -> dict[str, str]:
    """Return the environment that workers on other machines need: storage, tracking and quiet settings.

    Workers of an embedded cluster inherit the driver's environment as it is. Secrets are not in it: see
    `_make_secrets_hook`.
    """
    passed = {name: value for name, value in _passed().items() if not _is_secret(name, value)}
    return {**_QUIET, **passed}


def _passed() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED_PREFIXES)}


def _is_secret(name: str, value: str) -> bool:
    return is_secret_name(name) or redact(value) != value


def _make_secrets_hook() -> dict[str, Callable[[], None]]:
    """Return the part of a runtime environment that gives workers the driver's secrets; empty where it has none.

    Ray writes `env_vars` into its logs and shows them on its dashboard. A hook travels as a function in the head's
    memory, and only the workers of this job run it.
    """
    values = {name: value for name, value in _passed().items() if _is_secret(name, value)}
    if not values:
        return {}

    def set_secrets() -> None:
        os.environ.update(values)

    return {"worker_process_setup_hook": set_secrets}


def _give_back_sigterm(handler: Any) -> None:
    """Put back whoever handled SIGTERM before Ray.

    Ray's own handlers print C++ frames and end the process at once, so that nobody could say how to go on.
    """
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _connect(address: str, settings: RayConfig) -> None:
    import ray

    common = {
        "logging_level": logging.ERROR,
        "log_to_driver": os.environ.get("RESNET_RAY_LOGS", "") == "1",
    }
    try:
        if address:
            environment = {"env_vars": _not_in_job(worker_environment()), **_make_secrets_hook()}
            ray.init(address=address, runtime_env=environment, **common)
        else:
            _start(settings, common)
    except Exception as error:  # the boundary to Ray: a node that starts too slowly is a bare Exception there
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(
            f"cannot start or reach Ray at {address or 'this machine'}: {first}",
            mend="check the address and RAY_AUTH_MODE=token with its token, or run `resnet doctor`",
        ) from error


def _start(settings: RayConfig, common: dict[str, Any]) -> None:
    """Start an embedded cluster; Ray gives a node 30 s to come up, which a busy machine may exceed once."""
    import ray

    options = {"num_cpus": settings.num_cpus or available_cpus(), "include_dashboard": False, **common}
    try:
        ray.init(address="local", **options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        logger.warning("Ray did not come up in time; starting it once more")
        ray.shutdown()
        ray.init(address="local", **options)


def _not_in_job(environment: dict[str, str]) -> dict[str, str]:
    """Leave out what a submitted job's own runtime environment sets: Ray refuses a variable named in both."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    standing = job.get("runtime_env", {}).get("env_vars", {})
    return {name: value for name, value in environment.items() if name not in standing}


def _describe() -> RaySession:
    import ray

    resources = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    node_cpus = tuple(float(node["Resources"].get("CPU", 0.0)) for node in nodes)
    return RaySession(resources.get("CPU", 0.0), resources.get("GPU", 0.0), len(nodes), node_cpus)
