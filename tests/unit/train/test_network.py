"""Networks are kept channels-last only where torch can train them so."""

import pytest
import torch

from pipelines.train.network import is_channels_last_safe
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec


@pytest.mark.parametrize(
    ("channels", "device", "expected"),
    [((8, 16), "cpu", True), ((4, 8), "cpu", False), ((6, 12), "cpu", False), ((4, 8), "cuda", True)],
)
def test_narrow_strided_shortcuts_are_not_trained_channels_last_on_a_cpu(
    channels: tuple[int, ...], device: str, expected: bool
) -> None:
    spec = ModelSpec(depths=(1, 1), channels=channels, stem="cifar", num_classes=3)
    assert is_channels_last_safe(build(spec), torch.device(device)) is expected
