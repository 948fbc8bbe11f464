"""What an earlier release wrote is still read, and what this one writes has not changed unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate.summary import summarize
from pipelines.registry.audit import AUDIT_PREFIX, encode_record, parse_records
from pipelines.registry.gates import Standing
from pipelines.registry.plan import _read_evaluation
from pipelines.registry.tags import evaluated_standing, figure_tags, tagged_standing
from tests.unit.evaluate.test_evaluate_predict import answers_of

GOLDEN = Path(__file__).parents[2] / "golden" / "formats"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def test_an_evaluation_of_format_1_can_be_registered(tmp_path: Path) -> None:
    (tmp_path / "_catalog.json").write_bytes((GOLDEN / "evaluate-catalog.v1.json").read_bytes())
    catalog, uri = _read_evaluation(str(tmp_path))
    assert uri == str(tmp_path)
    standing = evaluated_standing("1", catalog)
    assert standing == Standing("1", 3, 4, "5f" * 32)
    assert tagged_standing("1", figure_tags(catalog, uri)) == standing


def test_audit_records_of_format_1_are_read() -> None:
    values = golden("audit-record.v1.json")
    (record,) = parse_records({f"{AUDIT_PREFIX}{values['record_id']}": json.dumps(values)})
    assert record.to_json() == values
    assert json.loads(encode_record(record)) == values
    # A newer release may have added fields.
    newer = parse_records({record.tag: json.dumps(values | {"added_later": 1})})
    assert newer == [record]


def test_figures_in_tags_of_format_1_are_read() -> None:
    tags = golden("version-tags.v1.json")
    assert tagged_standing("7", tags) == Standing("7", 3, 4, "5f" * 32)
    assert tagged_standing("7", {}) is None
    assert tagged_standing("7", {"resnet.test": "{}"}) is None


def test_output_of_evaluate_changes_only_with_its_version() -> None:
    """When this fails and the change is meant, raise OUTPUT_VERSION in evaluate/plan.py and record the sample anew."""
    answers = answers_of([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.9, 0.06, 0.04], [0.1, 0.2, 0.7]], [0, 1, 2, 2])
    summary = summarize(answers, num_bins=10)
    catalog = golden("evaluate-catalog.v1.json")
    assert summary.metrics == {name: pytest.approx(value, abs=1e-6) for name, value in catalog["metrics"].items()}
    assert summary.confusion == catalog["confusion"]
    for written, expected in zip(summary.per_class, catalog["per_class"], strict=True):
        label = expected.pop("label")
        assert written.pop("label") == label
        assert written == pytest.approx(expected, abs=1e-6)
    for bins, expected in zip(summary.reliability, catalog["reliability"], strict=True):
        assert bins == pytest.approx(expected, abs=1e-6)
