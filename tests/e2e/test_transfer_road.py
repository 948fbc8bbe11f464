"""Weights from elsewhere, imported once, start a training: one line each, and their licence stays with what follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.cli.main import run_command
from tests.factories import write_class_folder

pytestmark = pytest.mark.e2e


def done(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Run a command that must succeed; return what it printed as JSON."""
    code = run_command([*words, "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return dict(json.loads(shown.out))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_local")
def test_import_then_train_from_it(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    torch.save(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).state_dict(), workspace / "w.pth")
    write_class_folder(workspace / "photos", {"cat": 12, "dog": 12, "owl": 12}, size=40)
    quick = ["epochs=1", "global_batch_size=12", "use_gpu=false", "tracking.enabled=false", "optimizer.lr=0.01"]

    assert run_command(["train", "photos", *quick, "init.from=w.pth"]) == 2
    assert "resnet models import w.pth --arch NAME --licence LICENCE" in capsys.readouterr().err

    imported = done(
        capsys, "models", "import", "w.pth", "depths=[1,1,1,1]", "--arch", "resnet18", "--licence", "CC-BY-NC-4.0",
        "--source", "https://example.org/w", "--out", "start",
    )  # fmt: skip
    assert imported["names"] == "torchvision"

    words = ["train", "photos", *quick, "init.from=start", "init.freeze_until=stage4", "--out", "run"]
    trained = done(capsys, *words)
    assert trained["figures"]["started_from"].endswith("head new: 10 classes there, 3 here")
    began = load_file(workspace / "start" / "weights.safetensors")
    ended = load_file(workspace / "run" / "model" / "weights.safetensors")
    moved = {
        ".".join(name.split(".")[:2])
        for name in ended
        if ended[name].shape != began[name].shape or not torch.equal(ended[name], began[name])
    }
    assert moved == {"stages.3", "head.weight", "head.bias"}
    description = json.loads((workspace / "run" / "model" / "model.json").read_text())
    assert description["origin"]["licence"] == "CC-BY-NC-4.0"
    assert json.loads((workspace / "run" / "_catalog.json").read_text())["init"]["source"] == "https://example.org/w"

    assert done(capsys, *words)["skipped"]
