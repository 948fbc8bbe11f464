"""A gateway in front of MLflow: what it turns away for good, what passes, and what the user is told."""

from __future__ import annotations

import contextlib
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError

import pytest
from typing_extensions import override

from pipelines.errors import RegistryError
from pipelines.tracking import RunLog, TrackingConfig, open_client, store_faults

pytestmark = pytest.mark.integration

NO_ROUTE = (404, b'{"message": "no Route matched with those values"}')  # as Kong says it
MEND = (
    "check the address with its path, the credentials, and that a gateway in front of MLflow passes on /api/ and all"
    " below it"
)


@dataclass
class Gateway:
    """Passes requests on to MLflow, but for those whose path holds one of `closed`."""

    mlflow: str
    answer: tuple[int, bytes] = NO_ROUTE
    closed: list[str] = field(default_factory=list)
    uri: str = ""


class _Handler(BaseHTTPRequestHandler):
    def _pass_on(self) -> None:
        gateway: Gateway = self.server.gateway  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if any(part in self.path for part in gateway.closed):
            self._answer(*gateway.answer)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(gateway.mlflow + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                self._answer(answer.status, answer.read())
        except HTTPError as error:
            self._answer(error.code, error.read())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, *_: Any, **__: Any) -> None:
        pass


@contextlib.contextmanager
def gateway_to(mlflow: str) -> Iterator[Gateway]:
    """Yield a gateway to an address; `test_tracking_away.py` puts one before a real MLflow."""
    gateway = Gateway(mlflow)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.gateway = gateway  # type: ignore[attr-defined]
        gateway.uri = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield gateway
        server.shutdown()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with gateway_to("") as gateway:
        yield gateway


def open_log(gateway: Gateway, run_id: str = "") -> RunLog:
    return RunLog.open(TrackingConfig(uri=gateway.uri, experiment="gateway"), run_name="r", run_id=run_id)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (NO_ROUTE, '{"message": "no Route matched with those values"}'),
        ((404, b"<html>\n default backend </html>"), "HTTP 404 <html> default backend </html>"),
        ((401, b'{"message": "no key"}'), '{"message": "no key"}'),
        ((404, b'{"error_code": "NO_SUCH_ROUTE"}'), '{"error_code": "NO_SUCH_ROUTE"}'),
        ((200, b"<html>please log in</html>"), "<html>please log in</html>"),
        ((200, b"{}"), "an experiment without an id"),
    ],
)
def test_an_address_that_is_not_mlflow_is_refused_before_work(
    gateway: Gateway, answer: tuple[int, bytes], shown: str
) -> None:
    gateway.answer, gateway.closed = answer, ["/"]
    with pytest.raises(RegistryError) as caught:
        open_log(gateway)
    assert str(caught.value) == (
        f"RegistryError: the address answers, but not as MLflow does: {shown}\n"
        f"  where: {gateway.uri}\n"
        f"  mend:  {MEND}, or run with tracking.enabled=false"
    )


def test_the_registry_says_so_too(gateway: Gateway) -> None:
    gateway.closed = ["/"]
    with pytest.raises(RegistryError) as caught, store_faults(gateway.uri):
        open_client(gateway.uri).search_registered_models()
    assert caught.value.what == (
        'the MLflow store cannot be used: the address answers, but not as MLflow does: {"message": "no Route matched'
        ' with those values"}'
    )
    assert caught.value.mend == MEND


def test_a_gateway_that_is_up_before_mlflow_is_an_outage(gateway: Gateway) -> None:
    gateway.answer, gateway.closed = (503, b'{"message": "no healthy upstream"}'), ["/"]
    log = open_log(gateway)
    assert log.run_id == ""
