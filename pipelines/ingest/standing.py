"""What a dataset holds an append to: its settings; it needs no pyarrow, so that a skip loads none."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pipelines.config.strict import is_runtime
from pipelines.dataset.catalog import DATASET_FORMAT, Catalog, format_ref, read_version
from pipelines.errors import ConfigError, InputError
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.plan import as_first, earlier_keys
from pipelines.sources.addresses import base_of, default_name
from pipelines.sources.base import Source
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

SHARED = ("image", "privacy", "split", "task")
"""Fields that a dataset has for all its sources."""
FOLLOWED = ("duplicates", "checks")
"""Fields that hold as they were last given, and may be given anew."""
_IDENTITY = ("source", "source_name")


def settled(config: IngestConfig) -> IngestConfig:
    """Return the config of an append with the dataset's settings wherever the user set none; others as they are.

    What a source was read with before (its table of labels, its columns) is kept likewise.

    Raises:
        ConfigError: a setting differs from the dataset's, or no dataset is named.
    """
    if not config.append:
        return config
    if not config.out:
        raise ConfigError("append=true, and no dataset is named", mend="name the one to append to: --out DATASET")
    store = Storage.open(config.out)
    standing = read_version(store, stage_format=DATASET_FORMAT)
    if standing is None:
        return config
    values = config.model_dump(mode="json")
    given = config.model_dump(mode="json", exclude_unset=True)
    taken: dict[str, Any] = {}
    for name in SHARED:
        if name in IngestConfig.model_fields:
            held = _held(IngestConfig, standing["config"], name)
            values[name] = _settle(name, values[name], given.get(name), held, standing, taken)
    own = {name: standing["config"][name] for name in FOLLOWED if name in standing["config"]}
    own |= standing.get("origins", {}).get(name_of(config), {}).get("settings", {})
    for name, held in own.items():
        if name in values and name not in given and values[name] != held:
            values[name] = taken[name] = held
    if taken:
        words = ", ".join(f"{name}={json.dumps(value)}" for name, value in taken.items())
        logger.info("ingest: %s hold, as in %s", words, format_ref(store.uri, standing["version"]))
    return IngestConfig.model_validate_json(json.dumps(values))


def name_of(config: IngestConfig) -> str:
    """Return the source's name as the config says it, before the source is opened."""
    return config.source_name or default_name(config.source)


def own_settings(config: IngestConfig) -> dict[str, Any]:
    """Return what a later append of the same source keeps: fields that are one source's own and decide its rows."""
    values = config.model_dump(mode="json")
    return {
        name: values[name]
        for name, field in IngestConfig.model_fields.items()
        if not is_runtime(field) and name not in (*SHARED, *FOLLOWED, *_IDENTITY)
    }


def is_by_earlier(config: IngestConfig, source: Source, standing: Catalog) -> bool:
    """Return whether a dataset holds this content with these settings, made by a release that had fewer of them."""
    return standing["sources"].get(source.name) in earlier_keys(config, source)


def holds_another(config: IngestConfig, store: Storage, source: Source, standing: Catalog) -> InputError:
    """Return the refusal of a source for a dataset that holds another, or the same one made otherwise."""
    names = ", ".join(standing["sources"])
    if source.name in standing["sources"]:
        now, first = _differing(config, standing), _differing(as_first(config), standing)
        given = [text for text in now if text in first]
        by = " by an earlier release" if given != now else ""
        made = f"with other settings: {', '.join(given)}" if given else "from other content or with other settings"
        append = "leave these settings out and add --append" if given else "add --append"
        return InputError(
            f"{store.uri} holds a dataset of {source.name} made{by} {made}",
            where=f"it was read from {standing['locations'].get(source.name, 'elsewhere')}",
            mend=f"{append} to read what is new or changed, or choose another --out",
        )
    return InputError(
        f"{store.uri} holds a dataset of {names}, not of {source.name}",
        mend="add --append to add it to that dataset, or choose another --out",
    )


def check_location(config: IngestConfig, standing: Catalog, name: str, uri: str) -> None:
    """Refuse a source name that the dataset knows from elsewhere: it may be another source of the same name.

    Raises:
        InputError: it lies elsewhere now, and `moved` does not say so.
    """
    known = standing["locations"].get(name)
    if known is None or base_of(known) == base_of(uri) or config.moved:
        return
    raise InputError(
        f"the dataset knows a source {name} from {known}, and this one is {uri}",
        mend=f"if it was moved: moved=true; if it is another one: source_name={name}-2",
    )


def _held(model: type[BaseModel], values: Mapping[str, Any], name: str) -> Any:
    """Return what a stored config says of a field; one added since stands at its first value."""
    if name in values:
        return values[name]
    field = model.model_fields[name]
    extra = field.json_schema_extra
    first = extra["legacy"] if isinstance(extra, dict) and "legacy" in extra else field.get_default(
        call_default_factory=True
    )  # fmt: skip
    return first.model_dump(mode="json") if isinstance(first, BaseModel) else first


def _differing(config: IngestConfig, standing: Catalog) -> list[str]:
    """Return the settings of all sources in which a dataset differs from a config, NAME=VALUE as it has them."""
    values = config.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name in SHARED:
        _compare(name, values[name], _held(IngestConfig, standing["config"], name), found)
    return [f"{name}={json.dumps(value)}" for name, value in found.items()]


def _compare(path: str, value: Any, held: Any, found: dict[str, Any]) -> None:
    """Note in `found` what is held of each setting that is another."""
    kind = IngestConfig.model_fields[path].annotation if "." not in path else None
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name in value:
            _compare(f"{path}.{name}", value[name], _held(kind, held, name), found)
    elif value != held:
        found[path] = held


def _settle(path: str, value: Any, given: Any, held: Any, standing: Catalog, taken: dict[str, Any]) -> Any:
    """Return the dataset's value of a setting, having noted it in `taken` where the user's default was another."""
    kind = IngestConfig.model_fields[path].annotation if "." not in path else None
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {
            name: _settle(
                f"{path}.{name}", value[name], (given or {}).get(name), _held(kind, held, name), standing, taken
            )
            for name in value
        }
    came_to = {"split.by": standing["split"]["by"], "task": standing["task"]}.get(path) if held == "auto" else None
    if value == held or (given is not None and given == came_to):
        return held
    if given is not None:
        raise ConfigError(
            f"{path} is {json.dumps(value)}, and the dataset has {json.dumps(held)};"
            " a dataset has one setting for all its sources",
            mend=f"leave {path} out, or ingest into a new --out",
        )
    taken[path] = held
    return held
