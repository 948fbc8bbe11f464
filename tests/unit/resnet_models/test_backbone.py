"""A network as a trunk: maps, strides, embeddings, another head; and an FPN and a U-Net built on it that learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.backbone import Backbone, features_only, with_head
from resnet_models.errors import SpecError
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec


def small(**changes: object) -> ResNet:
    fields = {"stem": "imagenet", "depths": (1, 1, 1, 1), "width": 0.125, "num_classes": 5, **changes}
    return build(ModelSpec(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
@pytest.mark.parametrize("stem", ["imagenet", "cifar", "deep"])
@pytest.mark.parametrize("block", ["basic", "preact_bottleneck"])
def test_maps_have_the_channels_and_strides_that_are_told(block: str, stem: str, size: tuple[int, int]) -> None:
    network = small(block=block, stem=stem).eval()
    backbone = features_only(network, (0, 1, 2, 3, 4))
    images = torch.randn(2, 3, *size)
    maps = backbone(images)
    for found, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert found.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert [fact.stride for fact in backbone.receptive_fields()] == list(backbone.strides)
    assert [fact.channels for fact in backbone.receptive_fields()] == list(backbone.channels)


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic"])
def test_the_last_map_is_what_the_classifier_sees(block: str) -> None:
    network = small(block=block, head_pool="concat").eval()
    images = torch.randn(2, 3, 64, 64)
    backbone = Backbone(network)
    assert torch.equal(network.head(network.pool(backbone(images)[-1])), network(images))
    embedded = backbone.embed(images)
    assert torch.equal(embedded, network.features(images))
    assert embedded.shape == (2, backbone.embedding_size)


def test_nothing_deeper_than_the_last_level_is_computed() -> None:
    network = small()
    backbone = Backbone(network, (1, 2))
    assert len(backbone.stages) == 2
    assert backbone.channels == (8, 16)
    whole = network.stage_outputs(images := torch.randn(1, 3, 64, 64))
    network.eval()
    for ours, theirs in zip(backbone.eval()(images), network.stage_outputs(images)[:2], strict=True):
        assert torch.equal(ours, theirs)
    assert len(whole) == 4


def test_keys_of_samples_reach_the_blocks() -> None:
    backbone = Backbone(small(drop_path_rate=0.9, norm="frozen", depths=(2, 2, 2, 2))).train()
    images, keys = torch.randn(4, 3, 64, 64), torch.arange(4)
    first = backbone(images, sample_keys=keys)[-1]
    assert torch.equal(backbone(images, sample_keys=keys)[-1], first)
    assert not torch.equal(backbone(images, sample_keys=keys + 9)[-1], first)


@pytest.mark.parametrize("levels", [(2, 1), (1, 1), (5,), (-1, 2)])
def test_levels_that_are_not_there_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"the network has levels 0 \(stem\) to 4; list some of them, ascending"):
        Backbone(small(), levels)


def test_images_that_do_not_fit_are_refused_as_by_the_network() -> None:
    backbone = Backbone(small(stem_pool="blur"))
    with pytest.raises(SpecError, match=r"in_channels is 3: the images have shape \[1, 1, 64, 64\]"):
        backbone(torch.zeros(1, 1, 64, 64))
    with pytest.raises(SpecError, match="image_size_px is 9: the network strides over 32 pixels"):
        backbone.embed(torch.zeros(1, 3, 9, 9))
    finer = Backbone(small(stem_pool="blur"), (1, 2)).eval()
    assert [found.shape[2] for found in finer(torch.zeros(1, 3, 9, 9))] == [3, 2], "the deeper stages are not run"


def test_another_head_keeps_the_rest_and_leaves_the_first_network_alone() -> None:
    network = small(exits=(2,), head_dropout=0.1).eval()
    images = torch.randn(2, 3, 64, 64)
    before = network(images)
    renewed = with_head(network, 9, seed=4)
    assert renewed(images).shape == (2, 9)
    assert not renewed.head.training
    assert renewed.spec.num_classes == 9
    assert renewed.exits is not None
    assert renewed.exits["2"].head.out_features == 9
    assert renewed.stem is network.stem
    assert torch.equal(renewed.features(images), network.features(images))
    assert torch.equal(network(images), before)
    assert network.spec.num_classes == 5
    assert torch.equal(with_head(network, 9, seed=4).head.weight, renewed.head.weight)
    assert not torch.equal(with_head(network, 9, seed=5).head.weight, renewed.head.weight)
    with pytest.raises(SpecError, match="num_classes is 0: a network needs outputs; give 1 or more"):
        with_head(network, 0)


class FeaturePyramid(nn.Module):
    """Maps of equal width at every level, coarse ones added to finer ones (FPN, arXiv:1612.03144, fig. 3)."""

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in backbone.channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in backbone.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, self.backbone(images), strict=True)]
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + F.interpolate(maps[finer + 1], size=maps[finer].shape[2:])
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class PixelClassifier(nn.Module):
    """A U-Net's way up (arXiv:1505.04597, fig. 1): enlarge, put the finer map beside it, convolve."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        *finer, deepest = backbone.channels
        ups, entering = [], deepest
        for channels in reversed(finer):
            ups.append(nn.Conv2d(entering + channels, channels, 3, padding=1))
            entering = channels
        self.ups = nn.ModuleList(ups)
        self.head = nn.Conv2d(entering, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        *finer, x = self.backbone(images)
        for up, beside in zip(self.ups, reversed(finer), strict=True):
            x = F.relu(up(torch.cat([F.interpolate(x, size=beside.shape[2:]), beside], dim=1)))
        return F.interpolate(self.head(x), size=images.shape[2:])


def learns(model: nn.Module, loss_of: object) -> bool:
    """Take two steps and tell whether the loss fell and every weight of the trunk got a gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        loss = loss_of()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    grads = [parameter.grad for parameter in model.parameters()]
    return losses[-1] < losses[0] and all(grad is not None and grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("name", ["resnet50", "preact_resnet164"])
def test_a_feature_pyramid_trains(name: str) -> None:
    torch.manual_seed(0)
    spec = named_spec(name, width=0.125, depths=(1, 1, 1, 1) if name == "resnet50" else (1, 1, 1))
    pyramid = FeaturePyramid(features_only(build(spec)), 16)
    images = torch.randn(2, 3, 96, 64)
    strides = pyramid.backbone.strides
    assert [x.shape for x in pyramid(images)] == [(2, 16, 96 // stride, 64 // stride) for stride in strides]
    targets = [torch.randn_like(x) for x in pyramid(images)]

    def loss() -> Tensor:
        return torch.stack([F.mse_loss(x, t) for x, t in zip(pyramid(images), targets, strict=True)]).sum()

    assert learns(pyramid, loss)


def test_a_unet_trains_and_answers_at_the_images_own_size() -> None:
    torch.manual_seed(0)
    model = PixelClassifier(Backbone(small(), (0, 1, 2, 3)), num_classes=3)
    images, targets = torch.randn(2, 3, 67, 45), torch.randint(0, 3, (2, 67, 45))
    assert model(images).shape == (2, 3, 67, 45)
    assert learns(model, lambda: F.cross_entropy(model(images), targets))
