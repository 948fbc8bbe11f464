"""What the interpreter itself does while a block runs: files opened, processes started, connections made."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "pty.spawn")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
_watching: list[tuple[Path, list[str]]] = []
_is_hooked = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    for folder, escapes in _watching:
        if event in _PROCESSES or event in ("socket.connect", "socket.getaddrinfo"):
            escapes.append(f"{event} {arguments[:2]}")
        elif event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
            path = arguments[0]
            if isinstance(path, (str, bytes)) and not os.path.abspath(os.fsdecode(path)).startswith(f"{folder}"):
                escapes.append(f"{event} {path!r}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)) and os.fsdecode(arguments[0])[:5] == "/etc/":
            escapes.append(f"{event} {arguments[0]!r}")


@contextlib.contextmanager
def nothing_escapes(folder: Path) -> Iterator[None]:
    """Fail if a process is started, a connection made, a file changed outside a folder, or one of /etc read."""
    global _is_hooked
    if not _is_hooked:  # a hook stays for the life of the process
        sys.addaudithook(_hook)
        _is_hooked = True
    escapes: list[str] = []
    _watching.append((folder, escapes))
    try:
        yield
    finally:
        _watching.pop()
    assert not escapes, escapes
