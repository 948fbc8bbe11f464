"""The package's one Python file: our own sources joined mechanically, so that it is no second implementation.

Modules are put in order of their imports, imports of ours are cut out, and every other line stays as it is. That
works because of two rules in `resnet_models` and `pipelines/image`, which this module enforces: imports of ours are
`from module import Name` at the top level, and a top-level name means one thing across all modules.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

BUNDLE_FILE = "network.py"
"""Name of the file inside the package."""

ROOT_MODULE = "pipelines.package.served_model"
_OUR_PACKAGES = ("resnet_models", "pipelines", "cluster")
_BUNDLED = ("resnet_models.", "pipelines.image.", "pipelines.package.predictor", "pipelines.package.served_model")
_DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless"}
"""Import name -> distribution, where they differ."""
_DEFAULT_TOP_K = 5


class BundleError(RuntimeError):
    """Our own sources break a rule that bundling needs; a bug of ours, never a user's."""


@dataclass(frozen=True)
class _Module:
    name: str
    source: str
    tree: ast.Module
    needs: tuple[str, ...]
    """Modules of ours that it imports."""


def make_bundle() -> str:
    """Return the source of the self-contained file: an MLflow model from code.

    Equal installed sources give equal text.

    Raises:
        BundleError: a module breaks one of the rules above; names module and line.
    """
    modules = _sorted_modules()
    _refuse_collisions(modules)
    version = importlib.metadata.version("resnet-pipelines")
    parts = [
        f'"""A residual network for MLflow, made by resnet-pipelines {version} (Apache-2.0) from its own sources.\n\n'
        "It needs the artifacts model.json and weights.safetensors beside it, and none of resnet-pipelines.\n"
        "Joined from: " + ",\n".join(module.name for module in modules) + '.\n"""',
        "from __future__ import annotations",
    ]
    parts += [f"# ---- {module.name}\n\n{_strip(module)}" for module in modules]
    parts.append("# ---- what MLflow loads\n\nimport mlflow.models\n\nmlflow.models.set_model(ServedModel())")
    return "\n\n\n".join(parts) + "\n"


def write_bundle(path: str | Path) -> Path:
    """Write the file of `make_bundle` to `path` and return it; `mlflow.pyfunc.log_model(python_model=...)` takes it.

    Args:
        path: the file to write, or an existing folder, in which `BUNDLE_FILE` is written.
    """
    target = Path(path)
    if target.is_dir():
        target = target / BUNDLE_FILE
    target.write_text(make_bundle(), encoding="utf-8")
    return target


def requirements() -> list[str]:
    """Return what the bundled file needs, pinned to the versions installed here, sorted.

    A local build tag such as `+cpu` or `+cu130` is left off: no index serves it.
    """
    names = {_DISTRIBUTIONS.get(name, name) for name in _outside_imports(_sorted_modules())} | {"mlflow"}
    return sorted(f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names)


def signature(*, is_multi: bool = False) -> ModelSignature:
    """Return the MLflow signature: a binary column `image`, parameter `top_k`, columns of answers out."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("binary", "image")]),
        outputs=Schema(
            [
                ColSpec(Array(DataType.string), "names"),
                ColSpec(Array(DataType.double), "probabilities"),
                ColSpec("string", "reason", required=False),
                *([ColSpec(Array(DataType.string), "labels")] if is_multi else []),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", "long", _DEFAULT_TOP_K)]),
    )


def artifacts(folder: str | Path) -> dict[str, str]:
    """Return `log_model`'s `artifacts` for a local package folder: the weights and the description."""
    return {
        "weights": str(Path(folder) / "weights.safetensors"),
        "description": str(Path(folder) / "model.json"),
    }


def _sorted_modules() -> list[_Module]:
    """Return the modules that the served model needs, each after those it imports."""
    ordered: dict[str, _Module] = {}
    entering: list[str] = []

    def visit(name: str) -> None:
        if name in ordered:
            return
        if name in entering:
            raise BundleError(f"imports form a ring: {' -> '.join([*entering, name])}")
        entering.append(name)
        module = _read(name)
        for needed in module.needs:
            visit(needed)
        entering.pop()
        ordered[name] = module

    visit(ROOT_MODULE)
    return list(ordered.values())


def _read(name: str) -> _Module:
    """Return one of our modules as it is installed, without importing it."""
    if not name.startswith(_BUNDLED):
        raise BundleError(f"{name} cannot be bundled: only {', '.join(_BUNDLED)} can")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise BundleError(f"the source of {name} is not installed")
    source = Path(spec.origin).read_text(encoding="utf-8")
    tree = ast.parse(source)
    needs: list[str] = []
    for node in ast.walk(tree):
        for imported in _imported(node):
            if imported.partition(".")[0] in _OUR_PACKAGES:
                _check_import(name, node, tree)
                needs.append(imported)
    return _Module(name, source, tree, tuple(dict.fromkeys(needs)))


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []


def _check_import(name: str, node: ast.AST, tree: ast.Module) -> None:
    is_plain = isinstance(node, ast.ImportFrom) and node.level == 0 and not any(alias.asname for alias in node.names)
    if not is_plain or node not in tree.body:
        line = getattr(node, "lineno", 0)
        raise BundleError(f"{name} line {line}: imports of ours must be `from module import Name` at the top level")


def _refuse_collisions(modules: list[_Module]) -> None:
    """Refuse a top-level name that two modules bind to different things."""
    owners: dict[str, tuple[str, str]] = {}
    for module in modules:
        for bound, meaning in _bindings(module):
            earlier, its_meaning = owners.setdefault(bound, (module.name, meaning))
            if its_meaning != meaning:
                raise BundleError(f"{bound} is bound in {earlier} and differently in {module.name}; rename one of them")


def _bindings(module: _Module) -> list[tuple[str, str]]:
    """Return each top-level name with what it means: the import, or the module that defines it."""
    found: list[tuple[str, str]] = []
    for node in module.tree.body:
        if isinstance(node, ast.Import):
            found += [(alias.asname or alias.name.partition(".")[0], _import_text(alias)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] not in (*_OUR_PACKAGES, "__future__"):
                found += [(alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names]
        else:
            found += [(name, f"defined in {module.name}") for name in _defined(node)]
    return found


def _import_text(alias: ast.alias) -> str:
    # `import a.b` binds `a`, as `import a` does
    return f"import {alias.name}" if alias.asname else f"import {alias.name.partition('.')[0]}"


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a top-level statement other than an import binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return []  # a docstring
    names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
    names += [part.name for part in ast.walk(node) if isinstance(part, (ast.FunctionDef, ast.ClassDef))]
    return names


def _strip(module: _Module) -> str:
    """Return the module's text without its imports of ours and of `__future__`, otherwise as it is."""
    lines = module.source.splitlines()
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in (*_OUR_PACKAGES, "__future__"):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "\n".join(lines).strip()


def _outside_imports(modules: list[_Module]) -> set[str]:
    """Return the top-level packages, neither ours nor Python's, that the modules import."""
    tops = {
        imported.partition(".")[0]
        for module in modules
        for node in ast.walk(module.tree)
        for imported in _imported(node)
    }
    return tops - set(_OUR_PACKAGES) - set(sys.stdlib_module_names)
