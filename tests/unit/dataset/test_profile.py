"""The data sheet: figures worked by hand, and a page of a dataset with planted oddities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.cli.main import run_command
from pipelines.dataset.profile import make_profile
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.ingest import stage
from pipelines.ingest.config import ImageConfig, IngestConfig
from pipelines.ingest.unit import ingest_unit


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Make dark dogs and bright cats, a long picture, a white one, and refuse dogs only."""
    root = tmp_path_factory.mktemp("profile")
    draw = np.random.default_rng(0)

    def save(key: str, pixels: np.ndarray) -> None:
        path = root / "set" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    for number in range(20):
        save(f"cat/{number:02d}.png", draw.integers(120, 250, (40, 40, 3)))
        save(f"dog/{number:02d}.png", draw.integers(0, 90, (40, 40, 3)))
    save("cat/long.png", draw.integers(120, 250, (40, 200, 3)))
    save("cat/white.png", np.full((40, 40, 3), 255))
    for number in range(12):
        (root / "set" / "dog" / f"broken{number}.jpg").write_bytes(b"\xff\xd8 cut")
    config = IngestConfig(
        source=str(root / "set"), out=str(root / "out"), max_quarantined_fraction=0.5, image=ImageConfig(size_px=32)
    )
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    return open_dataset(str(root / "out"))


def test_planted_oddities_are_found(dataset: Dataset) -> None:
    profile = make_profile(dataset)
    assert profile.telling["brightness"].share > 0.9
    assert profile.telling["format"].share == 0.0
    assert profile.formats == {"PNG": 42}
    found = {kind: [row["key"] for row in rows] for kind, (_, rows) in profile.outliers.items()}
    assert found["bright"] == ["cat/white.png"]
    assert found["one colour"] == ["cat/white.png"]
    assert found["long"] == ["cat/long.png"]
    assert found["dark"] == []
    assert profile.cropped_away == pytest.approx(0.8 / 42, abs=1e-4)  # the long one keeps a fifth
    assert sum(profile.refused.values()) == 12
    assert profile.refused_bias is not None
    assert profile.refused_bias.chance < 0.01
    assert any(warning.startswith("some classes lost more images") for warning in dataset.catalog["warnings"])
    assert profile.properties["aspect"][-1] == 5.0
    assert set(profile.by_split) == {"train", "val", "test"}


def test_the_page_says_so(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "sheet.html"
    assert run_command(["data", "sheet", dataset.uri, "--page", str(page)]) == 0
    assert f"python -m webbrowser {page}" in capsys.readouterr().out
    html = page.read_text()
    for words in (
        "brightness (0 black to 1 white) tells class cat from all others",
        "What gives the label away",
        "bright: 1 nearly white",
        "some classes lost more images than others (dog 12 of 32; chi-square, p =",
        "Splits of one source should look alike",
        "Duplicates and leaks",
        "cropped: 1 of which more than half was cut away",
        "Images per class and split",
    ):
        assert words in html
    assert "://" not in html.replace("http://www.w3.org", "")
    numbers = tmp_path / "sheet.json"
    assert run_command(["data", "sheet", dataset.uri, "--page", str(page), "--numbers", str(numbers)]) == 0
    capsys.readouterr()
    figures = json.loads(numbers.read_text())
    assert figures["rows"] == 42
    assert figures["splits"]["train"]["labels"].keys() == {"cat", "dog"}
    assert figures["look_alikes"]["images"] == 42
    assert figures["duplicates"]["policy"]["exact"] == "one_side"
    assert figures["refused_classes"] == [["NOT_IMAGE", "dog", 12]]
    assert run_command(["data", "sheet", dataset.uri, "--page", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outliers"]["long"][0] == 1
