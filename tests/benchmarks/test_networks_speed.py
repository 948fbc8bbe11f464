"""Our networks against torchvision's, interleaved, and the images per second of every named network.

python -m pytest -m benchmark -s tests/benchmarks/test_networks_speed.py

Both sides get the same weights, images, memory format (channels-last) and threads; only on a machine that does nothing
else do the figures mean anything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.resnet import ResNet, build
from resnet_models.state_dict import from_torchvision, load_strict
from resnet_models.zoo import named_spec, spec_names

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

PAIRS = 20
INTERVAL = (5, 14)
"""Order statistics, from 0, that hold the median of 20 with 95.9% confidence (binomial)."""
SIDE_S = 0.5
"""A side of a pair should take so long; the batch is chosen by it."""
BAR = 0.98
TABLE_S = 1.5
"""Each network of the table is measured for at least so long."""

Step = Callable[[], object]


def images_for(network: nn.Module, count: int, side: int) -> Tensor:
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    network.to(memory_format=torch.channels_last)
    return images.to(memory_format=torch.channels_last)


def make_step(network: nn.Module, images: Tensor, *, training: bool) -> Step:
    network.train(training)
    if not training:

        def forward() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = network(images)
                return logits

        return forward
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    targets = torch.arange(len(images)) % 7

    def step() -> None:
        loss = F.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_as_fast_as_torchvision(name: str, training: bool) -> None:
    from torchvision.models import get_model

    torch.set_num_threads(2)
    torch.manual_seed(0)
    theirs = get_model(name, weights=None, num_classes=7)
    spec = named_spec(name, num_classes=7)
    ours = ResNet(spec)
    load_strict(ours, from_torchvision(theirs.state_dict(), spec))
    probe = make_step(theirs, images_for(theirs, 2, 224), training=training)
    probe()
    batch = max(2, min(32, round(2 * SIDE_S / min(seconds(probe) for _ in range(3)))))
    steps = [make_step(network, images_for(network, batch, 224), training=training) for network in (ours, theirs)]
    for step in steps * 2:
        step()
    ratios, rates = [], []
    for pair in range(PAIRS):
        first = pair % 2  # each side goes first in half of the pairs
        taken = [0.0, 0.0]
        for side in (first, 1 - first):
            taken[side] = seconds(steps[side])
        ratios.append(taken[1] / taken[0])
        rates.append((batch / taken[0], batch / taken[1]))
    ordered, median = sorted(ratios), statistics.median(ratios)
    print(
        f"\n{name} {'training step' if training else 'forward'}, batch {batch}, 224 px, float32, channels-last, "
        f"2 threads: ours {statistics.median(rate for rate, _ in rates):.2f}, torchvision "
        f"{statistics.median(rate for _, rate in rates):.2f} images/s; median ratio of {PAIRS} pairs {median:.3f} "
        f"(95% interval {ordered[INTERVAL[0]]:.3f} to {ordered[INTERVAL[1]]:.3f})"
    )
    assert median >= BAR


def test_images_per_second_of_named_networks() -> None:
    """Print the column of the table in the package's README."""
    torch.set_num_threads(2)
    print(f"\nforward, float32, channels-last, 2 threads of {torch.backends.cpu.get_cpu_capability()}")
    for name in spec_names():
        spec = named_spec(name)
        batch, side = (32, 32) if spec.has_small_stem else (4, 224)
        network = build(spec)
        step = make_step(network, images_for(network, batch, side), training=False)
        step()
        taken: list[float] = []
        while sum(taken) < TABLE_S or len(taken) < 3:
            taken.append(seconds(step))
        rate = batch / statistics.median(taken)
        print(
            f"{name} | {batch} x {side} px | {rate:,.0f}"
            if rate >= 10
            else f"{name} | {batch} x {side} px | {rate:.1f}"
        )
        assert rate > 0
