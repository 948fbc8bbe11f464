"""The digits preset on the real road, five times: another split and another start each time, mean accuracy on test.

Measured 2026-11-29: 98.9, 99.2, 98.9, 99.4 and 99.2%, mean 99.1% (14 minutes on two cores that many shared).

python -m pytest -m slow -s tests/e2e/test_digits_accuracy.py
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from statistics import fmean

import pytest

from pipelines import api
from pipelines.image.plain_png import encode_grey_png

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

SEEDS = range(5)
LEAST_MEAN = 0.985


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's 1,797 handwritten digits, as they are."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = tmp_path_factory.mktemp("digits") / "digits.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            file.writestr(f"{label}/{number:04d}.png", encode_grey_png((image * 255 / 16).round().astype("uint8")))
    return path


def test_the_mean_over_five_seeds_is_high(archive: Path, tmp_path: Path, ray_local: None) -> None:
    accuracies = []
    for seed in SEEDS:
        split = {"train": 0.7, "val": 0.1, "test": 0.2, "seed": seed}
        dataset = api.ingest(api.load("ingest", source=str(archive), out=str(tmp_path / f"data{seed}"), split=split))
        off = {"enabled": False}
        network = api.train(
            api.load(
                "train",
                "digits",
                dataset=dataset.out,
                out=str(tmp_path / f"train{seed}"),
                seed=seed,
                cpus_per_worker=1,  # of images this small a second thread makes nothing faster
                tracking=off,
            )
        )
        measured = api.evaluate(
            api.load(
                "evaluate", model=network.out, dataset=dataset.out, out=str(tmp_path / f"test{seed}"), tracking=off
            )
        )
        assert measured.figures["labelled_rows"] >= 355  # a fifth of 1,797, classes kept even
        accuracies.append(measured.figures["top1"])
        print(f"seed {seed}: {accuracies[-1]:.2%} of {measured.figures['labelled_rows']} right")
    print(f"mean of {len(accuracies)} seeds: {fmean(accuracies):.2%}, least {min(accuracies):.2%}")
    assert fmean(accuracies) >= LEAST_MEAN
