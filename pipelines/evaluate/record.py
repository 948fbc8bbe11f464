"""Adds an evaluation's figures to the MLflow run that made the model, where that run is known."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pipelines.errors import ConfigError, RegistryError
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.plan import Inputs
from pipelines.package.resolve import REGISTRY_SCHEME
from pipelines.plots.picture import Picture
from pipelines.stage_output import mlflow_run_of, read_catalog
from pipelines.storage import Storage
from pipelines.tracking import RunLog, open_client, resolve_uri, store_faults

_LOGGER = logging.getLogger(__name__)


def run_of_model(config: EvaluateConfig, inputs: Inputs) -> str:
    """Return the id of the MLflow run that made the model; empty when nothing says so."""
    if inputs.package.uri.startswith(REGISTRY_SCHEME):
        store = resolve_uri(config.tracking)
        client = open_client(store)
        with store_faults(store):
            return str(client.get_model_version(inputs.package.name, inputs.package.version).run_id or "")
    folder = Storage.open(config.model)
    return mlflow_run_of(folder, read_catalog(folder) or {})


def record(
    config: EvaluateConfig,
    inputs: Inputs,
    metrics: Mapping[str, float | int],
    figures: Mapping[str, Picture],
    page: bytes,
) -> str:
    """Add figures, pictures and the page to the model's run; return its id, empty when nothing was recorded.

    A store that cannot be used is told and no error: the evaluation is finished, and its folder holds everything.
    """
    try:
        run_id = run_of_model(config, inputs) if config.tracking.enabled else ""
        if run_id:
            _add(run_id, config, inputs, metrics, figures, page)
    except (ConfigError, RegistryError) as error:
        _LOGGER.warning("the figures were not added to the model's MLflow run: %s", error.what)
        return ""
    return run_id


def _add(
    run_id: str,
    config: EvaluateConfig,
    inputs: Inputs,
    metrics: Mapping[str, float | int],
    figures: Mapping[str, Picture],
    page: bytes,
) -> None:
    # Under a name of their own: they are not what the package answers.
    split = f"{config.split}_averaged" if config.views.is_on else config.split
    with RunLog.open(config.tracking, run_name=f"evaluate {split}", run_id=run_id, attach=True) as log:
        log.log_tags({f"resnet.{split}_rows": inputs.split_fingerprint})  # which rows the figures are of
        log.log_dataset(
            inputs.dataset.rpartition("/")[2], inputs.dataset, inputs.split_fingerprint, f"evaluate {split}"
        )
        log.log_metrics({f"{split}_{name}": float(value) for name, value in metrics.items()}, step=0)
        for name, picture in figures.items():
            log.log_file(f"evaluate/{split}/{name}.{picture.extension}", picture.data)
        log.log_file(f"evaluate/{split}/mistakes.html", page)
