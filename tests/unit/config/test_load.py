"""Loading a config: precedence, YAML's traps, and the text of every refusal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pipelines.config.load import load_config, parse_override, read_yaml
from pipelines.config.strict import StrictModel, later_field, output_values, runtime_field
from pipelines.errors import ConfigError


@dataclass(frozen=True)
class Spec:
    depth: int = 20
    widths: tuple[int, ...] = (16, 32)


class Optimizer(StrictModel):
    lr: float = Field(0.1, gt=0)
    kind: Literal["sgd", "adamw"] = "sgd"


class Example(StrictModel):
    name: str = "x"
    optimizer: Optimizer = Optimizer()
    spec: Spec = Spec()
    num_workers: int = runtime_field(1, ge=1)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return path


def message(source: Path | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(Example, source, overrides)
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_precedence_is_defaults_file_inputs_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "name: file\nspec: {depth: 8}\noptimizer: {lr: 1e-3}\n")
    config = load_config(Example, path, ["spec.depth=32", "spec.widths=[1, 2, 3]"], {"name": "given"})
    assert config == Example(name="given", spec=Spec(32, (1, 2, 3)), optimizer=Optimizer(lr=0.001))


def test_value_out_of_range_names_line_and_override(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\noptimizer:\n  lr: 0.1\n")
    assert message(path, "optimizer.lr=-0.1") == (
        "ConfigError: optimizer.lr is -0.1; it must be greater than 0\n"
        f"  where: {path} line 3, then overridden on the command line\n"
        "  mend:  for example optimizer.lr=0.1"
    )


@pytest.mark.parametrize(
    ("override", "what", "mend"),
    [
        ("optimizer.lrr=1", "unknown key optimizer.lrr", "did you mean optimizer.lr?"),
        ("spec.dept=1", "unknown key spec.dept", "did you mean spec.depth?"),
        ("zzz=1", "unknown key zzz", "known: name, num_workers, optimizer, spec"),
        ("optimizer.kind=lion", "optimizer.kind is \"lion\"; it must be 'sgd' or 'adamw'", "optimizer.kind=sgd"),
        ("num_workers=0", "num_workers is 0; it must be greater than or equal to 1", "num_workers=1"),
        ("num_workers=two", 'num_workers is "two"; it must be a valid integer', "num_workers=1"),
        ("num_workers=true", "num_workers is true; it must be a valid integer", "num_workers=1"),
        ("name=3", "name is 3; it must be a valid string", "name='text'"),
        ("depth", "override 'depth' is not key=value", "without spaces around the ="),
        ("name=[", "value of name is not YAML", "quote it"),
    ],
)
def test_refusals_say_what_and_how_to_mend(override: str, what: str, mend: str) -> None:
    text = message(None, override)
    assert what in text
    assert mend in text
    assert "the command line" in text


def test_several_faults_are_counted() -> None:
    assert "1 more: num_workers" in message(None, "num_workers=0", "spec.depth=x")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name: a\nname: b\n", "key 'name' is given twice"),
        ("name: !!python/object:os.system {}\n", "tag tag:yaml.org,2002:python/object:os.system is not allowed"),
        ("name: &a [1]\nspec: *a\n", "aliases (*name) are not allowed"),
        ("- 1\n", "does not hold keys and values"),
        ("name: [\n", "line 2"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, what: str) -> None:
    assert what in message(write(tmp_path, text))


def test_yaml_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    deep = 2_000 * "["
    assert "is not YAML: it is nested too deeply" in message(write(tmp_path, f"name: {deep}"))
    assert "value of name is not YAML: it is nested too deeply" in message(None, f"name={deep}")


def test_missing_file_and_bad_encoding(tmp_path: Path) -> None:
    assert "cannot be read" in message(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    assert "is not UTF-8 at byte 9" in message(path)


def test_yaml_traps_stay_text_and_numbers_stay_numbers(tmp_path: Path) -> None:
    text = "a: no\nb: on\nc: 0123\nd: 12:30:45\ne: 2001-01-01\nf: 1e-3\ng: null\nh: true\ni: -7\n"
    values, lines = read_yaml(write(tmp_path, text))
    expected = {"a": "no", "b": "on", "c": "0123", "d": "12:30:45", "e": "2001-01-01", "f": 0.001, "g": None}
    assert values == expected | {"h": True, "i": -7}
    assert lines[("f",)] == 6


plain = st.one_of(
    st.integers(-(10**9), 10**9),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(alphabet="abcXYZ019 -_.:/", max_size=12),
)


@given(plain)
def test_override_values_round_trip(value: object) -> None:
    dumped = yaml.safe_dump(value, default_style='"' if isinstance(value, str) else None).split("\n...")[0].strip()
    key, parsed = parse_override(f"a.b={dumped}")
    assert key == "a.b"
    assert parsed == value
    assert type(parsed) is type(value)


def test_runtime_fields_are_not_output() -> None:
    few, many = Example(num_workers=1), Example(num_workers=8)
    assert output_values(few) == output_values(many)
    assert "num_workers" not in output_values(few)
    assert output_values(Example(name="y")) != output_values(few)


def test_a_field_added_later_leaves_old_keys_alone() -> None:
    class Grown(Example):
        blur: float = later_field(0.0, legacy=0.0)

    assert output_values(Grown()) == output_values(Example())
    assert output_values(Grown(blur=1.0))["blur"] == 1.0


@pytest.mark.parametrize("mark", ["|", ",", ">"])
def test_a_separator_alone_is_text(mark: str) -> None:
    assert parse_override(f"label_separator={mark}") == ("label_separator", mark)
