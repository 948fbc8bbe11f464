"""Whether every node of a cluster sees a path: one machine's disk is refused before work on it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipelines.errors import ClusterError, ConfigError

_TIMEOUT_S = 120.0
"""For a node to start a worker and look; a busy machine takes tens of seconds."""


def check_nodes_see(num_nodes: int, places: Mapping[str, str]) -> None:
    """Refuse local paths that a node of the connected cluster does not see as this process does.

    A folder that all nodes mount is fine, and so is anything on one node; addresses (`s3://...`) are not looked at.

    Args:
        num_nodes: nodes of the cluster that this process is connected to.
        places: what the user calls a path (`--out`) -> the path of a file or folder that stands.

    Raises:
        ConfigError: a node does not have it, or has another one of that name.
        ClusterError: a node does not answer.
    """
    local = {name: os.path.abspath(path) for name, path in places.items() if "://" not in path}
    if num_nodes < 2 or not local:
        return
    here = {name: _seen(path) for name, path in local.items()}
    for node, there in _ask_nodes(list(local.values())).items():
        for (name, path), found in zip(local.items(), there, strict=True):
            if found != here[name]:
                raise ConfigError(
                    f"{path} is not on node {node} of the cluster" if found is None
                    else f"{path} on node {node} of the cluster is another one than here",
                    where=name,
                    mend="use a path that every node mounts, or an address that all reach, such as s3://BUCKET/PATH",
                )  # fmt: skip


def _seen(path: str) -> int | None:
    """Return what tells one file from another: the size, or how many entries a folder has; None: it is not there."""
    try:
        return len(os.listdir(path)) if os.path.isdir(path) else os.path.getsize(path)
    except OSError:
        return None


def _ask_nodes(paths: list[str]) -> dict[str, list[int | None]]:
    """Return for each node what it sees at each path."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=1)(_look)
    asked = {
        f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})": look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(paths)
        for node in ray.nodes()
        if node["Alive"]
    }
    try:
        return dict(zip(asked, ray.get(list(asked.values()), timeout=_TIMEOUT_S), strict=True))
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"not every node of the cluster answers: {str(error).strip().splitlines()[-1]}",
            mend="run `resnet doctor` with the cluster's address",
        ) from error


def _look(paths: list[str]) -> list[int | None]:
    return [_seen(path) for path in paths]
