"""A newcomer who does what the README says gets what it says."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from docs.generator.blocks import blocks_of
from tests.bounds import BOUND_S
from tests.docs.pages import files_of
from tests.running_app import ROOT, RunningApp, eventually, running

pytestmark = pytest.mark.slow
README = (ROOT / "README.md").read_text()
STATE = "docs/how-to/state.md"
STOCK_CLIENTS = "docs/how-to/stock-clients.md"


def files() -> dict[str, str]:
    """The blocks that name their file in their first line; also the program of the page on stock clients."""
    return files_of("README.md") | files_of(STOCK_CLIENTS)


def commands() -> list[str]:
    """The shell blocks' lines, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_first_service_runs_as_written(tmp_path: Path) -> None:
    for name, text in files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    generate, up, client, status, curl, test = commands()
    stock = "python stock.py"
    assert (generate, up) == ("onelane proto", "onelane up onelane.toml")
    assert (client, status, test) == ("python client.py", "onelane status", "pytest")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "160"}

    def run(command: str) -> str:
        done = subprocess.run(command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(generate)
    toml = (tmp_path / "onelane.toml").read_text().replace("127.0.0.1:50051", "127.0.0.1:0")
    with running(tmp_path, toml, "--app-dir", str(tmp_path)) as cluster:
        # The same file, but for ports that are free on this machine.
        (tmp_path / "onelane.toml").write_text(f'admin = "{cluster.admin}"\n{toml}')
        (tmp_path / "client.py").write_text(files()["client.py"].replace("127.0.0.1:50051", cluster.listen["counter"]))
        assert run(client) == "apples: 6\n"
        assert "totals=1" in run(status)
        assert run(stock) == "apples: 7\n"
        assert cluster.metric("onelane_forwards_total") == 0
        assert cluster.metric("counter_adds_total") == 4
        assert posted(curl, cluster.listen["counter"]) == {"total": "8"}
    assert "1 passed" in run(f"{test} -p no:cacheprovider")


def posted(curl: str, address: str) -> Any:
    """What a command of curl gets, by the same request of this process: curl is not everywhere."""
    program, _, header, _, data, url = shlex.split(curl)
    assert program == "curl"
    request = urllib.request.Request(url.replace("127.0.0.1:50051", address), data.encode(), dict([header.split(": ")]))
    with urllib.request.urlopen(request, timeout=BOUND_S) as answer:
        return json.load(answer)


def test_with_one_word_more_the_first_service_survives_a_kill(tmp_path: Path) -> None:
    sources = files_of("README.md") | {"service.py": files_of(STATE)["service.py"]}
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run([sys.executable, "-m", "onelane", "proto"], cwd=tmp_path, check=True, capture_output=True)
    toml = sources["onelane.toml"].replace("127.0.0.1:50051", "127.0.0.1:0")
    table = f'[apps.counter.state]\nfolder = "{tmp_path}/state"\n'
    with running(tmp_path, toml + table, "--app-dir", str(tmp_path)) as app:
        client = sources["client.py"].replace("127.0.0.1:50051", app.listen["counter"])
        for total in (6, 12):
            done = subprocess.run([sys.executable, "-c", client], cwd=tmp_path, capture_output=True, text=True)
            assert done.stdout == f"apples: {total}\n", done.stderr
            kill_each_shard(app)
    assert sorted(path.suffix for path in (tmp_path / "state" / "counter").glob("*.sqlite")) == [".sqlite"] * 2


def kill_each_shard(app: RunningApp) -> None:
    """By SIGKILL; returns once the next process of each is ready."""
    killed = [shard["pid"] for shard in app.shards("counter")]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    def are_replaced() -> bool:
        return all(shard["state"] == "ready" and shard["pid"] not in killed for shard in app.shards("counter"))

    asyncio.run(eventually(are_replaced))


def test_its_java_is_what_the_ring_s_test_compiles() -> None:
    sources = "\n".join(_lines_of(file.read_text()) for file in (ROOT / "tests" / "java" / "src").glob("*.java"))
    blocks = [block.text for block in blocks_of((ROOT / STOCK_CLIENTS).read_text()) if block.language == "java"]
    assert blocks
    assert [block for block in blocks if _lines_of(block) not in sources] == []


def _lines_of(text: str) -> str:
    """Without their indentation."""
    return "\n".join(line.strip() for line in text.splitlines())


def test_the_defaults_in_the_table_of_limits_are_the_code_s() -> None:
    from onelane.config import App
    from onelane.core.state_settings import StateSettings

    settings_of_file = {setting.name: setting for kind in (App, StateSettings) for setting in fields(kind)}
    units = {"": 1, "s": 1, "h": 3600, "KiB": 2**10, "MiB": 2**20}
    limits = (ROOT / "docs" / "reference" / "limits.md").read_text()
    settings = re.findall(r"`(\w+)`, ([\d.,]+)(?: (s|h|KiB|MiB)\b)?[ ,]", limits)
    assert settings
    for name, value, unit in settings:
        assert (name, float(value.replace(",", "")) * units[unit]) == (name, settings_of_file[name].default)


def test_the_map_of_the_folders_is_whole() -> None:
    rooms = set(re.findall(r"^\| `([\w/]+)/` \|", README, re.MULTILINE))
    folders = {path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    # What a build, an installation and an app that runs here leave behind is in no map.
    names = {path.name for path in folders if path.suffix not in {".egg-info", ".state"}} - {"build", "dist"}
    assert {name.split("/")[0] for name in rooms} == names
