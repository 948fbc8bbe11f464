"""Same weights, same pixels: our networks and timm's give equal logits, gradients and running statistics.

Where timm differs from the paper that it cites, a test says how, and that we differ from it in nothing else.
"""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from resnet_models.blocks.shortcut import ProjectionShortcut
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import WeightsError
from resnet_models.timm_names import from_timm
from resnet_models.zoo import named_spec, spec_names
from tests.peer_networks import ODD_SIZE, SMALL_ODD_SIZE, assert_same_network

# Stems -C, -D, -S, -T; SE, ECA; blur; average-pool shortcuts; pre-activation; groups; group norm; ResNet-RS.
QUICK = [
    "resnet10t", "resnet14t", "resnet18d", "resnet26", "resnet26d", "resnet26t", "resnet34d", "resnet50c",
    "seresnet18", "seresnet34", "seresnext26d_32x4d", "seresnext26t_32x4d",
    "ecaresnet26t", "ecaresnext26t_32x4d", "ecaresnetlight",
    "resnetblur18", "resnetblur50d", "resnetv2_18", "resnetv2_18d", "resnetv2_34", "resnetv2_50t", "resnetv2_50d_gn",
    "resnet50_gn", "resnetrs50",
]  # fmt: skip
DEEP = [
    "resnet50d", "resnet50s", "resnet50t", "resnet101c", "resnet101d", "resnet152d", "resnet200d",
    "seresnet50", "seresnet152d", "seresnext50_32x4d", "seresnext101_64x4d", "seresnext101d_32x8d",
    "ecaresnet50d", "ecaresnet50t", "ecaresnet101d", "ecaresnet269d", "resnext50d_32x4d", "resnext101_32x16d",
    "resnetblur50", "resnetblur101d", "resnetv2_50", "resnetv2_50d", "resnetv2_101", "resnetv2_152d",
    "resnetrs101", "resnetrs270",
]  # fmt: skip
# Average pooling as anti-aliasing works in timm on even maps only.
EVEN_ONLY = ["resnetaa34d", "seresnetaa50d"]
# Parts that are not ours: pruned widths, SENet-154's halved 1x1s and 3x3 projections, mixed blocks, standardised
# convolutions (BiT), EvoNorm and filter response norm.
NOT_OURS = {
    "ecaresnet50d_pruned", "ecaresnet101d_pruned", "senet154", "test_resnet", "resnetv2_50d_evos", "resnetv2_50d_frn",
    "resnetv2_50x1_bit", "resnetv2_50x3_bit", "resnetv2_101x1_bit", "resnetv2_101x3_bit", "resnetv2_152x2_bit",
    "resnetv2_152x4_bit",
}  # fmt: skip


def make_peer(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, num_classes=7)
    return network


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP)])
def test_equal_to_timm(name: str) -> None:
    assert_same_network(make_peer(name), named_spec(name, num_classes=7), from_timm, size=SMALL_ODD_SIZE)


def test_equal_to_timm_on_larger_odd_images() -> None:
    assert_same_network(make_peer("resnet18d"), named_spec("resnet18d", num_classes=7), from_timm, size=ODD_SIZE)


@pytest.mark.parametrize("name", EVEN_ONLY)
def test_equal_to_timm_on_even_maps(name: str) -> None:
    spec = named_spec(name, num_classes=7)
    assert_same_network(make_peer(name), spec, from_timm, size=(64, 96))


def test_timm_averages_even_maps_only() -> None:
    # timm's anti-aliasing average floors where its projection rounds up: odd maps cannot be added. Ours averages the
    # pixels that a ragged edge has.
    images = torch.randn(1, 3, *ODD_SIZE)
    with pytest.raises(RuntimeError, match="must match the size"):
        make_peer("resnetaa50d").eval()(images)
    assert build(named_spec("resnetaa50d", num_classes=7)).eval()(images).shape == (1, 7)


def test_timm_projects_without_blur() -> None:
    # Zhang 2019, arXiv:1904.11486, sec. 4.2, blurs before strided projections too; timm strides the 1x1 itself.
    peer, paper = make_peer("resnetblur50"), named_spec("resnet50_antialiased", num_classes=7)
    assert peer.get_submodule("layer2.0.downsample.0").stride == (2, 2)
    shortcut = build(paper).get_submodule("stages.1.0.shortcut")
    assert isinstance(shortcut, ProjectionShortcut)
    assert (shortcut.conv.stride, type(shortcut.pool).__name__) == ((1, 1), "BlurPool")
    with pytest.raises(WeightsError, match="timm has no network with stem=imagenet, shortcut=blur_pool"):
        from_timm(peer.state_dict(), paper)


def test_timm_strides_preactivation_bottlenecks_in_the_3x3() -> None:
    # He et al. 2016, arXiv:1603.05027, stride in the first 1x1, as their code; timm in the 3x3, and so does its name
    # here. stride_placement=v1 is the paper's.
    peer = make_peer("resnetv2_50")
    assert peer.get_submodule("stages.1.blocks.0.conv1").stride == (1, 1)
    assert peer.get_submodule("stages.1.blocks.0.conv2").stride == (2, 2)
    paper = build(named_spec("resnetv2_50", num_classes=7, stride_placement="v1"))
    assert paper.get_submodule("stages.1.0.conv1").stride == (2, 2)


def test_timm_rounds_the_gates_of_squeeze_excitation() -> None:
    # Hu et al. 2018, arXiv:1709.01507: channels / 16; timm rounds to a multiple of 8, which changes the first stage of
    # basic blocks: 64 / 16 = 4 becomes 8.
    assert make_peer("seresnet18").get_submodule("layer1.0.se.fc1").weight.shape[0] == 8
    assert build(named_spec("seresnet18", num_classes=7)).get_submodule("stages.0.0.attention.reduce").weight.shape == (
        8, 64, 1, 1,
    )  # fmt: skip


def test_timm_drops_blocks_in_squares_of_its_own() -> None:
    # Ghiasi et al. 2018, arXiv:1810.12890: squares of 7 in the last two groups; timm has 5 and 3, and drops with a
    # quarter of the rate in the third. Ours are the paper's, of `drop_block_size`.
    peer = timm.create_model("resnet18", num_classes=7, drop_block_rate=0.1)
    theirs = [peer.get_submodule(f"layer{stage}.0.drop_block") for stage in (3, 4)]
    assert [(layer.block_size, layer.gamma_scale) for layer in theirs] == [(5, 0.25), (3, 1.0)]
    network = build(named_spec("resnet18", num_classes=7, drop_block_rate=0.1))
    ours = [block.drop_block for stage in network.stages for block in stage]
    assert [layer and (layer.rate, layer.block_size) for layer in ours] == [None] * 4 + [(0.1, 7)] * 4


def test_stochastic_depth_rises_as_timms() -> None:
    peer = timm.create_model("resnet18", num_classes=7, drop_path_rate=0.2)
    theirs = [block.drop_path.drop_prob if block.drop_path else 0.0 for block in all_blocks(peer)]
    network = build(named_spec("resnet18", num_classes=7, drop_path_rate=0.2))
    ours = [block.drop_path.rate if block.drop_path else 0.0 for stage in network.stages for block in stage]
    assert ours == pytest.approx(theirs)


def all_blocks(peer: nn.Module) -> list[nn.Module]:
    return [block for stage in range(1, 5) for block in peer.get_submodule(f"layer{stage}").children()]


def test_every_timm_name_of_our_parts_has_a_spec() -> None:
    from timm.models import list_models

    names = {*list_models(module="resnet"), *list_models(module="resnetv2")}
    assert names - set(spec_names()) == NOT_OURS


@pytest.mark.slow
def test_every_timm_network_of_our_parts_has_the_same_weights() -> None:
    from timm.models import list_models

    names = {*list_models(module="resnet"), *list_models(module="resnetv2")}
    for name in sorted(names - NOT_OURS):
        spec = named_spec(name, num_classes=7)
        with torch.device("meta"):
            theirs, ours = timm.create_model(name, num_classes=7), ResNet(spec)
        shapes = {key: tensor.shape for key, tensor in from_timm(theirs.state_dict(), spec).items()}
        assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes, name


def test_timm_weights_fit_their_kind_only() -> None:
    message = (
        "timm has no network with stem=cifar, shortcut=projection, stride_placement=v1.5, ordering=auto; its weights "
        "fit stem=imagenet or deep or tiered, shortcut=projection or average_pool, stride_placement=v1.5, ordering=auto"
    )
    with pytest.raises(WeightsError, match=message):
        from_timm({}, ModelSpec(stem="cifar", num_classes=7))
