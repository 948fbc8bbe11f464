"""A real S3-compatible server behind a wire that delays every answer, and that counts what is on its way at once."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

BUCKET = "far"


@dataclass
class Wire:
    """What passed: `largest` is the most requests that were without an answer at one moment."""

    port: int = 0
    requests: int = 0
    largest: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self) -> None:
        with self._lock:
            self.requests += 1
            self._open += 1
            self.largest = max(self.largest, self._open)

    def answered(self) -> None:
        with self._lock:
            self._open -= 1

    def forget(self) -> None:
        with self._lock:
            self.requests = self.largest = 0


class _Link:
    """One connection; HTTP/1.1 sends a request only when the answer before it has come."""

    def __init__(self, near: socket.socket, far: socket.socket, wire: Wire, delay_s: float) -> None:
        self._near, self._far, self._wire, self._delay_s = near, far, wire, delay_s
        self._is_asked = False

    def start(self) -> None:
        for carry in (self._carry_requests, self._carry_answers):
            threading.Thread(target=carry, daemon=True).start()

    def _carry_requests(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._near.recv(65_536):
                if not self._is_asked:
                    self._is_asked = True
                    self._wire.asked()
                self._far.sendall(data)
            self._far.shutdown(socket.SHUT_WR)

    def _carry_answers(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._far.recv(65_536):
                if self._is_asked:
                    time.sleep(self._delay_s)
                    self._is_asked = False
                    self._wire.answered()
                self._near.sendall(data)
            self._near.shutdown(socket.SHUT_WR)


def _accept(listener: socket.socket, port: int, wire: Wire, delay_s: float) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = listener.accept()
            _Link(near, socket.create_connection(("127.0.0.1", port)), wire, delay_s).start()


@contextlib.contextmanager
def distant_store(delay_s: float) -> Iterator[tuple[Wire, dict[str, str]]]:
    """Start moto's server with an empty bucket `far`; yield the wire to it, and the environment that leads over it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    who = "Credential=test/20200101/us-east-1/s3/aws4_request"
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{BUCKET}", method="PUT", headers={"Authorization": f"AWS4-HMAC-SHA256 {who}"}
    )
    urllib.request.urlopen(request, timeout=30).close()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        wire = Wire(listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, port, wire, delay_s), daemon=True).start()
        yield (
            wire,
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "test-access-key",
                "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            },
        )
    server.stop()
