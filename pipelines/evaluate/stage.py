"""Evaluate a packaged network: predict every row of a split once, then figures, pictures, mistakes, catalog."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from typing import Any

from pipelines.capacity import check_device
from pipelines.config.strict import output_values
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.plan import Inputs, plan_of, resolve
from pipelines.package.resolve import REGISTRY_SCHEME
from pipelines.stage_output import Plan, StageResult, open_run, publish_catalog, read_catalog
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"
PAGE = "mistakes.html"
_SHOWN = (
    *("top1", "top1_low", "top1_high", "top5", "map", "exact", "ece", "log_loss", "macro_f1", "micro_f1"),
    "labelled_rows",
)
_SHOWN_OF_LEAKS = (
    *("leaked_rows", "top1_without_leaks", "top1_without_leaks_low", "top1_without_leaks_high", "map_without_leaks"),
)


@dataclass(frozen=True)
class EvaluateResult(StageResult):
    """A finished evaluation; `figures` holds the metrics."""

    split_fingerprint: str = ""
    """Fingerprint of the rows that were measured."""


def run(config: EvaluateConfig) -> EvaluateResult:
    """Measure the model on the split and publish figures, pictures, predictions and the page of mistakes.

    Raises:
        ConfigError: the device is not there.
        InputError: model and dataset cannot be evaluated together, or the folder holds something else.
        DataError: a stored image or shard is damaged.
    """
    inputs = resolve(config)
    planned = plan_of(config, inputs)
    out = Storage.open(planned.out)
    standing = read_catalog(out)
    if standing is not None and standing.get("key") == planned.key:
        return _result(config, planned, standing, skipped=True)
    check_device(config.device)
    open_run(out, "evaluate", planned.key, {})
    catalog = publish_catalog(out, _evaluate(config, inputs, planned, out))
    return _result(config, planned, catalog, skipped=False)


def _evaluate(config: EvaluateConfig, inputs: Inputs, planned: Plan, out: Storage) -> dict[str, Any]:
    from pipelines.dataset.leaks import find_leaks
    from pipelines.dataset.reader import open_dataset
    from pipelines.dataset.stored_images import stored_images
    from pipelines.evaluate.measure import measure
    from pipelines.evaluate.record import record
    from pipelines.evaluate.report import UNSURE, make_figures, make_page
    from pipelines.evaluate.views import averaging, make_views
    from pipelines.package.load import load_resolved
    from pipelines.package.predictor import Predictor

    dataset = open_dataset(inputs.dataset)
    loaded = load_resolved(inputs.package, config.tracking)
    predictor = Predictor(loaded, "float32", config.device)
    leaks = find_leaks(dataset, config.split)
    if not leaks.is_sure:
        logger.warning("evaluate: %s", UNSURE)
    views = make_views(flip=config.views.flip, shift_px=config.views.shift_px)
    found = measure(dataset, config, averaging(predictor.predict, views), loaded.description, leaks.either)
    summary, mistakes = found.summary, found.mistakes
    figures = make_figures(summary, found.classes)
    page = make_page(
        summary,
        figures,
        mistakes,
        stored_images(dataset, config.split, [mistake["row"] for mistake in mistakes]),
        model=inputs.package.ref,
        dataset=dataset.ref,
        split=config.split,
        is_sure=leaks.is_sure,
        num_views=len(views),
    )
    for name, picture in figures.items():
        out.put(f"figures/{name}.{picture.extension}", picture.data)
    out.put(PREDICTIONS, found.predictions)
    out.put(PAGE, page)
    return {
        "stage": "evaluate",
        "key": planned.key,
        "inputs": planned.inputs,
        "model": {"ref": inputs.package.uri, "weights_sha256": loaded.weights_sha256},
        "dataset": {
            "uri": dataset.uri,
            "version": dataset.version,
            "fingerprint": dataset.fingerprint,
            "split": config.split,
            "split_fingerprint": inputs.split_fingerprint,
        },
        "classes": list(found.classes),
        **({"views": [str(view) for view in views]} if len(views) > 1 else {}),
        "metrics": summary.metrics,
        **({} if leaks.is_sure else {"warnings": [UNSURE]}),
        "per_class": summary.per_class,
        "confusion": summary.confusion,
        "reliability": summary.reliability,
        "mistakes": mistakes,
        "predictions": PREDICTIONS,
        "page": PAGE,
        "mlflow_run_id": record(config, inputs, summary.metrics, figures, page),
        "config": output_values(config),
    }


def _result(config: EvaluateConfig, planned: Plan, catalog: dict[str, Any], *, skipped: bool) -> EvaluateResult:
    metrics = catalog["metrics"]
    shown = list(_SHOWN)
    if metrics.get("leaked_rows"):
        shown += _SHOWN_OF_LEAKS
    out = Storage.open(planned.out)
    commands = [f"python -m webbrowser {shlex.quote(out.address(PAGE))}"] if out.is_local else []
    is_ground = config.split not in ("train", "val") and not config.views.is_on
    if is_ground and not config.model.startswith(REGISTRY_SCHEME):
        model, folder = shlex.quote(config.model), shlex.quote(planned.out)
        commands.append(f"resnet models register {model} --name NAME --evaluation {folder}")
    return EvaluateResult(
        stage="evaluate",
        out=planned.out,
        key=planned.key,
        skipped=skipped,
        figures={name: metrics[name] for name in shown if name in metrics},
        next_commands=tuple(commands),
        split_fingerprint=str(catalog["dataset"]["split_fingerprint"]),
    )
