"""The base of every config schema, and which of its fields a stage's key depends on."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

_RUNTIME = "runtime"
_LEGACY = "legacy"
_LATER = "later"


class StrictModel(BaseModel):
    """A frozen schema that refuses unknown keys and silent conversions; field docstrings become its reference text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def runtime_field(default: Any = ..., **kwargs: Any) -> Any:
    """Declare a field that says how a stage runs, not what it makes; it is left out of the stage's key."""
    return Field(default, json_schema_extra={_RUNTIME: True}, **kwargs)


def later_field(default: Any, *, legacy: Any, **kwargs: Any) -> Any:
    """Declare a field that was added after outputs existed; at its `legacy` value it leaves their keys as they were."""
    return Field(default, json_schema_extra={_LEGACY: legacy}, **kwargs)


def is_runtime(field: FieldInfo) -> bool:
    """Return whether the field was declared with `runtime_field`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(_RUNTIME))


def first_values(config: BaseModel) -> dict[str, Any]:
    """Return the JSON values of a config in which every later field that nobody gave stands as it first was."""
    values = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value, extra = getattr(config, name), field.json_schema_extra
        if name not in config.model_fields_set and isinstance(extra, dict) and _LEGACY in extra:
            values[name] = extra[_LEGACY]
        elif isinstance(value, BaseModel):
            values[name] = first_values(value)
    return values


def output_values(config: BaseModel) -> dict[str, Any]:
    """Return the JSON values of the fields that decide the output, nested models included.

    A nested model inside a list or a union is taken whole: its runtime fields, if any, count as output. A field of a
    nested dataclass whose metadata says `later` was added after outputs existed; at its default it is left out.
    """
    values = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        extra = field.json_schema_extra
        if is_runtime(field) or (isinstance(extra, dict) and _LEGACY in extra and extra[_LEGACY] == values.get(name)):
            values.pop(name, None)
        elif isinstance(value, BaseModel):
            values[name] = output_values(value)
        elif is_dataclass(value):
            unchanged = {
                f.name for f in fields(value) if f.metadata.get(_LATER) and getattr(value, f.name) == f.default
            }
            values[name] = {key: entry for key, entry in values[name].items() if key not in unchanged}
    return values
