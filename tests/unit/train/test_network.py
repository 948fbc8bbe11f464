"""Networks are kept channels-last only where torch can train them so."""

import pytest
import torch

from pipelines.errors import ConfigError
from pipelines.train.network import is_channels_last_safe
from pipelines.train.network_spec import settle_spec
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


def test_images_too_small_for_the_networks_strides_are_refused() -> None:
    spec = ModelSpec(stem="imagenet", depth=18)
    with pytest.raises(
        ConfigError, match=r"the images' shorter side is 16: the network strides over 32 pixels \(stem 4, stages 1 x 2 "
    ):
        settle_spec(spec, ("a", "b"), (16, 40))
