"""Same weights, same pixels: our networks and torchvision's give equal logits, gradients and running statistics."""

from __future__ import annotations

import pytest
import torch

from resnet_models.resnet import ResNet
from resnet_models.state_dict import from_torchvision, load_strict
from resnet_models.zoo import named_spec
from tests.peer_networks import ODD_SIZE, SMALL_ODD_SIZE, assert_same_network, randomise

QUICK = ["resnet18", "resnet34", "resnet50", "resnext50_32x4d"]
LARGE = ["wide_resnet50_2", "resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2"]


def test_these_are_all_that_torchvision_ships() -> None:
    from torchvision import models

    shipped = [name for name in models.list_models(module=models) if "resne" in name]
    assert sorted([*QUICK, *LARGE]) == sorted(shipped)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_equal_to_torchvision(name: str) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    theirs = get_model(name, weights=None, num_classes=7)
    size = ODD_SIZE if name in ("resnet18", "resnet34") else SMALL_ODD_SIZE
    assert_same_network(theirs, named_spec(name, num_classes=7), from_torchvision, size=size)


def test_bit_equal_in_eval_mode() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(weights=None, num_classes=7).eval()
    randomise(theirs)
    spec = named_spec("resnet18", num_classes=7)
    ours = ResNet(spec).eval()
    load_strict(ours, from_torchvision(theirs.state_dict(), spec))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
