import json
import stat

import pytest

from cluster.environment import HIDDEN_FILE, read_hidden, split_environment, write_hidden
from pipelines.errors import ConfigError

SHELL = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "correct-horse",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    "HOME": "/home/somebody",
    "LIMIT": "7",
}


def test_only_named_variables_travel_and_secrets_stay_without_being_asked_for():
    seen, hidden = split_environment((), SHELL)
    assert seen["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    assert seen["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "HOME" not in seen
    assert not hidden
    assert "correct-horse" not in json.dumps(seen)


def test_a_secret_that_is_named_is_hidden_and_an_ordinary_name_is_not():
    seen, hidden = split_environment(["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "LIMIT"], SHELL)
    assert hidden == {"AWS_SECRET_ACCESS_KEY": "correct-horse", "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE"}
    assert seen["LIMIT"] == "7"


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SSE_CUSTOMER_KEY_BASE64",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    ],
)
def test_keys_of_storage_services_are_hidden(name):
    seen, hidden = split_environment([name], {name: "correct-horse"})
    assert hidden == {name: "correct-horse"}
    assert "correct-horse" not in json.dumps(seen)


def test_an_address_that_holds_a_password_is_hidden():
    seen, hidden = split_environment((), {"MLFLOW_TRACKING_URI": "https://joe:s3cr3t@mlflow.example"})
    assert hidden == {"MLFLOW_TRACKING_URI": "https://joe:s3cr3t@mlflow.example"}
    assert "MLFLOW_TRACKING_URI" not in seen


def test_pickles_stay_forbidden_on_the_cluster():
    seen, _ = split_environment((), {})
    assert seen["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_a_name_that_is_not_set_is_refused():
    with pytest.raises(ConfigError) as refused:
        split_environment(["MY_TOKEN"], SHELL)
    assert str(refused.value) == (
        "ConfigError: variable MY_TOKEN is to be passed to the job but is not set here\n"
        "  where: --env\n"
        "  mend:  export MY_TOKEN=..., or leave it out and set it on the cluster's nodes"
    )


def test_hidden_variables_come_back_from_a_file_only_its_owner_reads(tmp_path):
    assert read_hidden(tmp_path) == {}
    write_hidden(tmp_path, {"A_TOKEN": "x"})
    assert stat.S_IMODE((tmp_path / HIDDEN_FILE).stat().st_mode) == 0o600
    assert read_hidden(tmp_path) == {"A_TOKEN": "x"}


@pytest.mark.parametrize(
    "name",
    [
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SSE_CUSTOMER_KEY_BASE64",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
    ],
)
def test_every_stores_secrets_are_hidden(name):
    seen, hidden = split_environment([name], {name: "correct-horse"})
    assert hidden == {name: "correct-horse"}
    assert name not in seen
