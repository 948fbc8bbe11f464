"""What an MLflow address answers: an outage that may pass, MLflow's own refusal, or something that is not MLflow.

A gateway in front of MLflow has answers of its own. Those that pass by themselves (408, 429, 500, 502 to 504) are never
seen here: MLflow's client asks again, and then raises for want of an answer.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pipelines.errors import RegistryError
from pipelines.redact import redact

PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "NOT_FOUND")
"""MLflow's codes of errors that sending the same thing again cannot mend."""
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")

MEND = (
    "check the address with its path, the credentials, and that a gateway in front of MLflow passes on /api/ and all"
    " below it"
)

_BY_STATUS = re.compile(r"failed with error code (\d{3}) != \d{3}\. Response body: '(.*)'\Z", re.DOTALL)
_NO_JSON = re.compile(r"not in a valid JSON format\. Response body: '(.*)'\Z", re.DOTALL)
_MAY_BE_LET_IN = ("401", "403")  # MLflow's own, where they are plain text: a token or a right may be given again
_PASSING = (408, 429)
_LONGEST = 200


class NotMlflowError(Exception):
    """What answers is some other service."""


class NotOfferedError(Exception):
    """The server knows nothing of what a record needs: sending it again cannot help, and nothing else has to wait."""


def error_code(error: Exception) -> str:
    """Return MLflow's code of an error, empty where it has none."""
    return str(getattr(error, "error_code", ""))


def is_final(error: Exception | None) -> bool:
    """Return whether MLflow would answer the same for ever."""
    return isinstance(error, NotOfferedError) or (error is not None and error_code(error) in PERMANENT)


def foreign_answer(error: Exception | None) -> str:
    """Return what was answered, in a line, where it is final and not MLflow's own; empty for all else.

    Of uploads of files every refusal counts: they pass through other services in any case.
    """
    if isinstance(error, NotOfferedError):
        return ""
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if 400 <= status < 500 and status not in _PASSING:
        return _line(f"HTTP {status} {response.text}")
    answered = getattr(error, "json", None)
    if isinstance(answered, dict):
        from mlflow.protos.databricks_pb2 import ErrorCode

        return "" if answered.get("error_code") in ErrorCode.keys() else _line(json.dumps(answered))  # noqa: SIM118
    if isinstance(error, NotMlflowError):
        return _line(str(error))
    if found := _BY_STATUS.search(str(error)):
        status_text, body = found.groups()
        stays = status_text.startswith("4") and status_text not in _MAY_BE_LET_IN
        return _line(f"HTTP {status_text} {body}") if stays else ""
    if found := _NO_JSON.search(str(error)):
        return _line(found[1])
    return ""


def refuse_at_start(error: Exception, uri: str, *, is_known: bool) -> None:
    """Raise, before work begins, where no waiting mends what a store answered.

    Args:
        error: what opening a run raised.
        uri: address of the store.
        is_known: MLflow was met there before: an answer that is not its own is then an outage, and passes.

    Raises:
        RegistryError: the store refuses us, cannot be opened, or is not MLflow.
    """
    what, mend = "", "check tracking.uri and its credentials"
    if isinstance(error, RegistryError):
        if uri.startswith("sqlite:"):
            raise error
    elif uri.startswith("sqlite:") or error_code(error) in PERMANENT + REFUSED:
        what = f"MLflow cannot open a run: {redact(str(error))[:500]}"
    elif not is_known and (answer := foreign_answer(error)):
        what, mend = f"the address answers, but not as MLflow does: {answer}", MEND
    if what:
        raise RegistryError(what, where=redact(uri), mend=f"{mend}, or run with tracking.enabled=false") from error


def outage_text(error: Exception, uri: str, run_name: str) -> str:
    """Say that the records of a run wait, and for what."""
    waits = f"run {run_name!r} goes on, its records are kept and sent later."
    if answer := foreign_answer(error):
        return f"{redact(uri)} answers, but not as MLflow does ({answer}); {waits} Mend: {MEND}."
    said = redact(str(error)).splitlines()
    return f"MLflow at {redact(uri)} does not answer ({said[0][:200] if said else type(error).__name__}); {waits}"


def refused_text(error: Exception, uri: str, run_name: str, what: str) -> str:
    """Say that something of a run is not recorded while all else is."""
    answer = foreign_answer(error)
    if answer and error_code(error) not in PERMANENT:
        return (
            f"{what} of run {run_name!r} cannot be recorded: MLflow at {redact(uri)} answers for the run, but to this"
            f" came {answer}. Mend: {MEND}."
        )
    return f"MLflow refused {what} of run {run_name!r}: {redact(str(error))}"


def _line(text: str) -> str:
    return " ".join(redact(text).split())[:_LONGEST] or "nothing"
