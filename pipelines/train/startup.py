"""Where the seconds before the first step go: moments that driver and worker pass, kept with the run.

`_work/start.json` holds them in order, as [name, Unix time] pairs; `tests/benchmarks/test_first_step.py` draws them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

START = "_work/start.json"

Mark = tuple[str, float]

_MARKS: list[Mark] = []


def begin(marks: Sequence[Mark] = ()) -> None:
    """Forget what this process has passed, and take over what another has on the way here."""
    _MARKS[:] = [(name, at_s) for name, at_s in marks]


def mark(name: str) -> None:
    """Note that the start has come so far."""
    _MARKS.append((name, time.time()))


def marks() -> list[Mark]:
    """Return what was passed so far."""
    return list(_MARKS)


def has_passed(name: str) -> bool:
    """Return whether the start has come so far."""
    return any(passed == name for passed, _ in marks())


def to_json() -> bytes:
    """Return the marks as they are kept."""
    return json.dumps(_MARKS, indent=1).encode()
