"""Every shipped recipe loads, and builds and trains on the images it is meant for."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch

from pipelines.config.load import find_preset, load_config, preset_names
from pipelines.train import transfer
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.schedule import side_at
from resnet_models.layers import trace_layers
from resnet_models.resnet import build

SIDES = {"cifar": 32, "cifar-fast": 32, "default": 32, "digits": 8, "finetune": 32, "imagenet": 224}


def preset(name: str) -> TrainConfig:
    return load_config(TrainConfig, find_preset("train", name))


def test_every_recipe_has_its_images_here() -> None:
    assert set(preset_names("train")) == set(SIDES)


@pytest.mark.parametrize("name", sorted(SIDES))
def test_a_recipe_builds_a_network_for_each_side_it_trains_at(name: str) -> None:
    config = preset(name)
    spec = config.model.for_images(image_size_px=SIDES[name], num_classes=10)
    network = build(spec).eval()
    for epoch in range(1, config.epochs + 1):
        side = side_at(config.progressive, side_px=SIDES[name], epoch=epoch, epochs=config.epochs)
        assert spec.min_image_px <= side <= SIDES[name]
    assert side == SIDES[name]  # it ends on what evaluation sees
    if SIDES[name] <= 32:
        assert network(torch.zeros(1, 3, side, side)).shape == (1, 10)


@pytest.mark.parametrize("name", ["cifar", "cifar-fast"])
def test_the_cost_that_a_cifar_recipe_states_is_its_networks(name: str) -> None:
    """The preset's comment gives millions of multiply-adds an image; they decide what fits into its time."""
    spec = preset(name).model.for_images(image_size_px=32, num_classes=10)
    millions = sum(layer.macs for layer in trace_layers(spec, image_size_px=32)) / 1e6
    path = find_preset("train", name)
    assert path is not None
    assert f"{millions:.0f} million multiply-adds" in path.read_text()


@pytest.mark.parametrize(("name", "epochs"), [("cifar", {16: 6, 24: 11, 32: 9}), ("cifar-fast", {16: 3, 24: 6, 32: 5})])
def test_small_images_come_first_for_as_many_epochs_as_a_cifar_recipe_says(name: str, epochs: dict[int, int]) -> None:
    config = preset(name)
    sides = [
        side_at(config.progressive, side_px=32, epoch=epoch, epochs=config.epochs)
        for epoch in range(1, config.epochs + 1)
    ]
    assert Counter(sides) == epochs
    assert sides == sorted(sides)


def test_fine_tuning_from_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def start(config: TrainConfig) -> None:
        transfer.start_network(
            config, ("a", "b"), (32, 32), world=World(), device=torch.device("cpu"), resumes=False
        )  # fmt: skip

    with caplog.at_level(logging.WARNING):
        start(preset("finetune"))
    assert caplog.messages == [
        "init.lr_decay_by_depth is 0.7 and there is no init.from: the first layers start from random weights and learn"
        " slowest; mend: name a network with init.from=..., or set init.lr_decay_by_depth=1"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        start(preset("digits"))
    assert not caplog.messages
