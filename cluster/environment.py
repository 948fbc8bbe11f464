"""Which variables of this shell travel with a job: by name, in the open or hidden, never by accident."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.redact import is_secret_name, redact

OPEN_NAMES = (
    "AWS_ALLOW_HTTP",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "GOOGLE_CLOUD_PROJECT",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_TRACKING_URI",
    "RESNET_RAY_LOGS",
)
"""Variables that are passed when they are set here. A job's info and Ray's logs show them to all users of a cluster."""

HIDDEN_FILE = ".resnet-hidden.json"
"""File of the job's working folder that carries the hidden variables; only `cluster.job` reads it."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "PYTHONUNBUFFERED": "1",  # so that `jobs logs -f` shows a line when it is written
}


def split_environment(
    names: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables of a job, those that may be seen and those that must not.

    `OPEN_NAMES` are passed where they are set. A secret is passed only when its name is given, and then hidden: it is
    in no entry point, metadata or runtime environment. Clusters normally hold their own secrets.

    Args:
        names: further variables to pass.
        environment: this process's by default.

    Raises:
        ConfigError: a name was given that is not set here.
    """
    source = os.environ if environment is None else environment
    seen = dict(_QUIET)
    hidden: dict[str, str] = {}
    for name in OPEN_NAMES:
        value = source.get(name, "")
        if value:
            (hidden if redact(value) != value else seen)[name] = value  # a password inside a URL
    for name in names:
        if name not in source:
            raise ConfigError(
                f"variable {name} is to be passed to the job but is not set here",
                where="--env",
                mend=f"export {name}=..., or leave it out and set it on the cluster's nodes",
            )
        is_hidden = is_secret_name(name) or redact(source[name]) != source[name]
        (hidden if is_hidden else seen)[name] = source[name]
    return seen, hidden


def write_hidden(folder: Path, hidden: Mapping[str, str]) -> None:
    """Write the hidden variables into a job's working folder, readable by its owner alone."""
    descriptor = os.open(folder / HIDDEN_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(hidden), file)


def read_hidden(folder: Path) -> dict[str, str]:
    """Return the hidden variables that came with a job; none when there is no file."""
    path = folder / HIDDEN_FILE
    if not path.is_file():
        return {}
    values = json.loads(path.read_text())
    return {str(name): str(value) for name, value in values.items()}
