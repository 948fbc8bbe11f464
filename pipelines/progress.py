"""Progress of long work on standard error: done, total, rate and time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

_TERMINAL_EVERY_S = 0.5
_FILE_EVERY_S = 60.0


class Progress:
    """A line that is rewritten on a terminal and printed once a minute elsewhere.

    Args:
        total: how many units there are in all; 0 when not known.
        label: what is going on, for instance `ingest`.
        unit: the plural name of what is counted.
        stream: where to write; standard error by default.
    """

    def __init__(self, total: int, *, label: str, unit: str = "images", stream: TextIO | None = None) -> None:
        self._total = total
        self._label = label
        self._unit = unit
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._done = 0
        self._first = 0
        self._extra = ""
        self._started_s = time.monotonic()
        self._next_s = self._started_s + (_TERMINAL_EVERY_S if self._live else _FILE_EVERY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(end=True)

    def start_at(self, done: int) -> None:
        """Count work that an earlier, interrupted run did; it does not enter the rate."""
        self._done = self._first = done

    def advance(self, count: int = 1, **extra: object) -> None:
        """Count more units done; `extra` values are shown behind the rate."""
        self._done += count
        if extra:
            self._extra = "".join(f"  {name} {value}" for name, value in extra.items())
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + (_TERMINAL_EVERY_S if self._live else _FILE_EVERY_S)
            self._write()

    def say(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        self._stream.write(("\r\x1b[K" if self._live else "") + text + "\n")
        if self._live:
            self._write()
        self._stream.flush()

    def line(self) -> str:
        """Return the present line."""
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        rate = (self._done - self._first) / elapsed_s
        parts = [f"{self._label}: {self._done:,}" + (f"/{self._total:,}" if self._total else "") + f" {self._unit}"]
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2f}/s")
        if self._total and self._done < self._total and rate > 0:
            parts.append(f"{format_duration((self._total - self._done) / rate)} left")
        else:
            parts.append(f"in {format_duration(elapsed_s)}")
        return ", ".join(parts) + self._extra

    def _write(self, *, end: bool = False) -> None:
        if self._live:
            self._stream.write("\r\x1b[K" + self.line() + ("\n" if end else ""))
        else:
            self._stream.write(self.line() + "\n")
        self._stream.flush()


def format_duration(seconds: float) -> str:
    """Return a span as people say it: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
