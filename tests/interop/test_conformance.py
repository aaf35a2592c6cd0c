"""connectconformance, the suite of connectrpc.com/conformance, on servers and channels: gRPC over HTTP/2; and, on
servers, Connect and gRPC-Web over HTTP/1.1 and HTTP/2, of which no case fails.

The whole suite runs where the calls are at home, again where each is forwarded to another shard, and again on
connections that are handed to another shard. Cases that fail are listed in tests/conformance/cases, with the reason;
the runner fails where one of them passes.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import tools
from tests.running_app import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.conformance]
HERE = ROOT / "tests" / "conformance"
BOUND_S = 45.0
CLEARTEXT = ("--run", "**/TLS:false/**")
Counts = list[dict[str, float]]


@pytest.fixture(scope="module")
def runner() -> list[str]:
    return [tools.conformance(), "--conf", str(HERE / "config.yaml")]


@pytest.fixture
def run_server(runner: list[str], tmp_path: Path) -> Callable[..., Counts]:
    def run(place: str, listener: str, *options: str) -> Counts:
        """What the apps have counted, of which there is one for each kind of connections."""
        listed = options_of("any_server", listener)
        return run_servers([*runner, "--mode", "server", *listed, *options, "--"], place, listener, tmp_path)

    return run


def run_servers(command: list[str], place: str, listener: str, folder: Path) -> Counts:
    """command: but for that of the server, which comes last."""
    report = folder / "report"
    server = [sys.executable, "-m", "tests.conformance.server", place, listener, str(report)]
    # The runner gives a server ten seconds to start; three shards fill the machine by themselves.
    at_once = "2" if place == "home" else "1"
    run_to_end([command[0], "--max-servers", at_once, *command[1:], *server])
    return [json.loads(line) for line in report.read_text().splitlines()]


def options_of(*names: str) -> list[str]:
    """The patterns of these lists as options; of several files the runner itself would read the first alone."""
    files = [HERE / "cases" / f"{name}.txt" for name in names]
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [word for line in lines if line and not line.startswith("#") for word in line.split(" ", 1)]


def run_to_end(command: list[str]) -> None:
    search_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": search_path},
        # A group of its own: a runner that is ended leaves its servers behind.
        start_new_session=True,
    )
    try:
        output, _ = run.communicate(timeout=BOUND_S)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGTERM)
        output, _ = run.communicate(timeout=BOUND_S)
    assert run.returncode == 0, output[-8000:]


def total(counts: Counts, name: str) -> float:
    return sum(app[name] for app in counts)


def test_servers_of_one_shard_pass(run_server: Callable[..., Counts]) -> None:
    counts = run_server("home", "native")
    assert len(counts) == 4
    assert total(counts, "forwards") == 0


def test_forwarded_calls_pass(run_server: Callable[..., Counts]) -> None:
    counts = run_server("away", "native")
    # All but those that are refused before their key is read.
    assert all(app["forwards"] > 0.85 * app["calls"] for app in counts)


def test_calls_on_steered_connections_pass(run_server: Callable[..., Counts]) -> None:
    counts = run_server("steered", "native", *CLEARTEXT)
    # The second of its two clients opens a connection for each call, of which two of three arrive elsewhere.
    assert total(counts, "steered") > 50


def test_calls_with_keys_in_metadata_pass(run_server: Callable[..., Counts]) -> None:
    counts = run_server("spread", "native", *CLEARTEXT)
    assert total(counts, "steered") > 50
    assert total(counts, "forwards") > 50


@pytest.mark.parametrize(
    ("place", "cases"),
    [
        ("home", "**/HTTPVersion:1/**/TLS:false/**"),
        ("home", "**/HTTPVersion:2/**/TLS:false/**"),
        ("away", "Basic/**/TLS:false/**"),
    ],
)
def test_servers_pass_in_connect_and_grpc_web(runner: list[str], tmp_path: Path, place: str, cases: str) -> None:
    command = [runner[0], "--conf", str(HERE / "web.yaml"), "--mode", "server", "--run", cases, "--"]
    counts = run_servers(command, place, "native", tmp_path)
    assert total(counts, "calls") > 100
    assert total(counts, "forwards") > 0.85 * total(counts, "calls") or place == "home"


@pytest.mark.parametrize(("place", "options"), [("home", ()), ("away", CLEARTEXT)], ids=["home", "away"])
def test_servers_on_grpcio_pass(run_server: Callable[..., Counts], place: str, options: Sequence[str]) -> None:
    counts = run_server(place, "grpcio", *options)
    assert total(counts, "forwards") > 300 or place == "home"


def test_a_channel_that_goes_to_the_owner_passes(runner: list[str], tmp_path: Path) -> None:
    client = [sys.executable, "-m", "tests.conformance.client", "connect", "ready"]
    command = [*runner, "--mode", "both", *CLEARTEXT, "--", *client, "----"]
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        counts = run_servers(command, "away", "native", folder)
        # Only streams of requests, of which it does not see the key; and what came before its connection to the owner
        # stood, which may be most of it: the calls of a run take half a second. Then once more.
        if total(counts, "forwards") < 0.6 * total(counts, "calls"):
            return
    pytest.fail(f"the calls are forwarded: {counts}")


@pytest.mark.parametrize("channel", ["dial", "connect"])
def test_channels_pass(runner: list[str], channel: str) -> None:
    client = [sys.executable, "-m", "tests.conformance.client", channel]
    run_to_end([*runner, "--mode", "client", "--", *client])
