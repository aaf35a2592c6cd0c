"""`tests/warm_command.py`: what tests start in a fork is the command that a user starts."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm_command
from tests.bounds import BOUND_S
from tests.running_app import ROOT, echo, eventually, http_request, is_running, running

TOKEN = "a-long-secret"
FRESH = (sys.executable, "-m", "onelane")


def both(folder: Path, *arguments: str, **environment: str) -> tuple[tuple[int, str, str], tuple[int, str, str]]:
    """Exit code, stdout and stderr of a command, run to its end in a fresh process and in a fork."""
    run = subprocess.run(
        [*FRESH, *arguments], capture_output=True, text=True, cwd=folder, env=os.environ | environment, check=False
    )
    errors = folder / "stderr"
    with errors.open("w") as stderr:
        command = warm_command.start(arguments, cwd=folder, stderr=stderr, environment=os.environ | environment)
        with command.stdout as stdout:
            output = stdout.read()
    return (run.returncode, run.stdout, run.stderr), (command.wait(BOUND_S), output, errors.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("--help",), ("up", "nothing.toml"), ("up", "--nonsense"), ("check", "here.toml")], ids=" ".join
)
def test_it_ends_with_the_code_and_the_output_of_a_fresh_process(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "here.toml").write_text(echo(1, "shards_ = 3"))
    fresh, forked = both(tmp_path, *arguments, COLUMNS="90")
    assert forked == fresh


@pytest.mark.slow
def test_an_app_has_the_environment_and_the_folder_that_it_is_given_and_no_descriptor_more(tmp_path: Path) -> None:
    with running(tmp_path, echo(1), ONELANE_ADMIN_TOKEN=TOKEN) as app:
        assert http_request(f"http://{app.admin}/status")[0] == 401
        assert Path(f"/proc/{app.process.pid}/cwd").resolve() == tmp_path
        of_others = sockets_of(warm_command.server().process.pid)
        assert of_others
        assert sockets_of(app.process.pid) & of_others == set()


def sockets_of(pid: int) -> set[str]:
    links = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(descriptor))
    return {link for link in links if link.startswith("socket:")}


@pytest.mark.slow
async def test_its_end_is_known_to_all_who_wait_and_a_signal_reaches_it_until_then(tmp_path: Path) -> None:
    with running(tmp_path, echo(1)) as app:
        process = app.process
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0)
        process.kill()
        await eventually(lambda: process.poll() is not None)
        assert (process.wait(), process.wait(0), process.returncode) == (-9, -9, -9)
        assert not is_running(process.pid)
        process.terminate()


@pytest.mark.slow
def test_it_has_imported_no_service_and_nothing_that_a_fresh_process_would_not() -> None:
    """What an app's process has imported decides what its shards may do: see `shard/fork_server`."""
    loads = "import importlib, json, sys\nfrom tests.warm_command import PRELOADED\n"
    loads += "for name in PRELOADED: importlib.import_module(name)\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, cwd=ROOT, check=True)
    modules = set(json.loads(run.stdout))
    assert modules & {"grpc", "opentelemetry", "tests.echo.service"} == set()
