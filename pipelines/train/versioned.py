"""JSON objects that carry a format version, as small files of a run do."""

from __future__ import annotations

import json
from typing import Any


def parse_versioned(data: bytes, newest: int) -> dict[str, Any]:
    """Return the object of a file.

    Args:
        data: the file.
        newest: the newest version that is known; all earlier ones are read too.

    Raises:
        ValueError: it is no JSON object, or one without a version, or of a version that is not known.
    """
    values = json.loads(data)
    if not isinstance(values, dict) or not isinstance(values.get("format_version"), int):
        raise ValueError("it carries no format version")
    if not 1 <= values["format_version"] <= newest:
        raise ValueError(f"its format version is {values['format_version']}; this program reads up to {newest}")
    return values
