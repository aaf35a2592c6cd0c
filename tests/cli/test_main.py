"""The command line: exit codes, signals, and the choice of an app."""

import asyncio
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from click.testing import CliRunner
from onelane.cli import admin_client
from onelane.cli.main import main

from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ROOT, echo, eventually, is_running, run_to_end, running, running_command

pytestmark = pytest.mark.slow
BESIDE_AND_CURRENT = """
[apps.echo]
services = ["beside:Echo", "current:Greeter"]
keys = { "greeter.v1.Greeter/*" = "ANY" }
listen = "127.0.0.1:0"
shards = 1
"""


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "drain_s = 60")) as cluster:
        where = Where(cluster)
        held = where.shared.Hold(EchoRequest(key="k"))
        await eventually(lambda: cluster.metric("onelane_calls_in_flight"))
        pid = cluster.shards()[0]["pid"]
        cluster.process.send_signal(signal.SIGINT)
        await eventually(lambda: cluster.shards()[0]["state"] == "draining")
        assert cluster.process.stdout is not None
        sentence = await asyncio.to_thread(cluster.process.stdout.readline)
        assert sentence.startswith(
            "onelane: stopping: 1 call(s) in progress have up to 60 s to finish; a second signal"
        )
        cluster.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(cluster.process.wait, 30) == 130
        await eventually(lambda: not is_running(pid))
        held.cancel()
        await where.close()


def test_the_process_that_holds_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        run = run_to_end(tmp_path, echo(1).replace("127.0.0.1:0", address))
    assert run.returncode == 4
    assert f"{address} is taken by" in run.stderr
    assert f"(pid {os.getpid()})" in run.stderr


def test_bad_configuration_is_exit_code_three(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, echo(1, "shardz = 3"))
    assert (run.returncode, "did you mean 'shards'?" in run.stderr) == (3, True)


async def test_serve_runs_one_app_of_a_file(tmp_path: Path) -> None:
    toml = f"{echo(1)}\n{echo(1).replace('[apps.echo]', '[apps.other]')}"
    with running(tmp_path, toml, "--app", "other", command="serve") as cluster:
        assert list(cluster.status()["apps"]) == ["other"]
        async with grpc.aio.insecure_channel(cluster.listen["other"]) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            assert (await stub.Unary(EchoRequest(key="k"))).shard == "other-0"


@pytest.mark.parametrize("mode", [[], ["--inline"]], ids=["processes", "inline"])
def test_services_are_looked_for_beside_the_file_and_in_the_current_folder(tmp_path: Path, mode: list[str]) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "beside.py").write_text("from tests.echo.service import Echo\n")
    (tmp_path / "current.py").write_text("from tests.greeter.service import Greeter\n")
    (tmp_path / "deploy" / "onelane.toml").write_text(f'admin = "127.0.0.1:0"\n{BESIDE_AND_CURRENT}')
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime")])
    arguments = ("up", "deploy/onelane.toml", *mode)
    with running_command(*arguments, cwd=tmp_path, log=tmp_path / "log", PYTHONPATH=path) as app:
        assert len(app.status()["apps"]["echo"]["shards"]) == 1


@contextmanager
def answering(response: bytes) -> Iterator[str]:
    """A server that gives every connection this response and closes it; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(response)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def http(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


def test_restart_prints_how_the_file_differs_from_what_runs() -> None:
    outcome = {"restarted": "all", "needs_reload": ["echo.limit: 1 → 2"], "needs_restart": ["echo.shards: 2 → 3"]}
    with answering(http(json.dumps(outcome | {"faults": ["line 3: apps.echo.shardz: is not a setting"]}))) as address:
        run = CliRunner().invoke(main, ["restart", "--admin", address])
    assert run.stdout.splitlines() == [
        "restarted all",
        "the file differs from what runs: echo.limit: 1 → 2 (`onelane reload` applies it)",
        "the file differs from what runs: echo.shards: 2 → 3 (needs a restart of `onelane up`)",
    ]
    assert run.stderr == (
        "onelane: the file of `onelane up` would not start again: line 3: apps.echo.shardz: is not a setting\n"
    )


ASKING = [["top"], ["reload"], ["restart"], ["trace"], ["status"]]


@pytest.mark.parametrize("command", ASKING)
def test_where_nothing_listens_every_command_asks_whether_up_runs(command: list[str]) -> None:
    run = CliRunner().invoke(main, command, env={"ONELANE_ADMIN": "127.0.0.1:1"})
    assert "nothing listens at 127.0.0.1:1; is `onelane up` running?" in run.stderr
    assert run.exit_code == 1


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "answers, but not as the admin address of `onelane up` does"),
        (http("<html>"), "answers, but not as the admin address of `onelane up` does"),
        (http("[]"), "answers, but not as the admin address of `onelane up` does"),
        (http("no such token\n", "401 Unauthorized"), "refuses: no such token"),
        (http("\x1b]0;owned\x07", "403 Forbidden"), "refuses: \ufffd]0;owned\ufffd"),
        (http("busy", "500 Internal Server Error"), "answers with status 500: busy"),
        (http("away", "302 Found\r\nLocation: http://127.0.0.1:1/"), "answers with status 302: away"),
        (http('{"fault": "no app is called \'x\'"}', "404 Not Found"), ": no app is called 'x'"),
    ],
)
def test_whatever_answers_at_an_address_is_said_in_one_sentence(response: bytes, sentence: str) -> None:
    with answering(response) as address:
        run = CliRunner().invoke(main, ["top", "--admin", address])
    assert run.stderr.startswith(f"onelane: {address}{'' if sentence.startswith(':') else ' '}{sentence}")
    assert len(run.stderr.splitlines()) == 1
    assert run.exit_code == 1


def test_a_request_without_tls_loads_no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take 20 ms, which `urllib.request.build_opener` takes for each request from Python 3.12 on."""
    loaded: list[int] = []
    monkeypatch.delenv("ONELANE_ADMIN_CA", raising=False)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: loaded.append(1))
    for address in ("127.0.0.1:1", "unix:/run/onelane/admin"):
        admin_client.opener(address)
    assert loaded == []
    admin_client.opener("https://127.0.0.1:1")
    assert loaded == [1]


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:0", "127.0.0.1:99999", "unix:x", ":1"])
def test_what_is_no_address_is_named_with_the_expected_form(address: str) -> None:
    run = CliRunner().invoke(main, ["status", address])
    assert f"admin address {address!r}: expected ip:port with a port from 1 to 65535" in run.stderr
    assert run.exit_code == 1


def test_a_file_that_is_being_edited_does_not_hide_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with answering(http('{"traces": []}')) as address:
        (tmp_path / "onelane.toml").write_text(f'admin = "{address}"\n{echo(1, "shardz = 3")}')
        assert CliRunner().invoke(main, ["trace", "--json"]).stdout == '{\n  "traces": []\n}\n'


def test_status_prints_no_control_characters_of_names_and_exceptions() -> None:
    shard = {"name": "echo-0", "state": "ready", "pid": 1, "address": "127.0.0.1:1", "restarts": 0, "calls": 1}
    stall = {"kind": "blocked", "seconds": 1, "at_ns": 0, "where": "\x1b[2J", "function": "f", "method": "\x9bm"}
    shard |= {"forwarded": 0, "stalls": 1, "keyed": {"\x1b]0;owned\x07": 3}}
    shard |= {"last_stalls": [stall | {"trace_id": "", "others": []}]}
    config = {"loadBalancingConfig": [{"ring_hash_experimental": {"minRingSize": 1}}]}
    app = {"listen": "127.0.0.1:1", "epoch": 1, "service_config": config, "shards": [shard]}
    with answering(http(json.dumps({"apps": {"echo": app}}))) as address:
        run = CliRunner().invoke(main, ["status", address])
    assert run.exit_code == 0
    assert "\ufffd]0;owned\ufffd=3" in run.stdout
    assert {character for character in run.stdout if not character.isprintable()} == {"\n"}


def test_up_says_that_it_stops_and_that_it_has_stopped(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "drain_s = 7"), "--json") as cluster:
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.process.stdout is not None
        events = [json.loads(line) for line in cluster.process.stdout]
    assert events == [{"event": "stopping", "calls_in_progress": 0, "at_most_s": 7.0}, {"event": "stopped"}]
