"""What workers are given of the driver's environment, and what a session leaves in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import ray_runtime
from pipelines.errors import ConfigError


@pytest.mark.parametrize(
    "name", ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_SERVICE_ACCOUNT_KEY"]
)
def test_keys_travel_in_the_hook_and_not_in_the_open(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "photos")
    monkeypatch.setenv(name, "correct-horse")
    passed = ray_runtime.worker_environment()
    assert passed["AZURE_STORAGE_ACCOUNT_NAME"] == "photos"
    assert name not in passed
    hook = ray_runtime._make_secrets_hook()["worker_process_setup_hook"]
    monkeypatch.delenv(name)
    hook()
    assert os.environ[name] == "correct-horse"


WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


def test_nodes_are_not_watched_in_a_cluster_of_our_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv(WATCHER, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    seen: list[str | None] = []
    is_up = [True]  # somebody connected this process to a cluster before
    monkeypatch.setattr(ray, "is_initialized", lambda: is_up[0])
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_runtime, "_describe", lambda: ray_runtime.RaySession(1.0, 0.0, 1))

    def connect(*_: Any) -> None:
        seen.append(os.environ.get(WATCHER))

    monkeypatch.setattr(ray_runtime, "_connect", connect)
    with ray_runtime.ray_session():
        assert WATCHER not in os.environ
    is_up[0] = False
    with ray_runtime.ray_session():
        assert os.environ[WATCHER] == "0"
    assert WATCHER not in os.environ
    with ray_runtime.ray_session(ray_runtime.RayConfig(address="auto")):
        assert WATCHER not in os.environ
    assert seen == ["0", None]


def test_what_will_be_wanted_is_imported_while_ray_comes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_runtime, "_describe", lambda: ray_runtime.RaySession(1.0, 0.0, 1))
    monkeypatch.setattr(ray_runtime, "_connect", lambda *_: None)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with ray_runtime.ray_session(imports=("pipelines.no_such_module",)):
        pass
    with ray_runtime.ray_session(imports=("colorsys",)):
        assert "colorsys" in sys.modules


@pytest.mark.parametrize("name", ["pipelines/__init__.py", "resnet_models.py", "cluster/__init__.py"])
def test_a_folder_whose_packages_workers_would_import_in_our_place_is_refused(workspace: Path, name: str) -> None:
    (workspace / "pipelines").mkdir()  # without code it is a folder as any other
    ray_runtime._refuse_namesakes(workspace)
    ray_runtime._refuse_namesakes(Path(ray_runtime.__file__).parents[1])  # a checkout of our own
    path = workspace / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    refuses = pytest.raises(ConfigError, match="has the name of a part of this program")
    with refuses as refused, ray_runtime.ray_session():
        pass
    assert str(path) in refused.value.what
