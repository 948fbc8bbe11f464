"""Evaluate a packaged network: predict every row of a split once, then figures, pictures, mistakes, catalog."""

from __future__ import annotations

import io
import logging
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.capacity import check_device
from pipelines.config.strict import output_values
from pipelines.errors import InputError
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.plan import Inputs, plan_of, resolve
from pipelines.package.resolve import REGISTRY_SCHEME
from pipelines.stage_output import Plan, StageResult, open_run, publish_catalog, read_catalog
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.evaluate.predict import Answers

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.parquet"
PAGE = "mistakes.html"


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
    from pipelines.evaluate.mistakes import worst_mistakes
    from pipelines.evaluate.predict import predict_split
    from pipelines.evaluate.record import record
    from pipelines.evaluate.report import UNSURE, make_figures, make_page
    from pipelines.evaluate.summary import summarize
    from pipelines.package.load import load_resolved
    from pipelines.package.predictor import Predictor

    dataset = open_dataset(inputs.dataset)
    loaded = load_resolved(inputs.package, config.tracking)
    predictor = Predictor(loaded, "float32", config.device)
    answers = predict_split(dataset, config.split, predictor.predict, loaded.description, batch_size=config.batch_size)
    if not answers.labelled.any():
        raise InputError(
            f"no row of split {config.split!r} in {dataset.ref} has a label: there is nothing to measure against",
            mend="evaluate on a split with labels",
        )
    leaks = find_leaks(dataset, config.split)
    if not leaks.is_sure:
        logger.warning("evaluate: %s", UNSURE)
    summary = summarize(answers, num_bins=config.num_bins, leaked=leaks.either)
    mistakes = worst_mistakes(answers, config.num_mistakes)
    figures = make_figures(summary, answers.classes)
    page = make_page(
        summary,
        figures,
        mistakes,
        stored_images(dataset, config.split, [mistake["row"] for mistake in mistakes]),
        model=inputs.package.ref,
        dataset=dataset.ref,
        split=config.split,
        is_sure=leaks.is_sure,
    )
    for name, picture in figures.items():
        out.put(f"figures/{name}.{picture.extension}", picture.data)
    out.put(PREDICTIONS, make_predictions(answers))
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
        "classes": list(answers.classes),
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


def make_predictions(answers: Answers) -> bytes:
    """Return the answers as a Parquet file, one row an image, in row order, with page checksums."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [[answers.classes[number] for number in row] for row in answers.top.tolist()]
    labels = [answers.classes[number] if number >= 0 else None for number in answers.targets.tolist()]
    labelled = answers.labelled
    table = pa.table(
        {
            "image_id": pa.array(answers.image_ids, pa.string()),
            "key": pa.array(answers.keys, pa.string()),
            "label": pa.array(labels, pa.string()),
            "predicted": pa.array([row[0] for row in names], pa.string()),
            "probability": pa.array(answers.probability, pa.float32()),
            "label_probability": pa.array(answers.label_probability, pa.float32(), mask=~labelled),
            "label_rank": pa.array(answers.ranks, pa.int32(), mask=~labelled),
            "names": pa.array(names, pa.list_(pa.string())),
            "probabilities": pa.array(answers.top_probability.tolist(), pa.list_(pa.float32())),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _result(config: EvaluateConfig, planned: Plan, catalog: dict[str, Any], *, skipped: bool) -> EvaluateResult:
    metrics = catalog["metrics"]
    shown = ["top1", "top1_low", "top1_high", "top5", "ece", "log_loss", "macro_f1", "labelled_rows"]
    if metrics.get("leaked_rows"):
        shown += ["leaked_rows", "top1_without_leaks", "top1_without_leaks_low", "top1_without_leaks_high"]
    out = Storage.open(planned.out)
    commands = [f"python -m webbrowser {shlex.quote(out.address(PAGE))}"] if out.is_local else []
    if not config.model.startswith(REGISTRY_SCHEME) and config.split not in ("train", "val"):
        model, folder = shlex.quote(config.model), shlex.quote(planned.out)
        commands.append(f"resnet models register {model} --name NAME --evaluation {folder}")
    return EvaluateResult(
        stage="evaluate",
        out=planned.out,
        key=planned.key,
        skipped=skipped,
        figures={name: metrics[name] for name in shown},
        next_commands=tuple(commands),
        split_fingerprint=str(catalog["dataset"]["split_fingerprint"]),
    )
