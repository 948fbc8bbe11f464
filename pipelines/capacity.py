"""Every resource request to Ray, in one place, so that no two of them can starve each other."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from pipelines.errors import ClusterError, ConfigError

DRIVER_CPUS = 0.01
"""CPUs of the Tune driver of a multi-worker trial; Ray refuses zero."""

_TUNE_SHARE = 0.99
"""Share of each CPU that a worker inside Tune asks for, so that its driver's 0.01 fits beside it."""

CONTROLLER_FAILURE_LIMIT = 3
"""Ray Train retries a worker group that cannot start without limit by default; a job must end."""


def available_cpus() -> int:
    """Return the CPUs this process may use (cgroup and affinity aware where the platform tells)."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def worker_resources(cpus_per_worker: int = 1, *, use_gpu: bool = False, inside_tune: bool = False) -> dict[str, float]:
    """Return the resources of one training worker; whole CPUs outside Tune, since elastic ranges dislike fractions."""
    resources = {"CPU": cpus_per_worker * _TUNE_SHARE if inside_tune else float(cpus_per_worker)}
    if use_gpu:
        resources["GPU"] = 1.0
    return resources


def cpus_per_worker(
    num_workers: int,
    cluster_cpus: float,
    *,
    requested: int = 0,
    reserve: int = 0,
    node_cpus: Sequence[float] = (),
) -> int:
    """Return how many CPUs each of `num_workers` workers gets; an equal share of what is there unless requested.

    Args:
        num_workers: how many share.
        cluster_cpus: CPUs of the whole cluster.
        requested: what the user asked for; 0 for a share.
        reserve: CPUs to leave for others.
        node_cpus: CPUs of each node; a worker has to fit on one, so shares shrink until all of them do.
    """
    if requested:
        return requested
    share = max(1, math.floor((cluster_cpus - reserve) / num_workers))
    while share > 1 and node_cpus and sum(int(cpus // share) for cpus in node_cpus) < num_workers:
        share -= 1
    return share


def tune_concurrency(cluster_cpus: float, workers_per_trial: int, cpus: int, *, limit: int = 0) -> int:
    """Return how many trials can run at once: floor(CPUs / (0.01 + workers x 0.99 x CPUs each)).

    Raises:
        ClusterError: not even one trial fits.
    """
    need = DRIVER_CPUS + workers_per_trial * _TUNE_SHARE * cpus
    fit = math.floor(cluster_cpus / need + 1e-9)
    if fit < 1:
        raise ClusterError(
            f"a trial of {workers_per_trial} workers with {cpus} CPUs each needs {need:g} CPUs;"
            f" the cluster has {cluster_cpus:g}",
            mend="lower workers_per_trial or cpus_per_worker, or add nodes",
        )
    return min(fit, limit) if limit else fit


def check_fits(*, what: str, need: dict[str, float], have: dict[str, float]) -> None:
    """Refuse a request that the cluster can never grant, before it would wait for ever.

    Raises:
        ClusterError: more of a resource is needed than the whole cluster has.
    """
    for name, amount in need.items():
        if amount > have.get(name, 0.0) + 1e-9:
            raise ClusterError(
                f"{what} needs {amount:g} {name}, and the cluster has {have.get(name, 0.0):g}",
                mend="ask for fewer workers, or use a larger cluster",
            )


def check_places(*, what: str, workers: int, cpus: float, node_cpus: Sequence[float]) -> None:
    """Refuse workers that the cluster has CPUs enough for, but no node or too few nodes to hold one each.

    Raises:
        ClusterError: fewer workers can be placed than are wanted.
    """
    places = sum(math.floor(have / cpus + 1e-9) for have in node_cpus)
    if places < workers:
        raise ClusterError(
            f"{what} needs {workers} places of {cpus:g} CPUs, and the nodes have {places}"
            f" (the largest has {max(node_cpus, default=0):g} CPUs)",
            mend="lower cpus_per_worker or num_workers, or use larger nodes",
        )


def check_gpu(*, use_gpu: bool) -> None:
    """Refuse a GPU request where torch can use none, and say when a GPU is there that torch cannot use.

    Raises:
        ConfigError: GPUs are asked for and torch sees none.
    """
    if use_gpu:
        _check_torch("cuda", "use_gpu is true", "set use_gpu=false")


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here; `auto` and `cpu` always can be.

    Raises:
        ConfigError: there is no such device.
    """
    if device not in ("auto", "cpu"):
        _check_torch(device, f"device is {device}", "set device=cpu")


def _check_torch(device: str, asked: str, cure: str) -> None:
    import torch

    kind, _, number = device.partition(":")
    usable = torch.backends.mps.is_available() if kind == "mps" else torch.cuda.is_available()
    if usable and (not number or int(number) < torch.cuda.device_count()):
        return
    if usable:
        found = f"torch can use {torch.cuda.device_count()} GPUs here, numbered from 0"
    elif kind == "cuda" and os.path.exists("/proc/driver/nvidia/version"):
        found = "torch can use no GPU here, although an NVIDIA driver is loaded (driver and torch build do not match)"
    else:
        found = "torch can use no GPU here"
    raise ConfigError(f"{asked} and {found}", mend=f"{cure}, or run `resnet doctor` to see what is missing")
