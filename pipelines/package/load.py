"""From a package to a network: hashes checked, safetensors only, none of the package's code executed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.errors import InputError
from pipelines.package.describe import DESCRIPTION_FILE, WEIGHTS_FILE, parse_description
from pipelines.package.resolve import REGISTRY_SCHEME, ResolvedPackage, read_artifact, resolve_ref
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import WeightsError, check_finite, check_fits, load_strict, unpack_weights

_DAMAGED = "the package was damaged or altered: take it from its training run, or register the model again"


@dataclass(frozen=True)
class LoadedPackage:
    """A network in evaluation mode with all that its package says."""

    network: ResNet
    description: dict[str, Any]
    """The contents of `model.json`."""
    ref: str
    """As the user gave it."""
    name: str
    """Registered name; for a folder its last path component."""
    version: str
    """Registered version; empty for a folder."""
    weights_sha256: str

    @property
    def spec(self) -> ModelSpec:
        """The network's description."""
        return self.network.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the network's outputs."""
        return tuple(self.description["classes"])


def load_package(ref: str, tracking: TrackingConfig | None = None) -> LoadedPackage:
    """Load the package behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a folder, with the installed code.

    The package's Python file is for users without this project; it is never run here.

    Raises:
        InputError: there is no package, its bytes differ from its hashes, or its weights do not fit its description.
        RegistryError: the registry lacks it or cannot be reached.
    """
    tracking = tracking or TrackingConfig()
    return load_resolved(resolve_ref(ref, tracking), tracking)


def load_resolved(resolved: ResolvedPackage, tracking: TrackingConfig | None = None) -> LoadedPackage:
    """Load a package that `resolve_ref` pinned.

    Raises:
        InputError, RegistryError: as `load_package`.
    """
    uri = resolved.uri
    if uri.startswith(REGISTRY_SCHEME):
        tracking = tracking or TrackingConfig()
        files = {name: read_artifact(uri, name, tracking) for name in (DESCRIPTION_FILE, WEIGHTS_FILE)}
    else:
        storage = Storage.open(uri)
        files = {name: storage.read(name) for name in (DESCRIPTION_FILE, WEIGHTS_FILE)}
    _check_hash(files[DESCRIPTION_FILE], resolved.description_sha256, "the registry", f"{uri}/{DESCRIPTION_FILE}")
    description = parse_description(files[DESCRIPTION_FILE], f"{uri}/{DESCRIPTION_FILE}")
    for expected, source in (
        (description["weights_sha256"], DESCRIPTION_FILE),
        (resolved.weights_sha256, resolved.ref),
    ):
        _check_hash(files[WEIGHTS_FILE], expected, source, f"{uri}/{WEIGHTS_FILE}")
    network = restore_network(description, files[WEIGHTS_FILE], where=f"{uri}/{WEIGHTS_FILE}")
    sha256 = str(description["weights_sha256"])
    return LoadedPackage(network, description, resolved.ref, resolved.name, resolved.version, sha256)


def restore_network(description: Mapping[str, Any], weights: bytes, *, where: str) -> ResNet:
    """Return the described network with the weights of a safetensors file, in evaluation mode.

    Raises:
        InputError: the weights are unreadable, belong to another network, or hold values that are no numbers.
    """
    spec = ModelSpec.from_json(description["spec"])
    try:
        state = unpack_weights(weights)
        with torch.device("meta"):  # a stranger's description may ask for more memory than there is
            check_fits(ResNet(spec), state)
        network = ResNet(spec)
        load_strict(network, state)
    except WeightsError as error:
        raise InputError(str(error), where=where, mend=_DAMAGED) from error
    try:
        check_finite(state)
    except WeightsError as error:
        raise InputError(str(error), where=where, mend="train again, with a lower rate") from error
    return network.eval()


def _check_hash(data: bytes, expected: str, source: str, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if expected not in ("", found):
        raise InputError(
            f"{where.rpartition('/')[2]} has the hash {found}; {source} names {expected}", where=where, mend=_DAMAGED
        )
