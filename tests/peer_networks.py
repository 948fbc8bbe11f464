"""Our network and a peer's with the same weights: same logits, gradients and running statistics, or a clear failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from resnet_models.pooling import BlurPool
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import load_strict

ODD_SIZE = (65, 79)
SMALL_ODD_SIZE = (33, 47)
KeyMap = Callable[[Mapping[str, Tensor], ModelSpec], dict[str, Tensor]]


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Give norms scales, shifts and running statistics that are far from 1 and 0; other weights stay random as made."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.uniform_(module.weight, 0.3, 0.9, generator=generator)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)


def assert_same_network(
    theirs: nn.Module, spec: ModelSpec, key_map: KeyMap, *, size: tuple[int, int] = ODD_SIZE
) -> None:
    """Load the peer's weights and compare in eval and in train mode.

    Logits to 1e-5 of the largest, gradients to 1e-4 of each tensor's largest, running statistics after training.
    """
    randomise(theirs)
    with torch.device("meta"):
        ours = ResNet(spec)
    ours = ours.to_empty(device="cpu")
    for buffer in (module for module in ours.modules() if isinstance(module, BlurPool)):
        buffer.kernel.copy_(BlurPool(buffer.channels, stride=buffer.stride).kernel)
    load_strict(ours, key_map(theirs.state_dict(), spec))
    for training in (False, True):
        _assert_same_step(theirs.train(training), ours.train(training), spec, key_map, size)
    statistics = key_map(theirs.state_dict(), spec)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, statistics[name], rtol=1e-5, atol=1e-6, msg=name)


def _assert_same_step(theirs: nn.Module, ours: ResNet, spec: ModelSpec, key_map: KeyMap, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected, logits = theirs(images), ours(images)
    assert expected.detach().abs().max() > 1e-3, "the peer's logits say something"
    assert difference(logits, expected) <= 1e-5
    targets = torch.tensor([1, 5])
    for network, found in ((theirs, expected), (ours, logits)):
        network.zero_grad()
        nn.functional.cross_entropy(found, targets).backward()
    gradients = key_map({name: weight.grad for name, weight in theirs.named_parameters()}, spec)  # type: ignore[misc]
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, weight in ours.named_parameters():
        assert weight.grad is not None
        # a tensor whose true gradient is zero holds rounding noise alone: measured against the network's largest
        scale = max(float(gradients[name].abs().max()), 1e-3 * largest)
        assert float((weight.grad - gradients[name]).abs().max()) <= 1e-4 * scale, name


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())
