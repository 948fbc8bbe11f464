"""The shape of `resnet_models`: a light spec, plain constructors, no state while building, no `torch.jit`."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import resnet_models
from resnet_models.resnet import build
from resnet_models.zoo import named_spec

SOURCES = sorted(Path(resnet_models.__path__[0]).rglob("*.py"))
MAX_ARGUMENTS = 10
IMPORT_BAR_S = 0.050


def module_classes() -> list[type[nn.Module]]:
    found = set()
    for info in pkgutil.walk_packages(resnet_models.__path__, "resnet_models."):
        for _, member in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if issubclass(member, nn.Module) and member.__module__.startswith("resnet_models."):
                found.add(member)
    return sorted(found, key=lambda kind: kind.__qualname__)


def test_spec_loads_in_a_twentieth_of_a_second_and_without_torch() -> None:
    code = (
        "import sys, time\nbegan = time.process_time()\nimport resnet_models.spec\n"
        "elapsed = time.process_time() - began\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'safetensors', 'pipelines'} & set(sys.modules)\n"
        "assert not heavy, heavy\nprint(elapsed)"
    )
    best = float("inf")
    for _ in range(10):  # the least of some, in time of the processor: a busy machine is not the package's cost
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        best = min(best, float(done.stdout))
        if best < IMPORT_BAR_S:
            break
    assert best < IMPORT_BAR_S


@pytest.mark.parametrize("kind", module_classes(), ids=lambda kind: kind.__name__)
def test_constructors_take_few_arguments_each_with_a_name(kind: type[nn.Module]) -> None:
    arguments = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    assert len(arguments) <= MAX_ARGUMENTS, arguments
    if "__init__" in vars(kind):
        kinds = {parameter.kind for parameter in inspect.signature(kind.__init__).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD}, "**kwargs let a misspelt option live"


def test_the_classes_are_found() -> None:
    names = {kind.__name__ for kind in module_classes()}
    assert {"ResNet", "BasicBlock", "PreactBottleneckBlock", "Ensemble"} <= names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_jit_and_no_state_beside_the_modules(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Global), f"{path}:{node.lineno} keeps state"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "jit"), f"{path}:{node.lineno} uses torch.jit"
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("torch.jit") for alias in node.names), path
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not any(name.startswith("torch.jit") for name in names), path


def test_building_leaves_nothing_behind() -> None:
    """Layer numbers of random draws and weights are those of the spec, whatever was built before."""
    spec = named_spec("resnet20", drop_path_rate=0.5, head_dropout=0.5)

    def described() -> list[tuple[str, int | None]]:
        return [(name, getattr(module, "layer", None)) for name, module in build(spec).named_modules()]

    first = described()
    assert sum(layer is not None for _, layer in first) > 5
    build(named_spec("resnet32", drop_path_rate=0.1))
    assert described() == first
