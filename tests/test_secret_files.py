"""Secrets are read from files, and no process inherits one that it does not need."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from onelane import secret_files
from onelane.errors import BadConfig
from onelane.telemetry.sinks.otlp.pipe import LOGS, TRACES
from onelane.telemetry.sinks.otlp.target import target_of

from tests.config.test_file import GOOD, load
from tests.running_app import RunningApp, echo, http_request, running

SECRETS = {
    "OTEL_EXPORTER_OTLP_HEADERS": "api-key=swordfish",
    "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "api-key=swordfish",
    "ONELANE_APPS__ECHO__CONFIG__PASSWORD": "swordfish",
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("secrets")
    secret = secret_file(folder, "the-swordfish\n")
    endpoint = "http://127.0.0.1:9"
    environment = {"ONELANE_ADMIN_TOKEN_FILE": secret, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **SECRETS}
    # In fresh processes: their environments in /proc are what they were started with.
    with running(folder, echo(1), python=sys.executable, **environment) as running_app:
        yield running_app


def secret_file(folder: Path, text: str, mode: int = 0o600) -> str:
    file = folder / "secret"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def environments_of_children(pid: int) -> dict[str, str]:
    """Command line → environment of every child of a process. Linux only."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {
        Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "): Path(f"/proc/{child}/environ").read_text()
        for child in children
    }


def test_only_the_exporter_inherits_headers_and_no_process_the_token(app: RunningApp) -> None:
    environments = environments_of_children(app.process.pid)
    (exporter,) = [command for command in environments if "otlp.exporter" in command]
    exporters = environments.pop(exporter)
    assert len(environments) == 2, "the fork server, with whose environment the shard has begun, and the guard"
    names = ["swordfish", "HEADERS", "ADMIN_TOKEN"]
    assert [name for text in environments.values() for name in names if name in text] == []
    assert exporters.count("api-key=swordfish") == 2
    assert "ADMIN_TOKEN" not in exporters
    assert "PASSWORD" not in exporters


def test_the_token_of_a_file_opens_the_admin_address(app: RunningApp) -> None:
    url = f"http://{app.admin}/status"
    assert http_request(url)[0] == 401
    assert http_request(url, Authorization="Bearer the-swordfish")[0] == 200


def test_secrets_are_back_in_the_environment_once_a_command_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = SECRETS | {"ONELANE_CLUSTER__ETCD_PASSWORD": "swordfish"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with secret_files.kept_from_children() as whole:
        assert whole.items() >= secrets.items()
        assert secrets.keys() & os.environ.keys() == set()
    assert os.environ.items() >= secrets.items()
    assert "ONELANE_CLUSTER__ETCD_PASSWORD" not in secret_files.for_exporter(secrets)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "admin_token_file: .*secret cannot be read: No such file"),
        (b" \n", "admin_token_file: .*secret is empty"),
        (b"\xff\xfe", "admin_token_file: .*secret is no text in UTF-8"),
        (b"x" * 70_000, "admin_token_file: .*secret is longer than 64 KiB"),
        (b"short", "admin_token: String should have at least 8 characters, seen a text"),
    ],
)
def test_a_file_that_holds_no_token_is_a_fault(tmp_path: Path, text: bytes | None, fault: str) -> None:
    if text is not None:
        (tmp_path / "secret").write_bytes(text)
    with pytest.raises(BadConfig, match=fault):
        load(tmp_path, f'admin_token_file = "{tmp_path}/secret"\n{GOOD}')


def test_a_token_and_a_file_of_it_contradict_each_other_but_variables_overrule_both(tmp_path: Path) -> None:
    secret = secret_file(tmp_path, "the-swordfish")
    with pytest.raises(BadConfig, match="admin_token and admin_token_file are both set, expected one of them"):
        load(tmp_path, f'admin_token = "another-token"\nadmin_token_file = "{secret}"\n{GOOD}')
    read = load(tmp_path, f'admin_token = "another-token"\n{GOOD}', ONELANE_ADMIN_TOKEN_FILE=secret)
    assert read.admin_token == "the-swordfish"
    read = load(tmp_path, f'admin_token_file = "{secret}"\n{GOOD}', ONELANE_ADMIN_TOKEN="another-token")
    assert read.admin_token == "another-token"


def test_a_secret_that_every_user_may_read_is_warned_of(tmp_path: Path) -> None:
    secret = secret_file(tmp_path, "the-swordfish", 0o644)
    (warning,) = secret_files.warnings_of({"admin_token_file": secret, "another": "/nowhere"})
    assert warning == f"admin_token_file: every user may read {secret} (mode 0644), expected 0600"
    assert secret_files.warnings_of({"admin_token_file": secret_file(tmp_path, "the-swordfish")}) == []


def test_otlp_headers_come_from_a_file_for_each_signal_or_for_all(tmp_path: Path) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS_FILE": secret_file(tmp_path, "b=2\nc=3\n"),
    }
    traces, logs = target_of(environment, TRACES), target_of(environment, LOGS)
    assert traces is not None
    assert logs is not None
    assert (traces.headers, logs.headers) == ((("b", "2"), ("c", "3")), (("a", "1"),))
    assert list(secret_files.header_files(environment)) == ["OTEL_EXPORTER_OTLP_TRACES_HEADERS_FILE"]
