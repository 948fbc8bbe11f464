"""The shape of the project: imports point one way, files stay small, help stays light, nothing foreign is committed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipelines", "resnet_models", "cluster")
MAX_LINES = 400

# A module may import from its own group's rooms listed earlier, and from every group to its left.
LAYERS = [
    {"errors", "object_listing", "local_folders", "range_file"},
    {"redact"},
    {"config", "storage", "image", "capacity", "stage_output"},
    {"tracking_answers"},
    {"progress", "tracking_records", "tracking_sender", "tracking_store", "ray_runtime", "node_paths", "plots"},
    {"tracking_models", "tracking_runs"},
    {"tracking"},
    {"metrics", "dataset"},
    {"sources", "package"},
    {"ingest", "train"},
    {"evaluate"},
    {"registry"},
    {"tune", "score"},
    {"runner"},
    {"api"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
SAME_LAYER = {("stage_output", "config"), ("stage_output", "storage"), ("ray_runtime", "progress")}
TORCH_FREE = ("image", "dataset", "sources", "metrics", "plots", "ingest")


def python_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_leftwards(path: Path) -> None:
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    room = rest[0]
    for module in imports(path):
        target = module.split(".")[0]
        if package == "resnet_models":
            assert target not in ("pipelines", "cluster", "ray", "mlflow"), f"{path} imports {module}"
        if target == "cluster" and package != "cluster":
            assert room == "cli", f"only cli imports cluster, not {path}"
        if target != "pipelines":
            continue
        there = room_of(module)
        if package == "cluster":
            assert there not in ("api", "cli"), f"{path} imports {module}"
        elif package == "pipelines" and there and room != "__init__" and there != room:
            allowed = RANK[there] < RANK[room] or (room, there) in SAME_LAYER
            assert allowed, f"{path.relative_to(ROOT)} ({room}) imports {module} ({there}), which is not to its left"


def test_only_ray_runtime_starts_ray() -> None:
    starters = [path for path in python_files() if "ray.init(" in path.read_text()]
    assert [path.name for path in starters] == ["ray_runtime.py"]


@pytest.mark.parametrize("room", TORCH_FREE)
def test_rooms_that_are_free_of_torch(room: str) -> None:
    for path in (ROOT / "pipelines" / room).rglob("*.py"):
        assert "torch" not in {module.split(".")[0] for module in imports(path)}, path


def test_files_are_small_and_named_for_one_concept() -> None:
    for path in python_files():
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines"
        assert path.stem not in ("utils", "util", "misc", "common", "helpers"), path


def test_init_files_hold_a_docstring_and_at_most_a_lazy_door() -> None:
    def is_lazy(node: ast.stmt) -> bool:
        if isinstance(node, ast.If):  # for type checkers only
            return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if isinstance(node, ast.ImportFrom):
            return node.module in ("__future__", "typing")
        return isinstance(node, ast.FunctionDef) and node.name == "__getattr__"

    for path in python_files():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            assert body, f"{path} has no docstring"
            assert isinstance(body[0], ast.Expr), path
            assert all(is_lazy(node) for node in body[1:]), path


@pytest.mark.parametrize("call", ["eval", "exec", "extractall", "unpack_archive", "mktemp"])
def test_dangerous_calls_are_absent(call: str) -> None:
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                if isinstance(function, ast.Attribute):
                    # `.eval()` without arguments is torch's evaluation mode.
                    named = function.attr == call and not (call == "eval" and not node.args)
                else:
                    named = isinstance(function, ast.Name) and function.id == call
                assert not named, f"{path}:{node.lineno} calls {call}"


def test_nothing_unpickles() -> None:
    for path in python_files():
        modules = {module.split(".")[0] for module in imports(path)}
        assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword):
                value = getattr(node.value, "value", None)
                assert (node.arg, value) not in {("weights_only", False), ("allow_pickle", True), ("shell", True)}, path


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["score", "--help"], ["run", "--help"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom pipelines.cli.main import main\n"
        f"sys.argv = ['resnet', *{command!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'pyarrow', 'numpy', 'matplotlib', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_top_level_is_what_the_project_fixed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tops = {line.split("/")[0] for line in listed.splitlines()}
    fixed = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", *PACKAGES, "tests", "docker"}
    assert {top for top in tops if not top.startswith(".")} <= fixed
