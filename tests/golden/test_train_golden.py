"""What training writes stays readable, and what it computes stays the same until OUTPUT_VERSION says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.storage import Storage
from pipelines.train.checkpoint import load_checkpoint
from pipelines.train.loop import fit_local
from pipelines.train.plan import OUTPUT_VERSION
from pipelines.train.records import EpochRecord
from pipelines.train.state import Best, Cursor, EpochSums, read_cursor
from pipelines.train.step_log import StepLog
from tests.unit.train.tiny import make_config, write_dataset

GOLDEN = Path(__file__).parent


def test_a_checkpoint_of_the_first_format_is_read(tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    for file in (GOLDEN / "formats" / "train-checkpoint.v1").iterdir():
        run.put(f"checkpoints/step-00000014/{file.name}", file.read_bytes())
    checkpoint = load_checkpoint(run, 14)
    assert checkpoint.files["weights.safetensors"] == b"stands for weights\n"
    cursor = read_cursor(checkpoint)
    assert cursor == Cursor(
        epoch=3,
        batch=2,
        step=14,
        elapsed_s=cursor.elapsed_s,
        sums=EpochSums(loss=12.5, right=30.0, rows=40.0, train_s=1.5, wait_s=0.25, trace=0xF000000000000001),
        best=Best(epoch=cursor.best.epoch, step=cursor.best.step, val_score=1.0, val_loss=cursor.best.val_loss),
        steps=StepLog(first=15),  # it knows of none before
    )


def test_a_record_of_the_first_format_is_read() -> None:
    values = json.loads((GOLDEN / "formats" / "train-record.v1.json").read_text())
    record = EpochRecord.from_json(values)
    assert record.epoch == 2
    assert record.to_json() == values


def test_a_recorded_run_comes_out_the_same(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "train_run.json").read_text())
    config = make_config(
        write_dataset(tmp_path / "dataset"),
        epochs=5,
        ema_decay=0.9,
        augment={"shift_px": 1, "flip": True, "cutout_px": 2, "mixup_alpha": 0.2},
        label_smoothing=0.1,
    )
    outcome = fit_local(config, Storage.open(tmp_path / "run"), device="cpu")
    for record, expected in zip(outcome.records, golden["records"], strict=True):
        for name, value in expected.items():
            ours = getattr(record, name)
            if isinstance(value, float):  # other CPUs round otherwise, and 20 steps let that grow
                assert ours == pytest.approx(value, rel=2e-3, abs=0.05 if name.endswith("top1") else 0), name
            else:
                assert ours == value, name
    assert golden["output_version"] == OUTPUT_VERSION, (
        "training computes something new: raise OUTPUT_VERSION, record again"
    )
