"""What a positional CONFIG means, in the order preset, YAML file, data."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ConfigError, InputError
from pipelines.ingest.config import IngestConfig
from pipelines.runner import target
from pipelines.stage_output import StageResult
from pipelines.train.config import TrainConfig
from tests.factories import make_png


@pytest.fixture
def images(workspace: Path) -> Path:
    for label in ("cat", "dog"):
        (workspace / "photos" / label).mkdir(parents=True)
        for index in range(4):
            (workspace / "photos" / label / f"{index}.png").write_bytes(make_png(index, 8, 8))
    return workspace / "photos"


def test_a_preset_comes_before_a_folder_of_its_name(workspace: Path) -> None:
    (workspace / "cifar-fast").mkdir()
    resolved = target.resolve("train", "cifar-fast")
    assert (resolved.kind, resolved.words) == ("none", "CONFIG is the preset cifar-fast")
    assert resolved.config is not None


def test_a_yaml_file_is_a_config(workspace: Path) -> None:
    (workspace / "my.yaml").write_text("epochs: 4\ndataset: somewhere\n")
    resolved = target.resolve("train", "my.yaml")
    config = target.load(TrainConfig, resolved, ["epochs=5"], say=lambda _: None)
    assert (config.epochs, config.dataset) == (5, "somewhere")


def test_a_missing_yaml_file_is_named() -> None:
    with pytest.raises(InputError) as raised:
        target.resolve("train", "nowhere/my.yaml")
    assert raised.value.what == "config file nowhere/my.yaml does not exist"


def test_what_is_nothing_lists_the_presets(workspace: Path) -> None:
    with pytest.raises(InputError) as raised:
        target.resolve("train", "phtos")
    assert raised.value.what == "phtos is no preset of train, no .yaml file, and nothing is there"
    assert "cifar-fast" in raised.value.mend


def test_a_table_is_refused(workspace: Path) -> None:
    (workspace / "labels.csv").write_text("path,label\n")
    with pytest.raises(ConfigError) as raised:
        target.resolve("train", "labels.csv")
    assert raised.value.what == "labels.csv is a table, where a folder, .zip or .tar of images is meant"


def test_two_datasets_are_refused(images: Path) -> None:
    with pytest.raises(InputError) as raised:
        target.resolve("train", "photos", dataset="other")
    assert raised.value.what == "photos is data and --dataset names other: only one can be used"


def test_a_dry_run_says_what_would_be_ingested_and_how_it_is_split(images: Path) -> None:
    said: list[str] = []
    resolved = target.resolve("train", "photos")
    config = target.load(TrainConfig, resolved, [], dry_run=True, say=said.append)
    assert resolved.words == "CONFIG is the images in photos, with the defaults of train"
    assert said == [
        f"ingest: photos would be ingested into {config.dataset} first, split 80% train, 10% val, 10% test, seed 0"
    ]
    assert not Path("runs").exists()


def test_images_are_ingested_on_the_cluster_of_the_stage(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[IngestConfig] = []

    def ingest(config: IngestConfig) -> StageResult:
        seen.append(config)
        return StageResult("ingest", "runs/photos", "0" * 32, False, {}, ())

    monkeypatch.setattr("pipelines.ingest.stage.run", ingest)
    resolved = target.resolve("train", "photos")
    config = target.load(TrainConfig, resolved, ["ray.address=head:6379"], say=lambda _: None)
    assert (seen[0].source, seen[0].ray.address) == ("photos", "head:6379")
    assert (config.dataset, config.ray.address) == ("runs/photos", "head:6379")


def test_a_misspelt_key_shows_before_images_are_ingested(images: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        target.load(TrainConfig, target.resolve("train", "photos"), ["epoch=3"], say=lambda _: None)
    assert raised.value.what == "unknown key epoch"
    assert not Path("runs").exists()


def test_an_unknown_stage_has_no_schema() -> None:
    with pytest.raises(InputError) as raised:
        target.schema_of("trian")
    assert raised.value.what == "there is no stage 'trian'"
