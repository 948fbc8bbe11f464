from copy import copy
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from cluster import doctor
from cluster.doctor import (
    Check,
    check_cluster,
    check_environment,
    check_packages,
    check_python,
    check_shared_memory,
    check_storage,
    check_versions,
    worst,
)


@pytest.mark.parametrize(
    ("python", "status", "words"),
    [
        ((3, 11, 7), "warn", "known holes"),
        ((3, 11, 17), "ok", "3.11.17"),
        ((3, 12, 14), "warn", "known holes"),
        ((3, 13, 16), "ok", "3.13.16"),
        ((3, 10, 1), "warn", "not among the tested"),
    ],
)
def test_python_versions_with_holes_are_told(python, status, words):
    check = check_python(python)
    assert check.status == status
    assert words in check.found
    assert bool(check.cure) == (status != "ok")


def test_package_versions_with_holes_fail_and_name_the_cure():
    installed = {"ray": "2.55.1", "mlflow": "3.17.2", "torch": "2.10.0+cu130", "pillow": "12.3.0"}

    def find(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    checks = {check.name: check for check in check_versions(find)}
    assert checks["ray"] == Check("ray", "fail", "2.55.1 has known holes", "pip install 'ray>=2.56'")
    assert checks["pyarrow"] == Check("pyarrow", "fail", "not installed", "pip install 'pyarrow>=14.0.1'")
    assert [checks[name].status for name in ("mlflow", "torch", "pillow")] == ["ok", "ok", "ok"]


@pytest.mark.parametrize(
    "name",
    [
        "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
        "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION",
    ],
)
def test_unsafe_switches_fail_when_on_and_pass_when_off(name):
    check = check_environment({name: "1"})
    assert check == Check("environment", "fail", f"unsafe switches are on: {name}", f"unset {name}")
    assert check_environment({name: "false"}).status == "ok"


def test_a_package_that_shadows_ours_is_found(tmp_path, monkeypatch):
    assert check_packages().status == "ok"
    foreign = tmp_path / "pipelines" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("")
    find_spec = doctor.importlib.util.find_spec

    def shadowed(name):
        spec = copy(find_spec(name))  # the module itself holds the original
        if name == "pipelines":
            spec.origin = str(foreign)
        return spec

    monkeypatch.setattr(doctor.importlib.util, "find_spec", shadowed)
    check = check_packages()
    assert check.status == "fail"
    assert "something shadows it" in check.found
    assert str(foreign.parent) in check.cure


def test_small_shared_memory_warns(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 64 << 20}))
    check = check_shared_memory(str(tmp_path))
    assert check.status == "warn"
    assert check.found.startswith("64 MB free")


def test_storage_is_written_read_and_left_as_it_was(tmp_path):
    place = tmp_path / "new" / "runs"
    assert check_storage(str(place)).status == "ok"
    assert not place.exists()
    assert check_storage("memory://doctor").status == "ok"


def test_storage_that_lets_a_second_writer_win_fails(monkeypatch, tmp_path):
    from pipelines.storage import LocalStorage

    monkeypatch.setattr(LocalStorage, "create", LocalStorage.put)
    check = check_storage(str(tmp_path))
    assert check.status == "fail"
    assert "lets a second writer replace an object" in check.found


def test_storage_that_cannot_be_written_fails_with_its_words(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    check = check_storage(str(file / "below"))
    assert check.status == "fail"
    assert "cannot write" in check.found


def test_a_cluster_that_does_not_answer_is_one_failed_check():
    checks = check_cluster("http://127.0.0.1:1")
    assert [check.status for check in checks] == ["fail"]
    assert "no Ray job server answers" in checks[0].found


def test_worst_is_the_gravest():
    assert worst([Check("a", "ok", ""), Check("b", "warn", "")]) == "warn"
    assert worst([Check("a", "ok", ""), Check("b", "warn", ""), Check("c", "fail", "")]) == "fail"
    assert worst([]) == "ok"


def test_a_torch_that_cannot_use_the_gpu_that_is_there_fails(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver_version", lambda: "550.54")
    check = doctor.check_torch()
    assert check.status == "fail"
    assert "every run would be on the CPU" in check.found
    monkeypatch.setattr(doctor, "_driver_version", lambda: "")
    assert doctor.check_torch().status == "ok"


def test_security_page_names_every_version_that_doctor_asks_for():
    text = (Path(__file__).parents[3] / ".github" / "SECURITY.md").read_text()
    for name, least in doctor._SAFE_VERSIONS.items():
        assert f"{name} {'.'.join(map(str, least))}" in text
