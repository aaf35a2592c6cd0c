"""The program starts the process that forks shards before its own imports, where a command needs it, and only there."""

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from onelane.cli import entry
from onelane.supervisor import server_process
from onelane.supervisor.server_process import ServerProcess


@pytest.mark.parametrize(
    ("arguments", "forks"),
    [
        (["up", "onelane.toml"], True),
        (["serve", "onelane.toml", "--app", "echo"], True),
        (["up", "onelane.toml", "--inline"], False),
        (["up", "--help"], False),
        (["check", "up"], False),
        ([], False),
    ],
)
def test_only_commands_that_run_shards_in_processes_start_it(arguments: list[str], forks: bool) -> None:
    assert entry.forks_shards(arguments) is forks


def test_a_command_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ServerProcess] = []
    start = server_process.start

    def record(environment: Mapping[str, str]) -> ServerProcess:
        started.append(start(environment))
        return started[0]

    monkeypatch.setattr(server_process, "SERVER", ("sleep", "3600"))
    monkeypatch.setattr(server_process, "start", record)
    monkeypatch.setattr(sys, "argv", ["onelane", "up", "there-is-none.toml"])
    with pytest.raises(SystemExit):
        entry.main()
    assert started[0].process.poll() is not None


def test_it_has_no_secret_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONELANE_ADMIN_TOKEN", "secret")
    seen: list[Mapping[str, str]] = []
    monkeypatch.setattr(server_process, "start_early", seen.append)
    entry._start_fork_server()
    assert "ONELANE_ADMIN_TOKEN" not in seen[0]
    assert "PATH" in seen[0]
    assert "ONELANE_ADMIN_TOKEN" in os.environ


def test_what_comes_before_it_imports_little() -> None:
    probe = (
        "import sys, onelane.cli.entry; "
        "print({'click', 'pydantic', 'asyncio', 'google.protobuf', 'onelane.config'} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
