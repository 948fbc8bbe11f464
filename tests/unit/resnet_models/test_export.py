"""Networks leave Python: `torch.export`, `torch.compile` and ONNX, with open batch and image size, logits checked.

The seven tiny networks of `KINDS` hold every kind of block, stem, shortcut, pooling, norm, activation and gate between
them. The rest are slow: python -m pytest -m slow tests/unit/resnet_models/test_export.py
"""

from __future__ import annotations

import io
import shutil
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from resnet_models import spec_fields
from resnet_models.resnet import ResNet, build
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec, spec_names

TINY = {"num_classes": 3, "channels": (16, 32), "depths": (1, 2)}
KINDS: dict[str, ModelSpec] = {
    "basic": ModelSpec(block="basic", stem="cifar", shortcut="zero_pad", **TINY),
    "bottleneck": ModelSpec(
        block="bottleneck",
        stem="imagenet",
        shortcut="projection",
        ordering="norm_after_addition",
        norm="group",
        norm_size=8,
        activation="silu",
        attention="se",
        stem_pool="max",
        downsample="blur",
        head_pool="max",
        **TINY,
    ),
    "preact_basic": ModelSpec(
        block="preact_basic",
        stem="deep",
        shortcut="all_projection",
        ordering="relu_only_preactivation",
        norm="ghost",
        norm_size=2,
        activation="leaky_relu",
        attention="eca",
        stem_pool="blur",
        downsample="average",
        head_pool="gem",
        drop_path_rate=0.5,
        block_dropout=0.5,
        **TINY,
    ),
    "preact_bottleneck": ModelSpec(
        block="preact_bottleneck",
        stem="tiered",
        shortcut="average_pool",
        ordering="full_preactivation",
        stride_placement="v1",
        cardinality=2,
        norm="sync",
        activation="gelu",
        stem_pool="average",
        downsample="max_before_norm",
        head_pool="concat",
        head_dropout=0.5,
        **TINY,
    ),
    "relu_before_addition": ModelSpec(
        block="basic",
        stem="whitening",
        shortcut="blur_pool",
        ordering="relu_before_addition",
        norm="frozen",
        activation="mish",
        drop_block_rate=0.2,
        drop_block_size=3,
        exits=(1,),
        **TINY,
    ),
    "pooling_convolution": ModelSpec(
        block="bottleneck",
        stem="imagenet",
        ordering="original",
        activation="hard_swish",
        stem_pool="convolution",
        downsample="max",
        **TINY,
    ),
    "no_stem_pool": ModelSpec(
        block="bottleneck", stem="deep", stem_pool="none", cardinality=4, base_width=16, activation="relu", **TINY
    ),
}
COVERED = {
    "block": spec_fields.BlockName,
    "stem": spec_fields.StemName,
    "shortcut": spec_fields.ShortcutName,
    "stride_placement": spec_fields.StrideName,
    "ordering": spec_fields.OrderingName,
    "norm": spec_fields.NormName,
    "activation": spec_fields.ActivationName,
    "attention": spec_fields.AttentionName,
    "stem_pool": spec_fields.StemPoolName,
    "downsample": spec_fields.DownsampleName,
    "head_pool": spec_fields.HeadPoolName,
}
DEEPEST = 152
OPEN = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
every_kind = pytest.mark.parametrize("kind", KINDS)


def layers_of(name: str) -> int:
    spec = named_spec(name)
    return sum(spec.stage_depths) * (3 if spec.is_bottleneck else 2) + 2


NAMED = [name for name in spec_names() if layers_of(name) <= DEEPEST]


def ready(spec: ModelSpec) -> ResNet:
    """Return a network in eval mode whose norms hold figures of their own."""
    network = build(spec).eval()
    generator = torch.Generator().manual_seed(1)
    for name, figures in network.named_buffers():
        if name.endswith("running_mean"):
            figures.copy_(torch.randn(figures.shape, generator=generator) * 0.1)
        elif name.endswith("running_var"):
            figures.copy_(torch.rand(figures.shape, generator=generator) + 0.5)
    return network


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def equal(found: Tensor, expected: Tensor, *, within: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert torch.isfinite(expected).all()
    assert float((found - expected).abs().max()) <= within * float(expected.abs().max())


def check_exported(network: ResNet, *, sizes: list[tuple[int, int, int]], traced: tuple[int, int, int]) -> None:
    with torch.no_grad():
        program = torch.export.export(network, (images(*traced),), dynamic_shapes={"x": OPEN}).module()
        for size in sizes:
            equal(program(images(*size)), network(images(*size)))


def test_every_choice_is_among_the_kinds() -> None:
    for field, choices in COVERED.items():
        seen = {getattr(spec, field) for spec in KINDS.values()}
        assert set(get_args(choices)) - {"auto"} <= seen, field


@every_kind
def test_export_of_every_kind(kind: str) -> None:
    check_exported(ready(KINDS[kind]), traced=(2, 32, 40), sizes=[(5, 33, 47), (1, 64, 31), (3, 32, 32)])


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["basic", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:])])
def test_compile_traces_every_kind(kind: str) -> None:
    """One graph without breaks, forward and backward, for every size; inductor's code is tested below."""
    torch._dynamo.reset()
    network = ready(KINDS[kind])
    compiled = torch.compile(network, backend="aot_eager", dynamic=True, fullgraph=True)
    for size in [(2, 32, 40), (5, 33, 47)]:
        equal(compiled(images(*size)), network(images(*size)))
    loss = compiled(images(4, 35, 35)).square().sum()
    expected = network(images(4, 35, 35)).square().sum()
    weights = [weight for name, weight in network.named_parameters() if not name.startswith("exits.")]
    for found, gradient in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True):
        equal(found, gradient, within=1e-4)


def check_onnx(network: nn.Module, *, traced: tuple[int, int, int], sizes: list[tuple[int, int, int]]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with torch.no_grad():
        program = torch.onnx.export(network, (images(*traced),), dynamo=True, dynamic_shapes={"x": OPEN}, verbose=False)
        assert program is not None
        file = io.BytesIO()
        program.save(file)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        for size in sizes:
            (logits,) = session.run(None, {entry.name: images(*size).numpy()})
            equal(torch.from_numpy(logits), network(images(*size)), within=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@every_kind
def test_onnx_of_every_kind(kind: str) -> None:
    check_onnx(ready(KINDS[kind]), traced=(2, 32, 40), sizes=[(5, 33, 47), (1, 64, 31)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@every_kind
def test_compiled_code_of_every_kind(kind: str) -> None:
    torch._dynamo.reset()
    network = ready(KINDS[kind])
    compiled = torch.compile(network, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for size in [(2, 32, 40), (5, 33, 47)]:
            equal(compiled(images(*size)), network(images(*size)), within=1e-4)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnext50_32x4d"])
def test_export_of_a_few_named_networks(name: str) -> None:
    check_exported(ready(named_spec(name)), traced=(2, 64, 64), sizes=[(3, 65, 79)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMED)
def test_export_of_every_named_network(name: str) -> None:
    side = 32 if named_spec(name).has_small_stem else 64
    check_exported(ready(named_spec(name)), traced=(2, side, side), sizes=[(3, side + 1, side + 15), (1, side, side)])
