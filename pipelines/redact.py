"""Keeps secrets out of what is logged or stored: names that hold secrets, and values that look like one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
"""What stands in a secret's place."""

# Whole words of a dotted name only: `optimizer.token_mixing` is not a secret, `hub.token` is.
_SECRET_NAME = re.compile(
    r"(?:^|[._\-\s])(?:password|passwd|pwd|passphrase|secret|token|api_?key|access_?key(?:_?id)?|private_?key"
    r"|credentials?|connection_?string)(?:$|[._\-\s])",
    re.IGNORECASE,
)
# Variables of storage services (AZURE_STORAGE_ACCOUNT_KEY); in capitals only, as `train_key` is no secret.
_SECRET_VARIABLE = re.compile(r"_KEY(?:_ID|_BASE64)?$")
_USERINFO = re.compile(r"(?<=://)[^/@\s:]*:[^/\s?#\"]*(?=@)")  # to the last @, as a password may hold one
_SIGNED_QUERY = re.compile(
    r"(?P<name>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|Signature|sig"
    r"|AWSAccessKeyId|access_?token|api_?key|token|password|secret)=)[^&\s#]+",
    re.IGNORECASE,
)
_NO_SECRETS = re.compile(r"^(?:OLD)?PWD$|_(?:FILE|PATH|DIR|URL|URI)$", re.IGNORECASE)  # names that look like one
_MIN_SECRET_LENGTH = 6  # shorter values ("1", "true", "admin") would redact ordinary text


def is_secret_name(name: str) -> bool:
    """Return whether a field, parameter or variable of this name holds a secret."""
    return bool(_SECRET_NAME.search(name) or _SECRET_VARIABLE.search(name))


def redact(text: str, *, name: str = "") -> str:
    """Return `text` without secrets.

    Args:
        text: anything bound for a log, a tag, a catalog or a message.
        name: name of the field it belongs to; a secret name hides the whole value, unless the value is a
            reference such as `env:HUB_TOKEN`, which is no secret.
    """
    if name and is_secret_name(name) and text and not text.startswith("env:"):
        return REDACTED
    text = redact_address(text)
    for secret in environment_secrets():
        text = text.replace(secret, REDACTED)
    return text


def redact_address(text: str) -> str:
    """Return a text without the passwords and signatures of addresses in it; it depends on nothing but the text."""
    return _SIGNED_QUERY.sub(rf"\g<name>{REDACTED}", _USERINFO.sub(REDACTED, text))


def environment_secrets() -> list[str]:
    """Return the values of this process's environment variables whose names hold secrets, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if is_secret_name(name) and not _NO_SECRETS.search(name) and len(value) >= _MIN_SECRET_LENGTH
    }
    return sorted(values, key=len, reverse=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as dotted names and texts, secrets redacted; lists become JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[name] = redact(text, name=name)
    return flat
