"""Puts a package into the registry: files, then a version; run again after a kill it goes on where it stopped.

MLflow *models from code*: weights, description and one Python file; nothing is pickled. The steps of
`mlflow.pyfunc.log_model` are taken one by one, because a kill between them must not lead to a second version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import RegistryError
from pipelines.package.describe import DESCRIPTION_FILE, WEIGHTS_FILE
from pipelines.redact import redact
from pipelines.registry.config import RegisterConfig
from pipelines.registry.plan import Inputs
from pipelines.registry.tags import FILES_TAG, PACKAGE_TAG, figure_tags, package_tags
from pipelines.stage_output import mlflow_run_of
from pipelines.storage import Storage
from pipelines.tracking import open_experiment, process_wide

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_LOGGER = logging.getLogger(__name__)

_NAME_TAG = "resnet.name"
_ABANDONED_AFTER_S = 3600.0
_ADDED_BY_DOWNLOAD = ("registered_model_meta",)


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    version: str
    is_new: bool
    model_id: str
    run_id: str


def register_package(client: MlflowClient, config: RegisterConfig, inputs: Inputs) -> Registered:
    """Return the version of this package under this name, making it where there is none; its files are checked.

    Raises:
        RegistryError: the registry refuses, or the files of the version are not those that were registered.
    """
    with _faults(config.name, inputs.store), process_wide(inputs.store):
        found = find_registered(client, config.name, inputs.digest)
        is_new = found is None
        if found is None:
            found = _create(client, config, inputs)
        for tag, value in figure_tags(inputs.evaluation, inputs.evaluation_uri).items():
            client.set_model_version_tag(config.name, str(found.version), tag, value)
        problems = check_files(f"models:/{found.name}/{found.version}", found.tags, inputs.store)
        if problems:
            raise RegistryError(
                f"version {found.version} of {found.name} is not whole: {'; '.join(problems[:3])}",
                where=redact(inputs.store),
                mend="delete that version in the MLflow UI and run the same command again",
            )
    model_id = str(found.source).rpartition("/")[2]
    return Registered(str(found.version), is_new, model_id, str(found.run_id or ""))


def find_registered(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """Return the oldest version of a model that holds a package, or None."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{PACKAGE_TAG}` = '{digest}'")
    return min(found, key=lambda version: int(version.version), default=None)


def check_files(uri: str, tags: Mapping[str, str], store: str) -> list[str]:
    """Return what differs between a model's files and the hashes that were taken when they were uploaded.

    Files that are missing, altered or were added are named; all of them are fetched, none is executed.

    Args:
        uri: `models:/NAME/VERSION`, or `models:/ID` of a logged model.
        tags: its tags.
        store: address of the MLflow store.
    """
    import mlflow

    with tempfile.TemporaryDirectory(prefix="resnet-registry-") as scratch:
        try:
            folder = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=scratch, tracking_uri=store, registry_uri=store
            )
        except (mlflow.exceptions.MlflowException, OSError) as error:
            return [f"its files cannot be fetched ({redact(str(error))[:200]})"]
        found = hash_files(Path(folder))
    try:
        expected: dict[str, str] = json.loads(tags[FILES_TAG])
    except (KeyError, ValueError):
        return [f"its tag {FILES_TAG} is missing or damaged"]
    problems = [f"{path} is missing" for path in sorted(expected.keys() - found.keys())]
    problems += [f"{path} was added" for path in sorted(found.keys() - expected.keys())]
    problems += [
        f"{path} was altered" for path in sorted(expected.keys() & found.keys()) if found[path] != expected[path]
    ]
    return problems


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _ADDED_BY_DOWNLOAD
    }


def _create(client: MlflowClient, config: RegisterConfig, inputs: Inputs) -> ModelVersion:
    """Upload the files unless an earlier command did, then create the version."""
    from mlflow.exceptions import MlflowException

    run_id = _known_run(client, mlflow_run_of(Storage.open(config.model), inputs.training))
    experiment_id = open_experiment(client, inputs.store, config.tracking.experiment)
    model = _uploaded(client, config, inputs, experiment_id, run_id)
    with contextlib.suppress(MlflowException):  # it is there already; any other trouble shows in the next call
        client.create_registered_model(config.name)
    created = client.create_model_version(
        config.name,
        f"models:/{model.model_id}",
        run_id=run_id or None,
        tags={
            **package_tags(inputs, _files_of(model)),
            **figure_tags(inputs.evaluation, inputs.evaluation_uri),
        },
        model_id=model.model_id,
    )
    oldest = find_registered(client, config.name, inputs.digest)
    if oldest is None or int(oldest.version) >= int(created.version):
        return created
    # Another process registered the same package at the same time: one version is enough.
    client.delete_model_version(config.name, str(created.version))
    return oldest


def _uploaded(client: MlflowClient, config: RegisterConfig, inputs: Inputs, experiment_id: str, run_id: str) -> Any:
    """Return MLflow's logged model with the package's files, whole and READY."""
    marker = f"tags.`{PACKAGE_TAG}` = '{inputs.digest}' and tags.`{_NAME_TAG}` = '{config.name}'"
    standing = list(client.search_logged_models([experiment_id], marker))
    for model in standing:
        is_ready = str(model.status) == "READY"
        if is_ready and not check_files(f"models:/{model.model_id}", model.tags, inputs.store):
            return model
        if is_ready or time.time() - model.creation_timestamp / 1000 > _ABANDONED_AFTER_S:
            # Damaged, or left by a killed command; a younger unfinished one may still be at work.
            client.delete_logged_model(model.model_id)
    model = client.create_logged_model(
        experiment_id,
        name=config.name,
        source_run_id=run_id or None,
        tags={PACKAGE_TAG: inputs.digest, _NAME_TAG: config.name},
        model_type="resnet-pipelines",
    )
    with tempfile.TemporaryDirectory(prefix="resnet-register-") as scratch:
        folder = _save(Path(scratch), inputs, model, run_id)
        # The hashes go first: a model that is READY has them.
        client.set_logged_model_tags(model.model_id, {FILES_TAG: json.dumps(hash_files(folder), sort_keys=True)})
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    if run_id:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.get_logged_model(model.model_id)


def _save(scratch: Path, inputs: Inputs, model: Any, run_id: str) -> Path:
    """Write the package as an MLflow model below `scratch` and return its folder."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from pipelines.package import bundle

    package = scratch / "package"
    package.mkdir()
    source = Storage.open(inputs.package.uri)
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        (package / name).write_bytes(source.read(name))
    _check_weights(package / WEIGHTS_FILE, str(inputs.description["weights_sha256"]), inputs.package.uri)
    folder = scratch / "model"
    with warnings.catch_warnings():
        # An example would be a made-up image; the signature says what is taken.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        warnings.filterwarnings("ignore", message=".*type hints?")
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                model_id=model.model_id,
                run_id=run_id or None,
            ),
            python_model=str(bundle.write_bundle(scratch)),
            artifacts=bundle.artifacts(package),
            signature=bundle.signature(is_multi=inputs.description.get("task") == "multi"),
            pip_requirements=bundle.requirements(),
        )
    return folder


def _check_weights(path: Path, expected: str, uri: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise RegistryError(
            f"{WEIGHTS_FILE} has the hash {found}; {DESCRIPTION_FILE} names {expected}",
            where=uri,
            mend="the package was damaged or altered: run its training again",
        )


def _files_of(model: Any) -> dict[str, str]:
    files: dict[str, str] = json.loads(model.tags[FILES_TAG])
    return files


def _known_run(client: MlflowClient, run_id: str) -> str:
    """Return the run's id where this store has the run; training may have been recorded elsewhere, or not at all."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return ""
    try:
        return str(client.get_run(run_id).info.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        _LOGGER.warning("the training's run %s is not in this store; the version names no run", run_id)
        return ""


@contextlib.contextmanager
def _faults(name: str, store: str) -> Iterator[None]:
    """Turn MLflow's and the network's errors into ours."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"{name} could not be registered: {redact(str(error))[:500]}",
            where=redact(store),
            mend="check that the store answers and has room, then run the same command again: it goes on from there",
        ) from error
