"""The tags by which our versions are found and judged; the only place that knows their names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.metrics.deciding import find_deciding
from pipelines.package.describe import DESCRIPTION_TAG, WEIGHTS_TAG
from pipelines.registry.gates import Standing
from pipelines.registry.plan import Inputs

PACKAGE_TAG = "resnet.package"
"""Hash of what decides a package's answers: one version for each, however often it is registered."""
FILES_TAG = "resnet.files"
"""JSON: SHA-256 of every file of the version, by path."""
TEST_TAG = "resnet.test"
"""JSON: the figures that gates read, in one tag so that they change together."""


def package_tags(inputs: Inputs, files: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version that never change.

    Args:
        inputs: the registration's inputs.
        files: SHA-256 of every file, by path.
    """
    dataset = inputs.description["dataset"]
    best = {**inputs.description["metrics"], **inputs.training.get("best", {})}
    deciding = find_deciding(best, "val_")
    tags = {
        PACKAGE_TAG: inputs.digest,
        WEIGHTS_TAG: str(inputs.description["weights_sha256"]),
        DESCRIPTION_TAG: files["artifacts/model.json"],
        FILES_TAG: json.dumps(files, sort_keys=True),
        "resnet.train_key": str(inputs.description["train_key"]),
        "resnet.dataset": f"{dataset.get('uri', '')}@v{dataset.get('version', '')}",
        "resnet.dataset_fingerprint": str(dataset.get("fingerprint", "")),
        f"resnet.{deciding}": _figure(best.get(deciding)),
        "resnet.classes": str(len(inputs.description["classes"])),
    }
    return {name: value for name, value in tags.items() if value}


def figure_tags(evaluation: Mapping[str, Any], uri: str) -> dict[str, str]:
    """Return the tags that say how a version did on the evaluated rows.

    Args:
        evaluation: an evaluation's catalog.
        uri: its folder.
    """
    metrics, dataset = evaluation["metrics"], evaluation["dataset"]
    figures = {
        "rows": dataset["split_fingerprint"],
        "correct": metrics["correct_rows"],
        "total": metrics["labelled_rows"],
        "split": dataset["split"],
        "evaluation": uri,
        "key": evaluation["key"],
    }
    deciding = find_deciding(metrics)
    if deciding != "top1":
        figures |= {"metric": deciding, "score": metrics[deciding]}
    return {TEST_TAG: json.dumps(figures, sort_keys=True), f"resnet.test_{deciding}": _figure(metrics[deciding])}


def evaluated_standing(version: str, evaluation: Mapping[str, Any]) -> Standing:
    """Return a version's standing from an evaluation's catalog."""
    metrics = evaluation["metrics"]
    deciding = find_deciding(metrics)
    return Standing(
        version,
        int(metrics["correct_rows"]),
        int(metrics["labelled_rows"]),
        str(evaluation["dataset"]["split_fingerprint"]),
        deciding,
        0.0 if deciding == "top1" else float(metrics[deciding]),
    )


def tagged_standing(version: str, tags: Mapping[str, str]) -> Standing | None:
    """Return a version's standing from its tags; None where they say nothing that can be used."""
    try:
        figures = json.loads(tags[TEST_TAG])
        decided = str(figures.get("metric", "top1")), float(figures.get("score", 0.0))
        return Standing(version, int(figures["correct"]), int(figures["total"]), str(figures["rows"]), *decided)
    except (KeyError, ValueError, TypeError):
        return None


def _figure(value: object) -> str:
    return f"{float(value):.6f}" if isinstance(value, (int, float)) else ""
