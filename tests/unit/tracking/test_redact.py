"""Secrets stay out of texts bound for logs, tags and catalogs."""

from __future__ import annotations

import pytest

from pipelines.redact import REDACTED, is_secret_name, redact, redact_address


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "hub.token",
        "AWS_SECRET_ACCESS_KEY",
        "api_key",
        "apikey",
        "db.passwd",
        "AWS_ACCESS_KEY_ID",
        "AWS_SSE_CUSTOMER_KEY_BASE64",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    ],
)
def test_secret_names_hide_their_value(name: str) -> None:
    assert is_secret_name(name)
    assert redact("hunter2-hunter2", name=name) == REDACTED


@pytest.mark.parametrize(
    "name", ["tokenizer", "num_tokens", "model.token_count_limits", "secretary", "keyboard", "key", "resnet.run_key"]
)
def test_ordinary_names_are_kept(name: str) -> None:
    # `token_count_limits` holds the word token as a part: hidden on the safe side.
    expected = name == "model.token_count_limits"
    assert is_secret_name(name) is expected


def test_reference_to_a_variable_is_no_secret() -> None:
    assert redact("env:HUB_TOKEN", name="token") == "env:HUB_TOKEN"


def test_userinfo_of_an_address_is_hidden() -> None:
    assert redact("postgresql://me:s3cr3t@db:5432/x") == f"postgresql://{REDACTED}@db:5432/x"
    assert redact("see http://me:p@ss@w0rd@db:5432/x, a@b") == f"see http://{REDACTED}@db:5432/x, a@b"
    assert redact("http://db:5432/x http://a:b@c") == f"http://db:5432/x http://{REDACTED}@c"
    assert redact("http://me:pa'ss@db:5432") == f"http://{REDACTED}@db:5432"
    assert redact("https://t0ken:@db") == f"https://{REDACTED}@db"
    assert redact('{"a":"http://db:5432","b":"c@d"}') == '{"a":"http://db:5432","b":"c@d"}'


def test_signed_address_loses_its_signature() -> None:
    text = redact("https://b.example/x.tar?X-Amz-Signature=abcdef0123&X-Amz-Date=2026")
    assert text == f"https://b.example/x.tar?X-Amz-Signature={REDACTED}&X-Amz-Date=2026"


def test_value_of_a_secret_variable_is_hidden_wherever_it_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "correct-horse-battery")
    monkeypatch.setenv("OTHER_TOKEN", "1")  # too short to be told from ordinary text
    assert redact("failed with correct-horse-battery at step 1") == f"failed with {REDACTED} at step 1"


def test_plain_text_is_unchanged() -> None:
    assert redact("s3://bucket/data@v3 lr=0.1 a:b@c") == "s3://bucket/data@v3 lr=0.1 a:b@c"


def test_the_working_directory_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/me/photos")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets")
    assert redact("sqlite:////home/me/photos/runs/mlflow.db") == "sqlite:////home/me/photos/runs/mlflow.db"
    assert redact("/var/run/secrets/x") == "/var/run/secrets/x"


def test_redacted_address_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "mlflow.example")
    assert redact_address("https://u:pw123@mlflow.example") == f"https://{REDACTED}@mlflow.example"
