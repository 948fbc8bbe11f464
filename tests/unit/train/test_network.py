"""Networks are kept channels-last only where torch can train them so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.errors import ConfigError
from pipelines.storage import Storage
from pipelines.train.batch_norm import GlobalBatchNorm2d, has_global_norms
from pipelines.train.collectives import World
from pipelines.train.config import ProgressiveConfig, TrainConfig
from pipelines.train.initial import fitted_spec
from pipelines.train.loop import fit, fit_local
from pipelines.train.memory import MemoryShortage
from pipelines.train.network import is_channels_last_safe, make_network
from pipelines.train.network_spec import settle_spec
from resnet_models.norm import SyncedBatchNorm
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from tests.unit.train.test_memory import narrow
from tests.unit.train.tiny import MODEL, make_config, write_dataset
from tests.unit.train.worlds import in_threads


@pytest.mark.parametrize(
    ("channels", "device", "expected"),
    [((16, 32), "cpu", True), ((4, 8), "cpu", False), ((12, 24), "cpu", False), ((4, 8), "cuda", True)],
)
def test_narrow_strided_shortcuts_are_not_trained_channels_last_on_a_cpu(
    channels: tuple[int, ...], device: str, expected: bool
) -> None:
    spec = ModelSpec(depths=(1, 1), channels=channels, stem="cifar", num_classes=3)
    assert is_channels_last_safe(build(spec), torch.device(device)) is expected


def test_images_too_small_for_the_networks_strides_are_refused() -> None:
    spec = ModelSpec(stem="imagenet", depth=18)
    with pytest.raises(
        ConfigError, match=r"the images' shorter side is 16: the network strides over 32 pixels \(stem 4, stages 1 x 2 "
    ):
        settle_spec(spec, ("a", "b"), (16, 40))


@pytest.mark.parametrize(
    ("progressive", "mend"),
    [
        ({"start_fraction": 0.1, "multiple_px": 4}, "progressive.start_fraction=0.25"),
        ({"start_fraction": 0.1, "multiple_px": 1}, "progressive.start_fraction=0.16"),
    ],
)
def test_progressive_images_that_begin_too_small_are_refused_with_what_fits(
    progressive: dict[str, Any], mend: str
) -> None:
    model = ModelSpec(depths=(1, 1, 1), channels=(8, 8, 8), strides=(2, 2, 2), stem="cifar")
    config = TrainConfig.model_validate({"model": model, "epochs": 5, "progressive": progressive})
    with pytest.raises(ConfigError, match="px a side, and the network takes 5 or more") as refused:
        fitted_spec(config, None, ("a", "b"), (40, 32))
    assert refused.value.mend == f"{mend}, or smaller model.strides"
    mended = progressive | {"start_fraction": float(mend.partition("=")[2])}
    fitted_spec(config.model_copy(update={"progressive": ProgressiveConfig(**mended)}), None, ("a", "b"), (40, 32))


def _count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def test_synced_norms_are_those_over_the_global_batch() -> None:
    spec = ModelSpec(depths=(1, 1), channels=(8, 16), stem="cifar", num_classes=3, norm="sync")
    built = build(spec)
    network = make_network(spec, seed=0, world=World(), device=torch.device("cpu"))
    assert not _count(network, SyncedBatchNorm)
    assert _count(network, GlobalBatchNorm2d) == _count(built, SyncedBatchNorm) > 0
    assert has_global_norms(network)
    assert list(network.state_dict()) == list(built.state_dict())


def test_workers_whose_synced_norms_meet_do_not_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker that takes smaller pieces would send the others' norms what they do not wait for."""
    config = make_config(write_dataset(tmp_path / "dataset"), model=MODEL | {"norm": "sync"}, epochs=1)
    narrow(monkeypatch, 4)

    def train(world: World) -> str:
        try:
            fit(config, Storage.open(tmp_path / "run"), world=world, device=torch.device("cpu"))
        except MemoryShortage as error:
            return error.mend
        return ""

    assert in_threads(2, train) == ["accumulate=2, or more workers"] * 2


@pytest.mark.parametrize("cache_limit_mb", [0, 1])
def test_a_whitening_stem_sees_stored_images_of_several_sizes_at_the_networks(
    tmp_path: Path, cache_limit_mb: int
) -> None:
    config = make_config(
        write_dataset(tmp_path / "dataset", odd_size=12),
        model=MODEL | {"stem": "whitening"},
        augment={"shift_px": 0, "crop_min_area": 0.5},
        cache_limit_mb=cache_limit_mb,
        epochs=1,
    )
    assert fit_local(config, Storage.open(tmp_path / "run"), device="cpu").epochs == 1
