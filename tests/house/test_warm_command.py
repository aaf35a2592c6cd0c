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
from tests.running_app import ROOT, descendants, echo, eventually, http_request, is_running, running, running_command

TOKEN = "a-long-secret"
FRESH = (sys.executable, "-m", "onelane")
IMPORTS = """
import json, os, pathlib, sys
seen = {"modules": sorted(sys.modules), "path": sys.path, "main": str(sys.modules["__main__"].__spec__.name),
        "variables": sorted(os.environ), "session": os.getsid(0) == os.getpid()}
pathlib.Path(__file__).with_name("imports.json").write_text(json.dumps(seen))

# Not by PYTHONPATH, which would be one of the variables.
sys.path.append("ROOT")
from tests.echo.service import Echo

class Imports(Echo):
    pass
"""
"""A service that writes down what its process has imported before it."""


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


@pytest.mark.slow
async def test_its_fork_server_is_a_fork_too_and_ends_with_it(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as app:
        (fork_server,) = warm_command.fork_servers(app.process.pid)
        shards = {shard["pid"] for shard in app.shards()}
        assert descendants(fork_server) == shards
        assert descendants(app.process.pid) >= {fork_server, *shards}
        assert sockets_of(fork_server) & sockets_of(warm_command.servers().process.pid) == set()
        app.process.kill()
        await eventually(lambda: not any(map(is_running, [fork_server, *shards])))
        await eventually(lambda: warm_command.fork_servers(app.process.pid) == set())


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}], ids=["", "other"])
def test_a_shard_has_imported_what_one_of_fresh_processes_has(tmp_path: Path, variables: dict[str, str]) -> None:
    """A variable that decides what is imported has its fork server begin as a fresh process."""
    (tmp_path / "imports.py").write_text(IMPORTS.replace("ROOT", str(ROOT)))
    toml = 'admin = "127.0.0.1:0"\n[apps.echo]\nservices = ["imports:Imports"]\nlisten = "127.0.0.1:0"\nshards = 1\n'
    (tmp_path / "onelane.toml").write_text(toml)
    seen = []
    for fresh in (FRESH, None):
        command = running_command(
            "up", "onelane.toml", "--app-dir", ".", cwd=tmp_path, log=tmp_path / "log", fresh=fresh, **variables
        )
        with command as app:
            assert bool(warm_command.fork_servers(app.process.pid)) == (fresh is None and not variables)
        seen.append((tmp_path / "imports.json").read_text())
    fresh_imports, forked_imports = map(json.loads, seen)
    assert forked_imports == fresh_imports
