"""What stands in the registry, as plain data for `resnet models`, and a person's word on an alias."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipelines.errors import ConfigError, RegistryError
from pipelines.redact import redact
from pipelines.registry.audit import AuditRecord, parse_records
from pipelines.registry.promote import Decision, promote
from pipelines.registry.tags import PACKAGE_TAG, tagged_standing
from pipelines.tracking import (
    TrackingConfig,
    browser_address,
    is_server,
    open_client,
    process_wide,
    resolve_uri,
    store_faults,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_LIST = "resnet models list"


@dataclass(frozen=True)
class VersionRow:
    """One version.

    Attributes:
        version: its number.
        aliases: the aliases it holds.
        test_top1: top-1 on the rows of its last evaluation, 0 to 1; None when it was registered by other means.
        test_rows: how many rows those are; 0 for none.
        val_top1: best top-1 on val, as registered; empty when unknown.
        test_map: mean average precision on those rows, where images have several labels; top-1 is None then.
        val_map: the best on val; empty where images have one label.
        dataset: reference of its training data.
        dataset_fingerprint: 64 hex digits; empty when unknown.
        weights_sha256: hash of its weights; empty when it was registered by other means.
        run_id: the MLflow run that made it; empty when unknown.
        created_s: Unix time.
    """

    version: str
    aliases: tuple[str, ...]
    test_top1: float | None
    test_rows: int
    val_top1: str
    dataset: str
    dataset_fingerprint: str
    weights_sha256: str
    run_id: str
    created_s: float
    test_map: float | None = None
    val_map: str = ""


@dataclass(frozen=True)
class ModelRow:
    """One registered model.

    Attributes:
        name: its name.
        aliases: alias to version.
        num_versions: how many versions it has.
        latest: its newest version; empty for none.
        is_ours: whether it holds packages of this project.
        updated_s: Unix time of the last change.
        versions: its versions, newest first; filled by `show_model` alone.
        audit: decisions about its aliases, newest first; filled by `show_model` alone.
    """

    name: str
    aliases: dict[str, str]
    num_versions: int
    latest: str
    is_ours: bool
    updated_s: float
    versions: tuple[VersionRow, ...] = ()
    audit: tuple[AuditRecord, ...] = ()


def list_models(tracking: TrackingConfig) -> list[ModelRow]:
    """Return all registered models, by name.

    Raises:
        RegistryError: the registry cannot be asked.
    """
    with _registry(tracking) as (client, _):
        rows = [_model_row(client, name, _versions(client, name)) for name in _names(client)]
        return sorted(rows, key=lambda row: row.name)


def show_model(name: str, tracking: TrackingConfig) -> ModelRow:
    """Return one registered model with its versions and the record of its aliases.

    Raises:
        RegistryError: there is no such model, or the registry cannot be asked.
    """
    with _registry(tracking) as (client, store):
        found = _versions(client, _known(client, name, store))
        row = _model_row(client, name, found)
        held: dict[str, list[str]] = {}
        for alias, version in sorted(row.aliases.items()):
            held.setdefault(version, []).append(alias)
        versions = tuple(_version_row(each, tuple(held.get(str(each.version), ()))) for each in found)
        audit = tuple(reversed(parse_records(client.get_registered_model(name).tags)))
        return replace(row, versions=versions, audit=audit)


def promote_version(
    name: str, version: str, tracking: TrackingConfig, *, alias: str = "champion", reason: str = ""
) -> Decision:
    """Give an alias to a version because a person says so; a rollback is a promotion of an older version.

    Raises:
        RegistryError: there is no such model or version, or its files are not those that were registered.
    """
    from pipelines.registry.board import MlflowBoard
    from pipelines.registry.register import check_files

    with _registry(tracking) as (client, store):
        _known(client, name, store)
        found = next((each for each in _versions(client, name) if str(each.version) == version), None)
        if found is None:
            raise RegistryError(
                f"{name} has no version {version}", where=redact(store), mend=f"resnet models show {name} lists them"
            )
        uri = f"models:/{name}/{version}"
        if PACKAGE_TAG in found.tags and (problems := check_files(uri, found.tags, store)):
            raise RegistryError(
                f"version {version} of {name} is not whole: {'; '.join(problems[:3])}",
                where=redact(store),
                mend="promote another version, or register the network again",
            )
        return promote(MlflowBoard(client, name), alias, version, reason or "promoted by hand")


def page_of(tracking: TrackingConfig, name: str = "", version: str = "") -> str:
    """Return the address of a model's page in the MLflow UI of a server.

    Raises:
        ConfigError: the store is a database, which has no pages until a server is started on it.
    """
    store = resolve_uri(tracking)
    if not is_server(store):
        raise ConfigError(
            f"the MLflow store {redact(store)} is a database and has no address to open",
            where="tracking.uri",
            mend="resnet ui starts the MLflow UI on it and prints its address",
        )
    return browser_address(store) + model_page(name, version)


def model_page(name: str = "", version: str = "") -> str:
    """Return the path of a page of the MLflow UI below its root: all models, one model, or one version."""
    path = "/#/models"
    if name:
        path += f"/{quote(name, safe='')}"
    if name and version:
        path += f"/versions/{quote(version, safe='')}"
    return path


def _model_row(client: MlflowClient, name: str, versions: list[ModelVersion]) -> ModelRow:
    model = client.get_registered_model(name)  # only this call fills in the aliases
    return ModelRow(
        name=name,
        aliases={alias: str(version) for alias, version in sorted(model.aliases.items())},
        num_versions=len(versions),
        latest=str(versions[0].version) if versions else "",
        is_ours=any(PACKAGE_TAG in found.tags for found in versions),
        updated_s=(model.last_updated_timestamp or 0) / 1000,
    )


def _version_row(found: ModelVersion, aliases: tuple[str, ...]) -> VersionRow:
    tags = found.tags
    standing = tagged_standing(str(found.version), tags)
    return VersionRow(
        version=str(found.version),
        aliases=aliases,
        test_top1=standing.top1 if standing and standing.metric == "top1" else None,
        test_rows=standing.total if standing else 0,
        val_top1=tags.get("resnet.val_top1", ""),
        dataset=tags.get("resnet.dataset", ""),
        dataset_fingerprint=tags.get("resnet.dataset_fingerprint", ""),
        weights_sha256=tags.get("resnet.weights_sha256", ""),
        run_id=str(found.run_id or ""),
        created_s=(found.creation_timestamp or 0) / 1000,
        test_map=standing.score if standing and standing.metric == "map" else None,
        val_map=tags.get("resnet.val_map", ""),
    )


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token = None
    while True:
        mark = '"' if "'" in name else "'"  # MLflow's filters know no escapes
        page = client.search_model_versions(f"name = {mark}{name}{mark}", max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: -int(version.version))


def _names(client: MlflowClient) -> Iterator[str]:
    token = None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        yield from (str(model.name) for model in page)
        token = page.token
        if not token:
            return


def _known(client: MlflowClient, name: str, store: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_registered_model(name).name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise
        raise RegistryError(
            f"the registry has no model {name!r}", where=redact(store), mend=f"{_LIST} shows what is registered"
        ) from error


@contextlib.contextmanager
def _registry(tracking: TrackingConfig) -> Iterator[tuple[MlflowClient, str]]:
    store = resolve_uri(tracking)
    client = open_client(store)
    with store_faults(store), process_wide(store):
        yield client, store
