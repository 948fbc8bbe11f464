"""A TCP wire to a real HTTP server that a test can cut, slow down, or have answer 500."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Mode = Literal["whole", "cut", "500", "slow"]

_ANSWER = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class FlakyWire:
    """Where to connect, and what happens to connections and to what is sent through them from now on."""

    port: int
    mode: Mode = "whole"
    slow_s: float = 3.0
    """Delay of each piece of an answer while the wire is slow."""


@contextlib.contextmanager
def flaky_wire(far_port: int) -> Iterator[FlakyWire]:
    """Yield a wire to a server on this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    wire = FlakyWire(listener.getsockname()[1])

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=_serve, args=(near, far_port, wire), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield wire
    finally:
        listener.close()


def _serve(near: socket.socket, far_port: int, wire: FlakyWire) -> None:
    with near, contextlib.suppress(OSError):
        if wire.mode == "cut":
            return
        if wire.mode == "500":
            near.recv(65_536)
            near.sendall(_ANSWER)
            return
        with socket.create_connection(("127.0.0.1", far_port)) as far:
            threading.Thread(target=_carry, args=(near, far, wire, False), daemon=True).start()
            _carry(far, near, wire, True)


def _carry(source: socket.socket, target: socket.socket, wire: FlakyWire, is_answer: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            if wire.mode == "cut":
                break
            if wire.mode == "500" and is_answer:  # on a connection that was kept open
                target.sendall(_ANSWER)
                break
            if wire.mode == "slow" and is_answer:
                time.sleep(wire.slow_s)
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
