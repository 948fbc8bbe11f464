"""What a terminal sees besides results: our own log lines, and of Ray, MLflow and torch only what matters."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Literal

_FOREIGN = ("ray", "mlflow", "alembic", "urllib3", "git", "botocore", "matplotlib", "fsspec", "sqlalchemy")
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "TQDM_DISABLE": "1",
}

Level = Literal["quiet", "normal", "verbose"]


def configure(level: Level) -> None:
    """Set up logging, warnings and the switches that Ray and MLflow read when they are imported later."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if level != "verbose":
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        # By module, so that a warning out of our own packages is still seen.
        for package in (*_FOREIGN, "torch", "pydantic", "google", "starlette"):
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    ours = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}[level]
    for name in ("pipelines", "resnet_models", "cluster"):
        logging.getLogger(name).setLevel(ours)
    for name in _FOREIGN:
        logging.getLogger(name).setLevel(logging.INFO if level == "verbose" else logging.ERROR)


class _Formatter(logging.Formatter):
    """A plain line for our own news; the level and the logger's name where something is wrong or foreign."""

    def format(self, record: logging.LogRecord) -> str:
        from pipelines.cli.render import clean_lines

        message = clean_lines(super().format(record))
        is_ours = record.name.split(".")[0] in ("pipelines", "resnet_models", "cluster")
        if record.levelno <= logging.INFO and is_ours:
            return message
        return f"{record.levelname.lower()}: {message}" if is_ours else f"{record.name}: {message}"
