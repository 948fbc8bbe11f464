"""How Ray Train sets up our workers: a handler of SIGTERM in each, and torch's process group where there are several.

Free of torch where it is imported: Ray's controller reads this module before it starts the first worker, and importing
torch there takes as long as it does in the worker.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig

from pipelines.train.notice import watch_sigterm

SILENCE_S = 300
"""Seconds that workers wait for one of them before the group counts as failed and is started anew. With torch's 1800 a
frozen worker would hold all others for half an hour. It must be more than what one does alone while the others wait:
decode its part of a split, or have the last checkpoint written."""


@dataclass
class WorkerConfig(BackendConfig):  # type: ignore[misc]
    """Settings of `WorkerBackend`."""

    has_group: bool = True
    """Whether the workers form a process group; a lone one on a CPU needs none."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Return the class that does the work."""
        return WorkerBackend

    @property
    def train_func_context(self) -> Any:
        """Return what surrounds the training function in each worker."""
        if not self.has_group:
            return nullcontext
        return _torch_config().train_func_context


class WorkerBackend(Backend):  # type: ignore[misc]
    """Ray's torch backend, left out where it is not needed, and a handler of SIGTERM."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: WorkerConfig) -> None:
        """Set the workers up; runs in the controller, what it executes in each worker's main thread."""
        if backend_config.has_group:
            self._torch().on_start(worker_group, _torch_config())
        # Ray's own handler ends a worker that is told so; signals reach the main thread, and training runs in another.
        worker_group.execute(watch_sigterm)

    def on_training_start(self, worker_group: Any, backend_config: WorkerConfig) -> None:
        """Do what is left before the training function runs."""
        if backend_config.has_group:
            self._torch().on_training_start(worker_group, _torch_config())

    def on_shutdown(self, worker_group: Any, backend_config: WorkerConfig) -> None:
        """Leave the process group."""
        if backend_config.has_group:
            self._torch().on_shutdown(worker_group, _torch_config())

    def _torch(self) -> Any:
        return _torch_config().backend_cls()


def _torch_config() -> Any:
    from ray.train.torch import TorchConfig

    return TorchConfig(timeout_s=SILENCE_S)
