"""`make machines`: nothing is lost while machines are killed and added, and nothing is left behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import postgres, tools
from tests.arena.__main__ import main
from tests.arena.course import machine_names, names
from tests.namespaces.network import NAMESPACES, new_network
from tests.running_app import NEVER_LATE, ROOT, descendants, eventually, is_running

pytestmark = pytest.mark.slow


@pytest.fixture
def needs() -> None:
    """Skips where something is missing that machines need; the command says the same."""
    tools.program("etcd", "Debian's package etcd-server")
    if postgres.installed() is None:
        tools.absent("PostgreSQL is not installed (Debian's package postgresql)")
    with new_network():
        pass


@contextmanager
def machines(**environment: str) -> Iterator["subprocess.Popen[str]"]:
    """The command, ended by its signal if it has not ended."""
    never_late = NEVER_LATE.rpartition(" ")[2]
    late = {f"ONELANE_APPS__{app}__MAX_LATE_S": never_late for app in ("LOBBY", "PROFILE", "LEADERBOARD")}
    command = [sys.executable, "-m", "tests.arena", "--shards", "1", "--think", "0.2s"]
    variables = os.environ | late | {"PYTHONPATH": f"{ROOT}:{ROOT}/runtime"} | environment
    process = subprocess.Popen(
        command, env=variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For all temporary files of the command. Sockets are below it, and PostgreSQL's own user is to enter it."""
    with tempfile.TemporaryDirectory(prefix="tmp-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def left_by(pid: int, folder: Path) -> list[Path]:
    """Namespaces, interfaces and files of the command."""
    interfaces = Path("/sys/class/net").glob(f"ol{pid}-*")
    return [*NAMESPACES.glob(f"onelane-{pid}-*"), *interfaces, *folder.iterdir()]


async def test_a_machine_is_killed_and_one_is_added_and_nothing_is_lost_or_left(
    needs: None, short_folder: Path
) -> None:
    lines: list[str] = []
    with machines(TMPDIR=str(short_folder)) as process:
        assert process.stdout is not None
        # Without --for: until the signal.
        while "has joined" not in "".join(lines[-1:]):
            line = await asyncio.to_thread(process.stdout.readline)
            assert line, "".join(lines)
            lines.append(line)
        started = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        output = "".join(lines) + await asyncio.to_thread(process.stdout.read)
    assert process.returncode == 0, output
    assert "a, b and c have joined\n" in output
    [killed] = re.findall(r"s  (\w) is killed: all its processes at one moment$", output, re.MULTILINE)
    others = names([name for name in "abc" if name != killed])
    assert re.search(rf"s  {killed} was given up after \d+\.\d s, its keys are served by {others}; ", output), output
    [keys] = re.findall(r"s  d has joined after .* s: (\d+) keys went to it with their state; 0 calls failed", output)
    assert int(keys) > 0
    assert re.search(r"^\d+ players and \d+ open rooms compared; ", output, re.MULTILINE), output
    assert output.endswith("\nnothing lost\n")
    # Shards are below a process of their own, which is not ours once its supervisor has ended.
    assert started
    await eventually(lambda: not any(is_running(pid) for pid in started))
    assert left_by(process.pid, short_folder) == []


def test_who_is_not_root_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    run = CliRunner().invoke(main, [])
    assert (run.exit_code, run.output) == (1, "Error: machines as network namespaces need root\n")


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PATH", "")
    run = CliRunner().invoke(main, [])
    assert (run.exit_code, run.output) == (1, "Error: etcd is not installed (Debian's package etcd-server)\n")


def test_machines_have_letters_and_sentences_name_them() -> None:
    numbered = machine_names()
    assert [next(numbered) for _ in range(27)][-2:] == ["z", "a2"]
    assert [names(["b", "a", "c"]), names(["a"])] == ["a, b and c", "a"]
