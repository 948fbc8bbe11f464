"""The parts that networks are made of: orderings, norms, gates, poolings, whitening, what is left out at random."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_models.activation import make_activation
from resnet_models.attention import EfficientChannelAttention, SqueezeExcitation
from resnet_models.blocks.basic import BasicBlock
from resnet_models.blocks.bottleneck import BottleneckBlock
from resnet_models.blocks.parts import BlockNoise, BlockParts
from resnet_models.blocks.preactivation import PreactBasicBlock, PreactBottleneckBlock
from resnet_models.blocks.residual import ResidualBlock
from resnet_models.norm import FrozenBatchNorm, GhostBatchNorm, SyncedBatchNorm
from resnet_models.pooling import (
    AveragePool,
    BlurPool,
    ConcatenatedPool,
    GeneralisedMeanPool,
    GlobalAveragePool,
    GlobalMaxPool,
    MaxPool,
)
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import load_strict
from resnet_models.whitening import PatchWhitening, whiten_stem

TINY = ModelSpec(stem="cifar", depths=(2, 2), channels=(8, 16), num_classes=5)


def images(count: int = 4, side: int = 9, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def tiny(**changes: object) -> ResNet:
    return build(ModelSpec.from_json({**TINY.to_json(), **changes}))


def by_hand(block: ResidualBlock, ordering: str, x: Tensor) -> Tensor:
    """Compute a basic block with an identity shortcut as fig. 4 of arXiv:1603.05027 draws it."""
    conv1, conv2, norm1, norm2 = (block.get_submodule(name) for name in ("conv1", "conv2", "norm1", "norm2"))
    if ordering == "original":
        return F.relu(x + norm2(conv2(F.relu(norm1(conv1(x))))))
    if ordering == "norm_after_addition":
        return F.relu(norm2(x + conv2(F.relu(norm1(conv1(x))))))
    if ordering == "relu_before_addition":
        return x + F.relu(norm2(conv2(F.relu(norm1(conv1(x))))))
    if ordering == "relu_only_preactivation":
        return x + norm2(conv2(F.relu(norm1(conv1(F.relu(x))))))
    return x + conv2(F.relu(norm2(conv1(F.relu(norm1(x))))))


@pytest.mark.parametrize(
    ("ordering", "kind"),
    [
        ("original", BasicBlock),
        ("norm_after_addition", BasicBlock),
        ("relu_before_addition", BasicBlock),
        ("relu_only_preactivation", PreactBasicBlock),
        ("full_preactivation", PreactBasicBlock),
    ],
)
def test_the_five_orderings_of_figure_4(ordering: str, kind: type[BasicBlock | PreactBasicBlock]) -> None:
    torch.manual_seed(0)
    block = kind(6, 6, stride=1, parts=BlockParts(ordering=ordering)).eval()
    for norm in (block.norm1, block.norm2):
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    x = images(channels=6)
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(block(x), by_hand(block, ordering, x))
        assert torch.equal(block(x), block.merge(block.branch(x), block.skip(x)))
    assert torch.equal(x, before), "the input is others' to see"
    assert (block.last_norm is None) == (ordering == "full_preactivation")


@pytest.mark.parametrize("ordering", ["relu_only_preactivation", "full_preactivation"])
def test_preactivation_networks_activate_what_the_blocks_leave_open(ordering: str) -> None:
    network = tiny(block="preact_basic", ordering=ordering).eval()
    x = images()
    with torch.no_grad():
        last = network.stage_outputs(x)[-1]
        before = last.clone()
        finished = network.finish(last)
        assert finished.min() >= 0 > last.min()
        assert torch.equal(last, before)
        assert (network.norm is None) == (ordering == "relu_only_preactivation")
        stem = network.stem(x)
        assert (network.stem.get_submodule("norm") if ordering.startswith("relu") else None) is network.stem.norm
        assert stem.min() < 0, "the first block brings the activation"


@pytest.mark.parametrize("kind", [BottleneckBlock, PreactBottleneckBlock])
@pytest.mark.parametrize("downsample", ["stride", "blur", "average", "max", "max_before_norm"])
@pytest.mark.parametrize("stride_first", [False, True])
def test_blocks_shrink_in_one_place(
    kind: type[BottleneckBlock | PreactBottleneckBlock], downsample: str, stride_first: bool
) -> None:
    ordering = "full_preactivation" if kind is PreactBottleneckBlock else "original"
    parts = BlockParts(ordering=ordering, downsample=downsample)
    block = kind(4, 4, 8, stride=2, stride_first=stride_first, parts=parts)
    for side in (7, 8):
        assert block(images(side=side, channels=4)).shape == (4, 8, 4, 4)
    strided = [name for name, module in block.named_children() if getattr(module, "stride", 1) in (2, (2, 2))]
    place = "1" if stride_first else "2"
    assert strided == [f"conv{place}" if downsample == "stride" else f"shrink{place}"]


def test_a_pooling_before_the_norm_sees_the_convolution() -> None:
    block = BasicBlock(4, 8, stride=2, parts=BlockParts(downsample="max_before_norm")).train()
    plain = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    for side in (7, 8):
        x = images(side=side, channels=4)
        pooled = F.max_pool2d(block.conv1(x), 2, ceil_mode=True)
        torch.testing.assert_close(block.branch(x), plain[1](block.conv2(plain[0](pooled).relu())))


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("side", [7, 8, 9])
def test_maxima_are_of_overlapping_windows_or_of_tiles(stride: int, side: int) -> None:
    x = images(side=side)
    assert torch.equal(MaxPool(stride=stride)(x), F.max_pool2d(x, 3, stride=stride, padding=1))
    tiles = MaxPool(stride=stride, tiled=True)(x)
    assert tiles.shape[-1] == math.ceil(side / stride)
    assert torch.equal(tiles[:, :, -1, 0], x[:, :, (tiles.shape[-1] - 1) * stride :, :stride].amax((2, 3)))


def test_a_ghost_batch_is_a_batch_of_its_own() -> None:
    torch.manual_seed(0)
    ghost, plain = GhostBatchNorm(3, size=4), [nn.BatchNorm2d(3) for _ in range(2)]
    x = images(count=8)
    out = ghost(x)
    assert torch.equal(out, torch.cat([norm(part) for norm, part in zip(plain, x.split(4), strict=True)]))
    for name in ("running_mean", "running_var"):
        merged = sum(getattr(norm, name) for norm in plain) / 2
        torch.testing.assert_close(getattr(ghost, name), merged, rtol=1e-5, atol=1e-6)
    assert ghost.num_batches_tracked == 1
    assert torch.equal(
        ghost.eval()(x), F.batch_norm(x, ghost.running_mean, ghost.running_var, ghost.weight, ghost.bias)
    )


def test_ghost_batches_of_a_short_batch_are_as_equal_as_can_be() -> None:
    ghost = GhostBatchNorm(3, size=4)
    x = images(count=5)
    expected = torch.cat([nn.BatchNorm2d(3)(part) for part in (x[:3], x[3:])])
    assert torch.equal(ghost(x), expected)
    means = [part.mean((0, 2, 3)) for part in (x[:3], x[3:])]
    torch.testing.assert_close(ghost.running_mean, 0.1 * (means[0] * 3 + means[1] * 2) / 5)
    one = GhostBatchNorm(3, size=4)
    assert torch.equal(one(x[:1, :, :1, :1]), x[:1, :, :1, :1] / math.sqrt(1 + one.eps)), "no variance: running figures"
    assert torch.equal(one.running_mean, torch.zeros(3))
    assert GhostBatchNorm(3, size=4)(x[:0]).shape == (0, 3, 9, 9)


def test_ghosts_are_cut_where_they_are_told_to_meet() -> None:
    ghost, x = GhostBatchNorm(3, size=4), images(count=5)
    ghost.cuts = (1, 0, 4)
    assert torch.equal(ghost(x), torch.cat([nn.BatchNorm2d(3)(part) for part in (x[:1], x[1:])]))
    means = [part.mean((0, 2, 3)) for part in (x[:1], x[1:])]
    torch.testing.assert_close(ghost.running_mean, 0.1 * (means[0] + means[1] * 4) / 5)
    with pytest.raises(ValueError, match="was told to cut 5 images and was given 4"):
        ghost(x[:4])


def test_frozen_norms_take_batch_norms_weights_and_never_change() -> None:
    torch.manual_seed(0)
    trained = tiny().train()
    trained(images(count=8))
    frozen = tiny(norm="frozen").train()
    load_strict(frozen, trained.state_dict())
    x = images(seed=3)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    out = frozen(x)
    torch.testing.assert_close(out, trained.eval()(x))
    out.sum().backward()
    assert not [name for name, _ in frozen.named_parameters() if ".norm" in name]
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.state_dict().items())
    assert isinstance(frozen.get_submodule("stages.0.0.norm1"), FrozenBatchNorm)


def test_a_synced_norm_alone_is_batch_norm() -> None:
    torch.manual_seed(0)
    synced, plain = SyncedBatchNorm(3), nn.BatchNorm2d(3)
    x = images()
    assert torch.equal(synced(x), plain(x))
    assert torch.equal(synced.running_var, plain.running_var)


@pytest.mark.parametrize(("norm", "size"), [("ghost", 2), ("group", 4), ("sync", 0), ("frozen", 0)])
def test_networks_train_with_every_norm(norm: str, size: int) -> None:
    network = tiny(norm=norm, norm_size=size).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x, targets = images(count=6), torch.tensor([0, 1, 2, 3, 4, 0])
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(network(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_group_norm_networks_do_not_look_at_the_batch() -> None:
    network = tiny(norm="group", norm_size=4).train()
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_gates_are_the_papers() -> None:
    torch.manual_seed(0)
    x = images(channels=32)
    gate = SqueezeExcitation(32, reduction=4)
    squeezed = F.relu(F.linear(x.mean((2, 3)), gate.reduce.weight.flatten(1), gate.reduce.bias))
    scale = torch.sigmoid(F.linear(squeezed, gate.expand.weight.flatten(1), gate.expand.bias))
    torch.testing.assert_close(gate(x), x * scale[:, :, None, None])
    assert [SqueezeExcitation(c, reduction=16).reduce.out_channels for c in (64, 256, 320)] == [8, 16, 24]
    # arXiv:1910.03151, table 1 and sec. 3.2.3: 3 up to 64 channels, 5 from 128 on
    assert [EfficientChannelAttention(c).conv.kernel_size for c in (8, 64, 128, 256, 512, 2048)] == [
        (3,), (3,), (5,), (5,), (5,), (7,),
    ]  # fmt: skip


def test_head_pools() -> None:
    x = images(side=5).abs() + 0.1
    mean, largest = x.mean((2, 3)), x.amax((2, 3))
    torch.testing.assert_close(GlobalAveragePool()(x), mean)
    torch.testing.assert_close(GlobalMaxPool()(x), largest)
    torch.testing.assert_close(ConcatenatedPool()(x), torch.cat([mean, largest], dim=1))
    gem = GeneralisedMeanPool()
    torch.testing.assert_close(gem(x), x.pow(3).mean((2, 3)).pow(1 / 3))
    gem(x).sum().backward()
    assert gem.power.grad is not None
    with torch.no_grad():
        gem.power.fill_(1.0)
        torch.testing.assert_close(gem(x), mean)
    network = tiny(head_pool="concat")
    assert network.head.in_features == network.spec.feature_channels == 32


def test_poolings_inside_shrink_as_strided_convolutions_do() -> None:
    constant = torch.full((1, 2, 7, 9), 3.0)
    for stride in (2, 3, 4):
        for pool in (BlurPool(2, stride=stride), AveragePool(stride=stride)):
            shape = nn.Conv2d(2, 2, 3, stride=stride, padding=1)(constant).shape
            assert torch.equal(pool(constant), torch.full(shape, 3.0)), "no border darkens"
    spike = torch.zeros(1, 1, 5, 5)
    spike[0, 0, 2, 2] = 16.0
    assert torch.equal(BlurPool(1, stride=2)(spike)[0, 0], torch.tensor([[0.0, 0, 0], [0, 4, 0], [0, 0, 0]]))
    assert not BlurPool(2, stride=2).state_dict(), "a constant of the code"


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "silu", "gelu", "mish", "hard_swish"])
def test_activations(name: str) -> None:
    x = images()
    function = {"hard_swish": F.hardswish}.get(name) or getattr(F, name)
    torch.testing.assert_close(make_activation(name)(x.clone()), function(x))
    network = tiny(activation=name).train()
    network(images()).sum().backward()
    used = {type(module) for module in network.modules()} & {
        nn.ReLU,
        nn.LeakyReLU,
        nn.SiLU,
        nn.GELU,
        nn.Mish,
        nn.Hardswish,
    }
    assert used == {type(make_activation(name))}


def test_whitening_makes_patches_white() -> None:
    torch.manual_seed(0)
    base = F.avg_pool2d(torch.randn(64, 3, 20, 20), 3, stride=1, padding=1)  # smooth, as photographs are
    x = base + base.mean(dim=1, keepdim=True)
    network = tiny(stem="whitening")
    layer = network.stem.get_submodule("whitening")
    assert isinstance(layer, PatchWhitening)
    first = layer.directions.clone()
    half = len(first) // 2
    flat = first[:half].flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(half), rtol=1e-5, atol=1e-6)
    whiten_stem(network, x, damping=1e-6)
    out = layer(x)[:, :half, 1:-1, 1:-1].transpose(0, 1).flatten(1)
    covariance = torch.cov(out)
    torch.testing.assert_close(covariance, torch.eye(half), rtol=0.0, atol=0.02)
    assert torch.equal(layer.directions[half:], -layer.directions[:half])
    again = tiny(stem="whitening")
    whiten_stem(again, x, damping=1e-6)
    assert torch.equal(again.state_dict()["stem.whitening.directions"], layer.directions)
    assert not [name for name, _ in network.named_parameters() if "whitening" in name]


def test_whitening_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="the network has no whitening layer; build it with stem=whitening"):
        whiten_stem(tiny(), images())
    with pytest.raises(
        ValueError, match=r"images have shape \[4, 1, 9, 9\]; give \(N, 3, H, W\) with sides of at least 3"
    ):
        whiten_stem(tiny(stem="whitening"), images(channels=1))


def test_other_numbers_of_channels() -> None:
    for channels in (1, 2, 7):
        for stem in ("cifar", "imagenet", "deep", "tiered", "whitening"):
            network = tiny(in_channels=channels, stem=stem).eval()
            assert network(images(side=20, channels=channels)).shape == (4, 5)


def test_stem_pools() -> None:
    x = images(side=33)
    for pool, side in (("max", 9), ("average", 9), ("blur", 9), ("convolution", 9), ("none", 17)):
        for block in ("basic", "preact_basic"):
            network = tiny(stem="imagenet", stem_pool=pool, block=block).eval()
            assert network.stem(x).shape == (4, 8, side, side), pool
    assert (
        sum(type(module) is nn.BatchNorm2d for module in tiny(stem="imagenet", stem_pool="convolution").stem.modules())
        == 2
    )


def test_noise_is_a_function_of_the_samples_keys() -> None:
    network = tiny(
        drop_path_rate=0.5,
        drop_block_rate=0.2,
        drop_block_size=3,
        block_dropout=0.2,
        head_dropout=0.2,
        norm="group",
        norm_size=4,
    )
    x, keys = images(), torch.tensor([3, 1, 4, 159])
    with torch.no_grad():
        eager = network.train()(x, sample_keys=keys)
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(network(x[order], sample_keys=keys[order]), eager[order])
        assert not torch.allclose(network(x, sample_keys=keys + 1), eager)
        assert not torch.allclose(network(x), network(x)), "without keys torch's generator decides"
        network.eval()
        assert torch.equal(network(x, sample_keys=keys), network(x))


def test_noise_stands_where_the_papers_put_it() -> None:
    network = tiny(depths=[2, 2, 2], channels=[8, 8, 8], drop_path_rate=0.5, drop_block_rate=0.1, block_dropout=0.3)
    blocks = [block for stage in network.stages for block in stage]
    assert [block.drop_path.rate if block.drop_path else 0.0 for block in blocks] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    )
    assert [block.drop_block is not None for block in blocks] == [False] * 2 + [True] * 4
    layers = [module.layer for module in network.modules() if hasattr(module, "layer")]
    assert len(layers) == len(set(layers)) == 5 + 4 + 6
    assert BlockNoise().make_dropout() is None


def test_exits_stand_behind_their_stages() -> None:
    network = tiny(exits=[1], block="preact_basic")
    assert network.exits is not None
    outputs = network.eval().stage_outputs(images())
    assert network.exits["1"](outputs[0]).shape == (4, 5)
    assert [name for name in network.state_dict() if name.startswith("exits.1.head")] == [
        "exits.1.head.weight",
        "exits.1.head.bias",
    ]
