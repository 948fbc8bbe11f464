"""What demo-data, tune and evaluate make of fixed input. When one changes on purpose, raise its OUTPUT_VERSION too."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config.load import load_config
from pipelines.evaluate import plan as evaluate_plan
from pipelines.evaluate.predict import Answers
from pipelines.evaluate.summary import summarize
from pipelines.ingest.config import IngestConfig
from pipelines.runner import demo
from pipelines.tune import plan as tune_plan
from pipelines.tune.config import TuneConfig
from pipelines.tune.search import Asha
from pipelines.tune.space import make_trials

GOLDEN = Path(__file__).with_name("stage_outputs.json")


def demo_data() -> dict[str, Any]:
    members, planted = demo.make_members(demo.demo_config(IngestConfig(source="demo:digits")))
    digest = hashlib.sha256(demo.make_zip(members)).hexdigest()
    return {"output_version": demo.OUTPUT_VERSION, "sha256": digest, "planted": asdict(planted)}


def tune() -> dict[str, Any]:
    """Return the points that a sweep tries, and which trials its scheduler ends, on made-up curves."""
    config = load_config(
        TuneConfig,
        inputs={
            "train": {"dataset": "nowhere", "model": {"stem": "cifar"}},
            "space": {
                "model.depth": {"choice": [8, 14]},
                "model.width": {"uniform": [0.5, 2.0]},
                "optimizer.lr": {"loguniform": [0.03, 0.3]},
                "augment.shift_px": {"integer": [0, 3]},
            },
            "num_trials": 6,
        },
    )
    trials = make_trials(config, image_size_px=32, num_classes=10)
    asha = Asha(grace_epochs=1, reduction_factor=3, max_epochs=9)
    figures = [0.5, 0.4, 0.6, 0.55, 0.3, 0.7]
    ended = [
        [str(number), epoch]
        for epoch in (1, 3)
        for number, figure in enumerate(figures)
        if asha.should_stop(str(number), epoch, figure + 0.1 * epoch)
    ]
    return {
        "output_version": tune_plan.OUTPUT_VERSION,
        "params": [trial.params for trial in trials],
        "ended": ended,
    }


def evaluate() -> dict[str, Any]:
    """Return the figures of twelve answers, probabilities in eighths: exact in float32 whatever the machine."""
    number = np.arange(12)
    top = np.stack([number % 3, (number + 1) % 3, (number + 2) % 3], axis=1)
    targets = np.where(number == 11, -1, number * number % 3)
    ranks = np.where(targets < 0, 0, 1 + (top == targets[:, None]).argmax(axis=1))
    probability = np.stack([4 + number % 4, 7 - number % 4 - 4 + 1, np.zeros(12)], axis=1).astype(np.float32) / 8
    own = np.where(targets < 0, np.nan, np.take_along_axis(probability, np.maximum(ranks - 1, 0)[:, None], 1)[:, 0])
    answers = Answers(
        classes=("a", "b", "c"),
        image_ids=[f"{each:032x}" for each in number],
        keys=[f"{each}.png" for each in number],
        targets=targets,
        ranks=ranks,
        label_probability=own.astype(np.float32),
        top=top,
        top_probability=probability,
    )
    summary = summarize(answers, num_bins=4, leaked=number % 4 == 3)
    rounded = json.loads(json.dumps(asdict(summary)), parse_float=lambda text: round(float(text), 9))
    return {"output_version": evaluate_plan.OUTPUT_VERSION, **rounded}


def test_outputs_on_fixed_input_are_unchanged() -> None:
    found = {"demo-data": demo_data(), "tune": tune(), "evaluate": evaluate()}
    standing = json.loads(GOLDEN.read_text())
    for stage, made in found.items():
        assert made == standing[stage], f"if this is meant, write {GOLDEN.name} anew: {json.dumps(found)}"
