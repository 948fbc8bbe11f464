"""The mosaic shows what the network was given, and says what was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.reader import open_dataset
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry
from pipelines.plots.contact_sheet import mosaic
from pipelines.storage import Storage
from pipelines.train import pictures
from pipelines.train.loop import fit_local
from tests.unit.train.seen import training_inputs
from tests.unit.train.tiny import make_config, write_dataset


def drawn(dataset: str, run: Storage, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[list[Any], list[str]]:
    """Train an epoch, draw, and hold the images that are drawn against those that the network was given."""
    config = make_config(dataset, epochs=2, global_batch_size=24, **changes)
    with training_inputs() as inputs:
        outcome = fit_local(config, run, device="cpu", on_epoch=lambda _: False)
    shown: list[Any] = []

    def keep(images: Any, captions: Any) -> Any:
        shown.extend((images, captions))
        return mosaic(images, captions)

    monkeypatch.setattr(pictures, "mosaic", keep)
    assert pictures.draw_pictures(config, run, outcome.records)["figures/mosaic.jpg"]
    images, captions = shown
    mean, std = open_dataset(dataset).mean_std("train")
    given = 255 * (inputs[0].permute(0, 2, 3, 1).numpy() * np.array(std) + np.array(mean))
    assert np.array(images).shape == given.shape
    assert np.abs(np.array(images) - given).max() <= 0.51
    return images, captions


@pytest.mark.parametrize("augment", [
    {"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}, {"shift_px": 2, "flip": True}, {"crop_min_area": 0.3},
])  # fmt: skip
@pytest.mark.parametrize("start_fraction", [0.5, 1.0])
def test_what_is_drawn_is_what_the_network_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: dict[str, Any], start_fraction: float
) -> None:
    dataset = write_dataset(tmp_path / "dataset", size=16)
    progressive = {"start_fraction": start_fraction, "full_at": 1.0}
    images, captions = drawn(
        dataset, Storage.open(tmp_path / "run"), monkeypatch, augment=augment, progressive=progressive
    )
    assert images[0].shape[0] == 16 * start_fraction
    names, _, cropped = zip(*(caption.partition("\n") for caption in captions), strict=True)
    if "crop_min_area" in augment:
        shares = [int(text.removesuffix("% cropped") or 0) for text in cropped]
        assert 0 < np.mean(shares) < 70
        assert max(shares) <= 75  # what hangs over is cut to the image's side
    else:
        assert set(cropped) == {""}  # nothing is, and nothing is said
    if len(augment) == 1 and "crop_min_area" not in augment:
        assert all("% " in name and " + " in name for name in names)


def test_a_row_that_comes_several_times_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"train": {"a": 3, "b": 45}, "val": {"a": 3, "b": 3}}
    dataset = write_dataset(tmp_path / "dataset", counts=counts, size=16)
    augment = {"crop_min_area": 0.3}
    _, captions = drawn(dataset, Storage.open(tmp_path / "run"), monkeypatch, augment=augment, sampling="balanced")
    assert sum(caption.startswith("a\n") for caption in captions) > 3


def test_what_evaluation_and_ingest_cut_off_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = Geometry(size_px=8, mode="crop", crop_ratio=0.5)
    dataset = write_dataset(tmp_path / "dataset", size=16, preprocess=Preprocess(evaluation=evaluation))
    _, captions = drawn(dataset, Storage.open(tmp_path / "run"), monkeypatch)
    assert {caption.split("\n")[1] for caption in captions} == {"75% cropped"}
