import pytest

import cluster.code as code
from cluster.code import PACKAGES, find_packages, list_code, stage_code
from pipelines.errors import ClusterError


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "src" / "pipelines"
    (folder / "config" / "presets").mkdir(parents=True)
    for name in ("__init__.py", "api.py", "py.typed", "config/presets/a.yaml"):
        (folder / name).write_text("x\n")
    for name in ("model.safetensors", "data.parquet", ".env", "auth_token", "notes.txt", "photo.jpg"):
        (folder / name).write_text("not code\n")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "api.cpython-311.py").write_text("x")
    (folder / "link.py").symlink_to(tmp_path / "elsewhere.py")
    return folder


def paths(package):
    return [file.path for file in list_code({"pipelines": package})]


def test_only_sources_and_presets_are_shipped(package):
    assert paths(package) == [
        "pipelines/__init__.py",
        "pipelines/api.py",
        "pipelines/config/presets/a.yaml",
        "pipelines/py.typed",
    ]


def test_rayignore_beside_and_inside_the_package_is_honoured(package):
    (package.parent / ".rayignore").write_text("# a comment\n\nconfig/\n")
    (package / ".rayignore").write_text("api.py\n")
    assert paths(package) == ["pipelines/__init__.py", "pipelines/py.typed"]


def test_staged_code_is_importable_and_complete(tmp_path):
    target = tmp_path / "code"
    folders = stage_code(target)
    assert [folder.rsplit("/", 1)[1] for folder in folders] == sorted(PACKAGES)
    assert (target / "cluster" / "job.py").is_file()
    assert (target / "pipelines" / "config" / "presets" / "score" / "gpu.yaml").is_file()
    assert not list(target.rglob("*.pyc"))


def test_code_that_is_too_large_is_refused_naming_the_largest_file(package, tmp_path, monkeypatch):
    monkeypatch.setattr(code, "_LIMIT_BYTES", 5)
    (package / "huge.py").write_text("#" * 100)
    with pytest.raises(ClusterError, match="the code to ship is 0 MiB, more than 0 MiB") as refused:
        stage_code(tmp_path / "code", {"pipelines": package})
    assert refused.value.where == str(package / "huge.py")
    assert refused.value.mend == "list what does not belong in .rayignore"


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ClusterError, match="package no_such_package is not installed as plain files"):
        find_packages(["no_such_package"])
