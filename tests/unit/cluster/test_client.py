import http.server
import json
import os
import threading

import pytest

from cluster.client import ServerFacts, _environment, find_token, is_loopback, normal_address, probe
from pipelines.errors import ClusterError, InputError


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Return a function that starts a small HTTP server answering as a job server would."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    servers = []

    def start(answers, token=""):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                open_path = self.path == "/api/authentication_mode"
                given = self.headers.get("Authorization", "")
                if token and not open_path and given != f"Bearer {token}":
                    self.send_error(403 if given else 401)
                elif self.path not in answers:
                    self.send_error(404)
                else:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(json.dumps(answers[self.path]).encode())

            def log_message(self, *args):
                pass

        httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        servers.append(httpd)
        return f"http://127.0.0.1:{httpd.server_address[1]}"

    yield start
    for httpd in servers:
        httpd.shutdown()
        httpd.server_close()


RAY = {"/api/version": {"ray_version": "2.60.0"}, "/api/authentication_mode": {"authentication_mode": "token"}}


def test_an_open_cluster_is_described(server):
    address = server({"/api/version": {"ray_version": "2.60.0"}})
    assert probe(address) == ServerFacts(address, "2.60.0", needs_token=False)


def test_a_missing_token_is_said_before_anything_is_sent(server):
    address = server(RAY, token="right")
    with pytest.raises(ClusterError, match="asks for a token and there is none here") as refused:
        probe(address)
    assert "ray get-auth-token" in refused.value.mend


def test_the_right_token_is_taken_from_its_file_and_a_wrong_one_refused(server, tmp_path):
    address = server(RAY, token="right")
    (tmp_path / "token").write_text("right\n")
    assert probe(address).needs_token
    (tmp_path / "token").write_text("wrong\n")
    with pytest.raises(ClusterError, match=f"the cluster at {address} refuses the token"):
        probe(address)


def test_something_else_on_the_port_is_recognised(server):
    address = server({"/api/version": {"name": "another service"}})
    with pytest.raises(ClusterError, match="answers, but it is not a Ray job server"):
        probe(address)


def test_nobody_there_is_said_with_the_address():
    with pytest.raises(ClusterError, match=r"no Ray job server answers at http://127\.0\.0\.1:1: "):
        probe("http://127.0.0.1:1")


@pytest.mark.parametrize("address", ["", "auto", "ray://h:10001", "ftp://h", "http://"])
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match="is not the address of a job server"):
        normal_address(address)


def test_the_usual_port_is_added():
    assert normal_address(" http://head/ ") == "http://head:8265"
    assert normal_address("https://ray.example") == "https://ray.example"


def test_loopback_is_known():
    assert is_loopback("http://127.0.0.1:8265")
    assert is_loopback("http://localhost:8265")
    assert not is_loopback("http://head:8265")


def test_the_variable_wins_over_the_file(monkeypatch, tmp_path):
    (tmp_path / "t").write_text("file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "t"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert find_token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert find_token() == "variable"


def test_address_variables_of_ray_do_not_divert_a_job_and_are_put_back(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:1")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with _environment(ServerFacts("http://h:1", "2.60.0", needs_token=True)):
        assert "RAY_ADDRESS" not in os.environ
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_ADDRESS"] == "http://elsewhere:1"
    assert "RAY_AUTH_MODE" not in os.environ
