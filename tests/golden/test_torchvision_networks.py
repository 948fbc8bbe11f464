"""Same weights, same pixels: our networks and torchvision's give equal logits, gradients and running statistics."""

from __future__ import annotations

import pytest
import torch

from resnet_models.resnet import ResNet
from resnet_models.state_dict import from_torchvision, load_strict
from resnet_models.zoo import named_spec


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_equal_to_torchvision(name: str, training: bool) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    theirs = get_model(name, weights=None, num_classes=7).train(training)
    spec = named_spec(name, num_classes=7)
    ours = ResNet(spec).train(training)
    load_strict(ours, from_torchvision(theirs.state_dict(), spec))
    images = torch.randn(2, 3, 64, 64)
    expected, logits = theirs(images), ours(images)
    assert torch.equal(logits, expected)

    targets = torch.tensor([1, 5])
    torch.nn.functional.cross_entropy(expected, targets).backward()
    torch.nn.functional.cross_entropy(logits, targets).backward()
    gradients = from_torchvision({key: weight.grad for key, weight in theirs.named_parameters()}, spec)
    for key, weight in ours.named_parameters():
        assert weight.grad is not None
        assert torch.equal(weight.grad, gradients[key]), key
    statistics = from_torchvision(theirs.state_dict(), spec)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, statistics[key]), key
