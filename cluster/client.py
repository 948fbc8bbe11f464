"""The connection to a cluster's job server: address, token, versions, and its refusals in our words."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import ClusterError, InputError

_TIMEOUT_S = 10.0
_AUTH_MEND = (
    "get the cluster's token (`ray get-auth-token` on its head node), then export RAY_AUTH_TOKEN_PATH=FILE"
    " or put it in ~/.ray/auth_token (mode 0600)"
)
# Ray lets these override the address it is given; a job must go where the user pointed.
_OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
# Each upload would be told in two lines; these loggers set their own level when they are imported.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True)
class ServerFacts:
    """What a job server says of itself to anyone who asks."""

    address: str
    ray_version: str
    needs_token: bool


def normal_address(address: str) -> str:
    """Return the job server's address as `http(s)://HOST:PORT`.

    Raises:
        InputError: the address is empty or of another kind.
    """
    text = address.strip().rstrip("/")
    parts = urlsplit(text)
    if not text or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"cluster address {address!r} is not the address of a job server",
            where="--address",
            mend="give the dashboard's address, for example --address http://HOST:8265, or set RESNET_ADDRESS",
        )
    return text if parts.port or parts.scheme == "https" else f"{text}:8265"


def is_loopback(address: str) -> bool:
    """Return whether the job server is on this very machine."""
    host = urlsplit(address).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def find_token() -> str:
    """Return the token that Ray would use here, or an empty text: variable, then file named, then ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def probe(address: str) -> ServerFacts:
    """Ask a job server who it is, with a short time limit.

    Raises:
        ClusterError: nothing answers, something else answers, or the token is missing or wrong.
    """
    address = normal_address(address)
    mode = _get(address, "/api/authentication_mode", token="")
    needs_token = str(mode.get("authentication_mode", "disabled")).lower() not in ("disabled", "")
    token = find_token()
    if needs_token and not token:
        raise ClusterError(f"the cluster at {address} asks for a token and there is none here", mend=_AUTH_MEND)
    version = _get(address, "/api/version", token=token if needs_token else "")
    if "ray_version" not in version:
        raise ClusterError(f"{address} answers, but it is not a Ray job server", mend="check host and port (8265)")
    return ServerFacts(address, str(version["ray_version"]), needs_token)


@contextlib.contextmanager
def job_client(address: str) -> Iterator[Any]:
    """Connect to a job server and yield Ray's `JobSubmissionClient`; its exceptions leave as ours.

    Raises:
        ClusterError: it cannot be reached, refuses the token, runs another Ray than this machine, or refuses a call.
    """
    facts = probe(address)
    import ray

    if facts.ray_version != ray.__version__:
        raise ClusterError(
            f"the cluster at {facts.address} runs Ray {facts.ray_version}, this machine Ray {ray.__version__}",
            mend=f"pip install 'ray[default]=={facts.ray_version}' here, or upgrade the cluster",
        )
    with _environment(facts):
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        # Given by hand: Ray reads its own mode and token once per process, perhaps before this cluster was named.
        headers = {"Authorization": f"Bearer {find_token()}"} if facts.needs_token else {}
        try:
            yield JobSubmissionClient(facts.address, headers=headers)
        except AuthenticationError as error:
            raise ClusterError(f"the cluster at {facts.address} refuses the token", mend=_AUTH_MEND) from error
        except (ConnectionError, OSError) as error:
            raise ClusterError(
                f"the cluster at {facts.address} went away: {_first_line(error)}",
                mend="check that its head node is up, then run the same command again",
            ) from error
        except RuntimeError as error:
            raise ClusterError(f"the cluster at {facts.address} refuses: {_first_line(error)}") from error


@contextlib.contextmanager
def _environment(facts: ServerFacts) -> Iterator[None]:
    """Turn Ray's token mode on where the cluster has it, and keep its address variables from overriding ours."""
    kept = {name: os.environ.get(name) for name in (*_OVERRIDING, "RAY_AUTH_MODE")}
    for name in _OVERRIDING:
        os.environ.pop(name, None)
    if facts.needs_token:
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _get(address: str, path: str, *, token: str) -> dict[str, Any]:
    """Return the JSON object behind a GET."""
    request = urllib.request.Request(  # noqa: S310 - normal_address lets only http and https through
        address + path, headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            value = json.loads(answer.read(1 << 20))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ClusterError(f"the cluster at {address} refuses the token", mend=_AUTH_MEND) from error
        if error.code == 404:  # an older Ray, or no Ray at all: the version call will tell
            return {}
        raise ClusterError(f"the cluster at {address} answers {error.code} to {path}") from error
    except (TimeoutError, urllib.error.URLError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ClusterError(
            f"no Ray job server answers at {address}: {_first_line(reason)}",
            mend="check host and port, that the head node runs with its dashboard, and any tunnel or firewall",
        ) from error
    return value if isinstance(value, dict) else {}


def _first_line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:500] if text else type(error).__name__
