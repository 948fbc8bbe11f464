"""How sampled values are written, in figures, tables and on the terminal; needs no numpy."""

from collections.abc import Mapping
from typing import Any


def describe_params(params: Mapping[str, Any]) -> str:
    """Write sampled values in one short line: the last part of each path and a rounded value."""
    return " · ".join(f"{path.rpartition('.')[2]} {format_value(value)}" for path, value in params.items())


def format_value(value: object) -> str:
    """Write one sampled value: floats with three significant digits, the rest as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
