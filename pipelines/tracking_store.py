"""Which MLflow store runs and models go to, and how it is opened safely."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.errors import ConfigError, RegistryError
from pipelines.redact import redact
from pipelines.tracking_answers import MEND, NotMlflowError, foreign_answer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_SQLITE = "sqlite:///"
_DATABASES = ("postgresql", "mysql", "mssql")
_UNRESERVED = re.compile(r"[^A-Za-z0-9._-]+")


class TrackingConfig(StrictModel):
    """Where runs and models are recorded."""

    uri: str = runtime_field("")
    """MLflow store: `http(s)://host:port` or `sqlite:///file`; empty takes MLFLOW_TRACKING_URI, else runs/mlflow.db."""
    experiment: str = runtime_field("resnet-pipelines")
    """Name of the MLflow experiment that runs are put under; created when missing."""
    enabled: bool = runtime_field(True)
    """False records nothing in MLflow; results in the output folders are the same."""


def safe_environment() -> None:
    """Set the MLflow switches this project relies on, before MLflow is imported.

    Unpickling and the recording of environment variables are turned off whatever the caller's environment says;
    telemetry and retries only where nothing is said.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING"] = "false"
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # The defaults wait about four minutes a call when a server is away.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)


def resolve_uri(tracking: TrackingConfig) -> str:
    """Return the absolute address of the MLflow store, creating the folder of a SQLite one.

    Order: `tracking.uri`, the variable MLFLOW_TRACKING_URI, `runs/mlflow.db` under the working directory.

    Raises:
        ConfigError: the address is a plain folder, an in-memory database, or holds a password in the config.
        RegistryError: the folder of a SQLite store cannot be made.
    """
    safe_environment()
    if tracking.uri and urlsplit(tracking.uri).password:
        raise ConfigError(
            f"tracking.uri holds a password: {redact(tracking.uri)}; configs are stored with the outputs",
            mend="export MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, instead",
        )
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or f"{_SQLITE}{Path.cwd() / 'runs' / 'mlflow.db'}"
    where = "tracking.uri" if tracking.uri else "MLFLOW_TRACKING_URI"
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return uri.rstrip("/")
    if scheme == "sqlite":
        name = uri.removeprefix(_SQLITE)
        if not uri.startswith(_SQLITE) or name in ("", ":memory:"):
            raise ConfigError(
                f"{where} is {uri}, a database without a file",
                where=where,
                mend=f"name a file, for example {_SQLITE}runs/mlflow.db",
            )
        path = Path(name).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _fault(uri, error) from error
        return f"{_SQLITE}{path}"
    if scheme.partition("+")[0] in _DATABASES or scheme == "databricks" or uri == "databricks":
        return uri
    raise ConfigError(
        f"{where} is {redact(uri)}; MLflow no longer keeps runs in plain folders",
        where=where,
        mend=f"give a server (http://host:5000) or a database file ({_SQLITE}runs/mlflow.db)",
    )


def is_server(uri: str) -> bool:
    """Return whether a store is a server, which has pages of its own; the others are databases."""
    return uri.startswith(("http://", "https://"))


def browser_address(uri: str) -> str:
    """Return a server's address as it is shown and opened: without a password, for which the browser asks."""
    parts = urlsplit(uri)
    return redact(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))


def refuse_local_store(uri: str, num_nodes: int) -> None:
    """Refuse a SQLite store for a job that spans nodes.

    Raises:
        ConfigError: `uri` is a database file and `num_nodes` is more than one.
    """
    if num_nodes > 1 and uri.startswith("sqlite:"):
        raise ConfigError(
            f"the MLflow store {uri} is a file on one machine, and this job spans {num_nodes} nodes",
            where="tracking.uri",
            mend="start a server (mlflow server) and give tracking.uri=http://HOST:5000, or tracking.enabled=false",
        )


def open_client(uri: str) -> MlflowClient:
    """Return a client of the store at `uri` (as `resolve_uri` gives it); a new SQLite store is created whole first.

    Raises:
        RegistryError: the store cannot be opened.
    """
    safe_environment()
    from mlflow import MlflowClient

    for name in ("mlflow.store.db.utils", "mlflow.store.model_registry", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # migrations, waiting for versions
    try:
        if uri.startswith(_SQLITE):
            _create_database(Path(uri.removeprefix(_SQLITE).partition("?")[0]))
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:  # the boundary to MLflow: database drivers and migrations raise types of their own
        raise _fault(uri, error) from error


@contextlib.contextmanager
def store_faults(uri: str) -> Iterator[None]:
    """Turn what MLflow and the network raise while the store at `uri` is asked into RegistryError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, NotMlflowError, OSError) as error:
        raise _fault(uri, error) from error


def _fault(uri: str, error: Exception) -> RegistryError:
    text = redact(str(error)).strip() or type(error).__name__
    mend = "check that the store is there and answers, or give another tracking.uri"
    if answer := foreign_answer(error):
        text, mend = f"the address answers, but not as MLflow does: {answer}", MEND
    if "out-of-date database schema" in text:  # said of a newer one too
        text = text.partition(". ")[0]
        command = f"mlflow db upgrade {shlex.quote(redact(uri))}"
        mend = f"copy the database, then: {command}; if it was made by a newer MLflow, install that"
    return RegistryError(f"the MLflow store cannot be used: {text.splitlines()[0][:300]}", where=redact(uri), mend=mend)


@contextlib.contextmanager
def process_wide(uri: str) -> Iterator[None]:
    """Make `uri` the store that MLflow's own code falls back to; what stood before comes back afterwards.

    A SQL registry looks a model's files up through a client without an address, whatever the caller's address is.
    """
    safe_environment()
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")  # MLflow keeps it equal to what was set in the process
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # None unsets


def _create_database(path: Path) -> None:
    """Create a database file with MLflow's tables unless it stands.

    MLflow migrates a new file in place for two seconds, without a lock: a second process in that time breaks both,
    and a kill leaves a file that is refused for ever. So one process at a time makes it under another name.
    """
    if path.exists():
        path.open("rb").close()  # MLflow tries for two minutes to open what cannot be opened
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        draft = path.with_name(f".{path.name}.draft")
        for leftover in (draft, draft.with_name(f"{draft.name}-journal")):
            leftover.unlink(missing_ok=True)  # of a process that was killed; the lock says nobody else is at it
        MlflowClient(tracking_uri=f"{_SQLITE}{draft}").search_experiments(max_results=1)
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    finally:
        os.close(lock)


def find_active_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run that is there and not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def open_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of the experiment `name`, creating it when missing; safe when two processes do so at once.

    Artifacts of a SQLite store go to `mlartifacts` beside the database, by absolute address: MLflow's default is
    relative to whatever the working directory happens to be.

    Raises:
        ConfigError: the experiment was deleted in the MLflow UI.
        NotMlflowError: another service answers.
    """
    from mlflow.exceptions import MlflowException

    location = None
    if uri.startswith(_SQLITE):
        folder = Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts" / (_UNRESERVED.sub("-", name) or "experiment")
        location = folder.as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found is not None and not found.experiment_id:
        raise NotMlflowError("an experiment without an id")
    if found is None or found.lifecycle_stage != "active":
        raise ConfigError(
            f"the MLflow experiment {name!r} was deleted",
            where="tracking.experiment",
            mend="restore it (mlflow experiments restore) or give another tracking.experiment",
        )
    return str(found.experiment_id)
