"""One registered model in MLflow, as promotions see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from pipelines.registry.audit import AuditRecord, encode_record, parse_records
from pipelines.registry.promote import Board

if TYPE_CHECKING:
    from mlflow import MlflowClient


class MlflowBoard(Board):
    """Aliases and audit records of a registered model; every call asks the registry anew."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        self._client = client
        self._name = name

    @override
    def read_alias(self, alias: str) -> str:
        # Versions found by a search carry no aliases; the registered model does.
        return str(self._client.get_registered_model(self._name).aliases.get(alias, ""))

    @override
    def set_alias(self, alias: str, version: str) -> None:
        self._client.set_registered_model_alias(self._name, alias, version)

    @override
    def read_records(self) -> list[AuditRecord]:
        return parse_records(self._client.get_registered_model(self._name).tags)

    @override
    def write_record(self, record: AuditRecord) -> None:
        self._client.set_registered_model_tag(self._name, record.tag, encode_record(record))
