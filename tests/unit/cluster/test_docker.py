"""Docker does not run in tests; what its files must never lose is read from them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"


def lines():
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def compose():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_the_last_stage_runs_as_a_numbered_user_that_is_not_root():
    last_stage = lines()[max(index for index, line in enumerate(lines()) if line.startswith("FROM")) :]
    users = [line.split()[1] for line in last_stage if line.startswith("USER")]
    assert users == ["10001:10001"]
    after = last_stage[last_stage.index(f"USER {users[0]}") :]
    assert not [line for line in after if line.startswith("RUN")]


def test_images_are_pinned_to_a_version():
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE))
    for line in lines():
        if line.startswith("FROM"):
            image = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match.group(1)], line.split()[1])
            assert re.search(r":\d+\.\d+", image), f"{image} has no exact version"
    for text in ((DOCKER / "Dockerfile").read_text(), (DOCKER / "compose.yaml").read_text()):
        assert ":latest" not in text


def test_there_is_a_health_check_and_no_compiler():
    text = "\n".join(lines())
    assert "HEALTHCHECK" in text
    assert not re.search(r"apt-get|build-essential|\bgcc\b", text)


def test_ports_are_published_on_loopback_alone():
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert len(published) == 2
    for port in published:
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", ["head", "worker", "mlflow"])
def test_services_have_no_more_rights_than_they_need(name):
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


def test_ray_asks_for_a_token_on_every_node():
    for name in ("head", "worker"):
        environment = compose()["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_auth_token"


def test_mlflow_has_users_allowed_hosts_and_denies_by_default():
    service = compose()["services"]["mlflow"]
    assert "mlflow:5000" in service["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert service["environment"]["MLFLOW_BASIC_AUTH_FAIL_CLOSED"] == "true"
    assert "default_permission = NO_PERMISSIONS" in compose()["configs"]["mlflow_auth"]["content"]
    assert "--app-name basic-auth" in (DOCKER / "entrypoint.sh").read_text()


def test_secrets_are_files_and_never_values():
    for service in compose()["services"].values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", name):
                assert name.endswith(("_FILE", "_PATH"))
                assert str(value).startswith("/run/secrets/")
    assert {secret["file"] for secret in compose()["secrets"].values()} == {
        f"./secrets/{name}" for name in compose()["secrets"]
    }


def run_entrypoint(*args, **environment):
    return subprocess.run(
        ["sh", str(DOCKER / "entrypoint.sh"), *args],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "environment", "message"),
    [
        ((), {}, "entrypoint: give a role (head, worker, mlflow) or a command"),
        (("head",), {}, "entrypoint: RAY_AUTH_MODE is ''; clusters run with token"),
        (
            ("worker",),
            {"RAY_AUTH_MODE": "off"},
            "entrypoint: RAY_AUTH_MODE is 'off'; clusters run with token",
        ),
        (
            ("head",),
            {"RAY_AUTH_MODE": "token"},
            "entrypoint: RAY_AUTH_TOKEN_PATH is not set: mount the cluster's token as a secret",
        ),
        (
            ("head",),
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"},
            "entrypoint: /nowhere is missing or empty",
        ),
        (("mlflow",), {}, "entrypoint: MLFLOW_AUTH_ADMIN_PASSWORD(_FILE) is not set"),
    ],
)
def test_the_entry_point_refuses_an_unsafe_start(args, environment, message):
    ended = run_entrypoint(*args, **environment)
    assert ended.returncode == 2
    assert ended.stderr.strip() == message


def test_the_entry_point_reads_secrets_from_files_and_runs_a_command(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    ended = run_entrypoint("printenv", "AWS_SECRET_ACCESS_KEY", AWS_SECRET_ACCESS_KEY_FILE=str(secret))
    assert ended.stdout == "correct horse\n"
    assert ended.returncode == 0
