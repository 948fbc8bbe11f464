"""From what a user calls a model to one package that stands still: a folder, or a version in the registry.

Nothing here imports torch, and only registry addresses import MLflow.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import InputError, NotFound, RegistryError
from pipelines.package.describe import DESCRIPTION_FILE, DESCRIPTION_TAG, WEIGHTS_TAG, parse_description
from pipelines.redact import redact
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig, open_client, process_wide, resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTRY_SCHEME = "models:/"
_REGISTRY_REF = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[^/@]+))")
_STAGE_CATALOG = "_catalog.json"
_PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".pth.tar", ".pt.tar")


@dataclass(frozen=True)
class ResolvedPackage:
    """One package, named so that it stays the same whatever aliases do later."""

    ref: str
    """As the user gave it."""
    uri: str
    """`models:/NAME/VERSION`, or the address of the folder that holds `model.json`."""
    name: str
    """Registered name; for a folder its last path component."""
    version: str
    """Registered version; empty for a folder."""
    weights_sha256: str
    """SHA-256 of the weights: what the package is, wherever it lies."""
    description_sha256: str = ""
    """SHA-256 of `model.json` as the registry keeps it; empty where nothing but the file itself says."""


def resolve_ref(ref: str, tracking: TrackingConfig | None = None) -> ResolvedPackage:
    """Return the package behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a folder.

    A folder may be the package itself, the output of `train` or `tune` (their best model is taken), or a model that
    MLflow downloaded.

    Raises:
        InputError: the address is malformed, or the folder holds no package.
        RegistryError: the registry lacks the name, version or alias, or cannot be reached.
    """
    if ref.startswith(REGISTRY_SCHEME):
        return _resolve_registered(ref, tracking or TrackingConfig())
    return _resolve_folder(ref)


def read_description(resolved: ResolvedPackage, tracking: TrackingConfig | None = None) -> dict[str, Any]:
    """Return the contents of a package's `model.json`, without its weights and without torch."""
    if resolved.uri.startswith(REGISTRY_SCHEME):
        data = read_artifact(resolved.uri, DESCRIPTION_FILE, tracking or TrackingConfig())
    else:
        data = Storage.open(resolved.uri).read(DESCRIPTION_FILE)
    return parse_description(data, f"{resolved.uri}/{DESCRIPTION_FILE}")


def read_artifact(uri: str, name: str, tracking: TrackingConfig) -> bytes:
    """Return the bytes of one of a registered version's artifacts (`models:/NAME/VERSION`), fetched through MLflow.

    Raises:
        RegistryError: it cannot be fetched.
    """
    store = resolve_uri(tracking)
    open_client(store)  # sets MLflow's safe switches before anything else of it is imported
    import tempfile
    from pathlib import Path

    import mlflow
    from mlflow.exceptions import MlflowException

    # A SQL registry looks a version's files up through the process-wide store, whatever address it is given.
    with tempfile.TemporaryDirectory(prefix="resnet-package-") as folder, process_wide(store):
        try:
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{uri}/artifacts/{name}", dst_path=folder, tracking_uri=store, registry_uri=store
            )
            return Path(path).read_bytes()
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"cannot fetch {name} of {uri}: {redact(str(error))}",
                where=redact(store),
                mend="check that the version was registered by `resnet run` or `register`, and that its files exist",
            ) from error


def _resolve_registered(ref: str, tracking: TrackingConfig) -> ResolvedPackage:
    parsed = _REGISTRY_REF.fullmatch(ref)
    if parsed is None:
        raise InputError(
            f"model address {ref!r} is malformed", mend="give models:/NAME/VERSION, models:/NAME@ALIAS or a folder"
        )
    store = resolve_uri(tracking)
    found = find_version(open_client(store), parsed["name"], parsed["version"], parsed["alias"], where=redact(store))
    uri = f"{REGISTRY_SCHEME}{found.name}/{found.version}"
    sha256 = found.tags.get(WEIGHTS_TAG, "")
    if not sha256:  # registered by other means: its own description says so, and loading checks the bytes against it
        where = f"{uri}/{DESCRIPTION_FILE}"
        sha256 = parse_description(read_artifact(uri, DESCRIPTION_FILE, tracking), where)["weights_sha256"]
    tagged = found.tags.get(DESCRIPTION_TAG, "")
    return ResolvedPackage(ref, uri, str(found.name), str(found.version), sha256, tagged)


def find_version(
    client: MlflowClient, name: str, version: str | None, alias: str | None, *, where: str
) -> ModelVersion:
    """Return a registered version by number or by alias.

    Raises:
        RegistryError: there is none, or the registry cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    wanted = f"version {version}" if version else f"alias {alias}"
    try:
        return client.get_model_version(name, version) if version else client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise RegistryError(
                f"the registry has no {wanted} of a model {name!r}",
                where=where,
                mend="`resnet models list` shows what is registered; another store: tracking.uri=...",
            ) from error
        raise RegistryError(f"the registry cannot be asked for {name!r}: {redact(str(error))}", where=where) from error


def refuse_bare_weights(ref: str) -> None:
    """Refuse a file of weights in a model's place, naming the command that makes a package of it.

    Raises:
        InputError: the name ends like a pickle's or a safetensors file's.
    """
    lower = ref.lower()
    if lower.endswith(_PICKLE_SUFFIXES):
        what = f"{ref} is a pickle by its name: reading one may run code that it brings along"
    elif lower.endswith(".safetensors"):
        what = f"{ref} holds weights alone: no network, classes or pixels are described"
    else:
        return
    raise InputError(
        what, mend=f"resnet models import {ref} --arch NAME --licence LICENCE --source URL --out FOLDER, once"
    )


def _resolve_folder(ref: str) -> ResolvedPackage:
    refuse_bare_weights(ref)
    root = Storage.open(ref)
    name = root.uri.rsplit("/", 1)[-1]
    storage, expected = _package_folder(root)
    where = storage.address(DESCRIPTION_FILE)
    sha256 = parse_description(storage.read(DESCRIPTION_FILE), where)["weights_sha256"]
    if expected not in ("", sha256):
        raise InputError(
            f"the package in {storage.uri} names weights {sha256}; the catalog beside it says {expected}",
            where=where,
            mend="the package was changed after its stage ended: run the stage again",
        )
    return ResolvedPackage(ref, storage.uri, name, "", sha256)


def _package_folder(root: Storage) -> tuple[Storage, str]:
    """Return the folder that holds `model.json`, and the hash that a stage's catalog gives for its weights."""
    if root.exists(DESCRIPTION_FILE):
        return root, ""
    try:
        model = json.loads(root.read(_STAGE_CATALOG)).get("model", {})
        return root.child(str(model["path"])), str(model.get("weights_sha256", ""))
    except NotFound:
        pass
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{root.address(_STAGE_CATALOG)} names no model", mend=_FOLDER_MEND) from error
    inner = root.child("artifacts")  # where MLflow puts what a model brings along
    if inner.exists(DESCRIPTION_FILE):
        return inner, ""
    raise InputError(f"{root.uri} is no package: it holds no {DESCRIPTION_FILE}", mend=_FOLDER_MEND)


_FOLDER_MEND = "give the out folder of train or tune, a package folder, models:/NAME/VERSION or models:/NAME@ALIAS"
