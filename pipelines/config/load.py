"""From a YAML file and `key=value` overrides to one validated config, or an error that says how to mend it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

PRESETS = Path(__file__).parent / "presets"
_MAX_FILE_BYTES = 1 << 20
_COMMAND_LINE = "the command line"


def find_preset(stage: str, name: str) -> Path | None:
    """Return the shipped preset file of a stage, or None when there is none of that name."""
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    path = PRESETS / stage / f"{name}.yaml"
    return path if path.is_file() else None


def preset_names(stage: str) -> list[str]:
    """Return the names of the presets shipped for a stage."""
    return sorted(path.stem for path in (PRESETS / stage).glob("*.yaml"))


def load_config(
    cls: type[Config],
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    inputs: Mapping[str, object] | None = None,
) -> Config:
    """Return a validated config: defaults, then the file, then `inputs` of the command, then `key=value` overrides.

    Args:
        cls: the schema.
        source: a YAML file; None for defaults alone.
        overrides: `dotted.key=value` texts, the value parsed as YAML.
        inputs: values that positional arguments and options name, by dotted key.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is impossible.
    """
    values: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    if source is not None:
        values, lines = read_yaml(Path(source))
        origin.update({path: f"{source} line {line}" for path, line in lines.items()})
    for key, value in (inputs or {}).items():
        _assign(values, key, value)
        origin[tuple(key.split("."))] = _COMMAND_LINE
    for text in overrides:
        key, value = parse_override(text)
        _assign(values, key, value)
        path = tuple(key.split("."))
        before = origin.get(path)
        origin[path] = f"{before}, then overridden on {_COMMAND_LINE}" if before else _COMMAND_LINE
    try:
        # JSON mode turns YAML lists into tuples and texts into paths, while numbers and booleans stay strict.
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise _config_error(cls, error, origin) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config holds a value that is no plain data: {error}", where=str(source or "")) from None


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """Return the mapping in a YAML file and the line number of each of its keys.

    Raises:
        ConfigError: the file is missing, too large, no YAML mapping, or has a key twice, tags or aliases.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}", mend="check the path") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"config file {path} is larger than 1 MiB", mend="give a config, not data")
    try:
        lines: dict[tuple[str, ...], int] = {}
        value = _parse(raw.decode("utf-8-sig"), lines, empty={})
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is not UTF-8 at byte {error.start}", mend="save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(f"{error.problem}", where=f"{path} line {line}", mend="mend the YAML there") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not YAML: {error}", mend="mend the YAML") from None
    if not isinstance(value, dict):
        raise ConfigError(f"config file {path} does not hold keys and values", mend="write `key: value` lines")
    return value, lines


def parse_override(text: str) -> tuple[str, object]:
    """Return the dotted key and the value of a `key=value` text.

    Raises:
        ConfigError: there is no `=`, the key is empty, or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigError(
            f"override {text!r} is not key=value",
            where=_COMMAND_LINE,
            mend="write for example optimizer.lr=0.1, without spaces around the =",
        )
    if value.strip() in ("|", ">", ","):
        return key, value.strip()  # a separator is meant; as YAML it would be the beginning of something, or nothing
    try:
        return key, _parse(value, {}, empty="")
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"value of {key} is not YAML: {problem}", where=_COMMAND_LINE, mend="quote it") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1, minus its traps: `1e-3` is a number; yes, no, on, off, dates and sexagesimals stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null",)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
    ),
    list("-+.0123456789"),
)


def _parse(text: str, lines: dict[tuple[str, ...], int], *, empty: object) -> Any:
    """Return YAML as plain data, `empty` where there is none, and note in `lines` where its keys stand."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return empty if node is None else _plain(node, (), lines)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _plain(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> Any:
    """Return plain data; refuse tags, twice-given keys and aliases (a bomb of them is small on disk)."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, str(index)), lines) for index, item in enumerate(_fresh(node))]
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in _fresh(node):
            key = str(_scalar(key_node)) if isinstance(key_node, yaml.ScalarNode) else ""
            if not key or key in result:
                problem = f"key {key!r} is given twice" if key else "a key is not plain text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = _plain(value_node, (*path, key), lines)
        return result
    raise yaml.MarkedYAMLError(problem="this is no plain value", problem_mark=node.start_mark)


def _fresh(node: yaml.CollectionNode) -> list[Any]:
    """Return a collection's children the first time; an alias would visit the same node again."""
    if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise yaml.MarkedYAMLError(problem=f"tag {node.tag} is not allowed", problem_mark=node.start_mark)
    if getattr(node, "visited", False):
        raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=node.start_mark)
    node.visited = True  # type: ignore[attr-defined]
    return list(node.value)


def _scalar(node: yaml.ScalarNode) -> object:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text = str(node.value)
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text.replace("_", ""))
    if kind == "float":
        return float(text.replace("_", ""))
    raise yaml.MarkedYAMLError(problem=f"tag {node.tag} is not allowed", problem_mark=node.start_mark)


def _assign(values: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    here = values
    for part in parents:
        below = here.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key} cannot be set: {part} is {below!r}, not a group of keys", where=_COMMAND_LINE)
        here = below
    here[last] = value


def _config_error(cls: type[BaseModel], error: ValidationError, origin: Mapping[tuple[str, ...], str]) -> ConfigError:
    """Turn the first fault into our words and count the others."""
    faults = error.errors(include_url=False)
    first = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")  # a misspelt key explains the rest
    path = tuple(str(part) for part in first["loc"])
    what, mend = _explain(cls, path, first)
    where = next((origin[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origin), "")
    if len(faults) > 1:
        others = sorted(
            {".".join(str(part) for part in fault["loc"]) or "(whole)" for fault in faults if fault != first}
        )
        where = "; ".join(filter(None, (where, f"{len(faults) - 1} more: {', '.join(others[:5])}")))
    return ConfigError(what, where=where, mend=mend)


def _explain(cls: type[BaseModel], path: tuple[str, ...], fault: ErrorDetails) -> tuple[str, str]:
    name = ".".join(path) or cls.__name__
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind == "extra_forbidden" or kind == "unexpected_keyword_argument":
        near = difflib.get_close_matches(path[-1], list(_keys_at(cls, path[:-1])), n=1)
        known = ", ".join(sorted(_keys_at(cls, path[:-1])))
        return f"unknown key {name}", f"did you mean {'.'.join((*path[:-1], near[0]))}?" if near else f"known: {known}"
    if kind in ("missing", "missing_argument"):
        return f"{name} is missing", f"give it, for example {name}=..."
    if kind == "value_error":
        message = str(context.get("error", fault["msg"]))
        what, _, mend = message.partition("; mend: ")
        return (f"{name}: {what}" if path else what), mend
    words = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    words = words.replace("String should match pattern", "text that fits the pattern")
    example = f"for example {name}={_example(fault)}" if _example(fault) else ""
    return f"{name} is {json.dumps(value, default=str)}; it must be {words}", example


def _example(fault: ErrorDetails) -> str:
    context, kind = fault.get("ctx", {}), fault["type"]
    if kind in ("greater_than", "greater_than_equal"):
        bound = context.get("gt", context.get("ge", 0))
        return str(bound if kind == "greater_than_equal" else (bound + 1 if isinstance(bound, int) else bound + 0.1))
    if kind == "literal_error":
        return str(context.get("expected", "")).split(" or ")[0].split(",")[0].strip("'")
    return {"int_type": "1", "float_type": "0.1", "bool_type": "true", "string_type": "'text'"}.get(kind, "")


def _keys_at(cls: type[BaseModel], path: Sequence[str]) -> Iterator[str]:
    """Yield the keys that the schema knows at a path, through nested models and dataclasses."""
    here: Any = cls
    is_key = False
    for part in path:
        if is_key:  # a key of a mapping, `space.<any>`: what stands under it was found with the mapping
            is_key = False
            continue
        fields = getattr(here, "model_fields", None) or getattr(here, "__dataclass_fields__", {})
        field = fields.get(part)
        annotation = getattr(field, "annotation", None) or getattr(field, "type", None)
        if get_origin(annotation) is not None:
            is_key = get_origin(annotation) is dict
            annotation = next((arg for arg in get_args(annotation) if hasattr(arg, "model_fields")), None)
        here = annotation
    yield from getattr(here, "model_fields", None) or getattr(here, "__dataclass_fields__", {})
