"""`onelane top` and `onelane trace` in a terminal and in a pipe."""

import itertools
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc.aio
import pytest
from onelane.cli import admin_client
from onelane.cli import top as watching
from onelane.cli.standard_streams import console

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, run_command, running

pytestmark = pytest.mark.slow
TRACE = "3af7651916cd43dd8448eb211c80319c"
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("onelane", run_name="__main__", alter_sys=True)
"""
"""`python -m onelane`, also from a background job of a shell, whose processes ignore SIGINT. Set by the program itself
and not by `preexec_fn`: that runs after a fork, which gRPC's threads may break, and `Popen` reports nothing of it."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("top"), echo(2, "max_connections_per_peer = 20")) as started:
        yield started


async def call(cluster: RunningApp, trace_id: str) -> None:
    """Of one connection, with a key of each shard: all but those of one of them are forwarded."""
    placement = cluster.placement()
    key_of = {placement.owner_of(key).name: key for key in map(str, range(200))}
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for key in [*key_of.values()] * 4:
            await stub.Unary(EchoRequest(key=key), metadata=metadata, timeout=BOUND_S)


async def test_top_prints_once_where_the_output_is_no_terminal(cluster: RunningApp) -> None:
    await call(cluster, TRACE.replace("3a", "4a", 1))
    await eventually(lambda: "echo.v1.Echo/Unary" in run_command("top", cluster.admin).stdout)
    screen = run_command("top", cluster.admin).stdout
    assert re.search(r"echo-0 +ready +\d+", screen)
    assert re.search(r"helper +shard +queued", screen)
    assert "\x1b" not in screen


def test_text_from_clients_is_printed_without_control_characters_and_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hostile = admin_client.printable({"name": "\x1b]0;owned\x07 [/red] :bomb: \u202egnp \ud800", "rows": ["\x9b2J", 1]})
    assert hostile == {"name": "\ufffd]0;owned\ufffd [/red] :bomb: \ufffdgnp \ufffd", "rows": ["\ufffd2J", 1]}
    row = hostile | {"trace_id": TRACE, "start_ns": 0, "seconds": 0.5, "spans": 1, "errors": 0}
    watching.traces([row], console())
    # One word for each cell of a pipe.
    assert hostile["name"].replace(" ", "_") in capsys.readouterr().out


def test_no_http_proxy_is_used(cluster: RunningApp) -> None:
    closed = "http://127.0.0.1:1"
    assert "echo-0" in run_command("top", cluster.admin, http_proxy=closed, HTTP_PROXY=closed).stdout


@contextmanager
def in_a_terminal(*arguments: str, columns: int, lines: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`onelane` in a terminal of its own: the process, and the end by which a person reads and types."""
    own_end, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": str(lines)},
        start_new_session=True,
    )
    os.close(terminal)
    try:
        yield process, own_end
    finally:
        process.kill()
        process.wait()
        os.close(own_end)


def read_until(own_end: int, text: bytes, *, times: int = 1) -> bytes:
    """What the terminal shows, until it has shown `text` so often."""
    output = b""
    try:
        while output.count(text) < times:
            output += os.read(own_end, 65536)
    except OSError as error:
        raise AssertionError(f"it has ended and shown {output!r}") from error
    return output


def ended(process: subprocess.Popen[bytes], own_end: int) -> int:
    """Its exit code, once the rest of its output has been read."""
    with suppress(OSError):
        # EIO: the last process that had the terminal open has closed it.
        while os.read(own_end, 65536):
            pass
    return process.wait(BOUND_S)


def test_top_in_a_terminal_refreshes_its_screen_until_it_is_interrupted(cluster: RunningApp) -> None:
    with in_a_terminal("top", cluster.admin, columns=140, lines=40) as (process, own_end):
        read_until(own_end, b"echo-0", times=4)
        process.send_signal(signal.SIGINT)
        assert ended(process, own_end) == 0


def test_top_in_a_terminal_says_what_was_refused(cluster: RunningApp) -> None:
    host, _, port = cluster.shards()[0]["address"].rpartition(":")
    with ExitStack() as held:
        socks = [held.enter_context(socket.create_connection((host, int(port)))) for _ in range(22)]
        for sock in socks[20:]:
            sock.settimeout(BOUND_S)
            with suppress(ConnectionError):
                assert sock.recv(1) == b""
    with in_a_terminal("top", cluster.admin, columns=140, lines=40) as (process, own_end):
        read_until(own_end, b"refused: connection peer 2")
        os.write(own_end, b"q")
        assert ended(process, own_end) == 0


def test_top_leaves_the_terminal_as_it_was_where_sigterm_ends_it(cluster: RunningApp) -> None:
    untouched = pty.openpty()
    before = termios.tcgetattr(untouched[0])
    for descriptor in untouched:
        os.close(descriptor)
    with in_a_terminal("top", "--admin", cluster.admin, columns=140, lines=40) as (process, own_end):
        read_until(own_end, b"echo-0")
        assert termios.tcgetattr(own_end) != before
        process.send_signal(signal.SIGTERM)
        assert ended(process, own_end) == 128 + signal.SIGTERM
        assert termios.tcgetattr(own_end) == before


def test_top_scrolls_by_keys_and_ends_by_q(cluster: RunningApp) -> None:
    """Five lines of a terminal are fewer than an app has. The worker threads are not the last of them: hot keys, a
    stall and refusals may follow, so they are passed line by line."""
    with in_a_terminal("top", "--admin", cluster.admin, columns=140, lines=5) as (process, own_end):
        assert b"helper" not in read_until(own_end, b"more lines")
        os.write(own_end, b"\x1b[B" * 40)
        assert b"helper" in read_until(own_end, b"db")
        os.write(own_end, b"\x1b[H")
        read_until(own_end, b"more lines")
        os.write(own_end, b"q")
        assert ended(process, own_end) == 0


def test_in_a_pipe_each_table_is_columns_of_words(cluster: RunningApp) -> None:
    for command in ("status", "top"):
        # In which some programs take a pipe for a terminal.
        run = run_command(command, "--admin", cluster.admin, FORCE_COLOR="1", COLUMNS="40")
        table = run.stdout.partition("\n\n")[0]
        header, *rows = [line.split() for line in table.splitlines()]
        assert header[:4] == ["app", "shard", "state", "pid"]
        assert [row[:3] for row in rows] == [["echo", "echo-0", "ready"], ["echo", "echo-1", "ready"]]
        assert {len(row) for row in rows} == {len(header)}
        assert "…" not in table


def test_status_in_a_narrow_terminal_cuts_no_number(cluster: RunningApp) -> None:
    pids = [str(shard["pid"]).encode() for shard in cluster.shards()]
    with in_a_terminal("status", "--admin", cluster.admin, columns=80, lines=25) as (process, own_end):
        output = read_until(own_end, b"service_config")
        assert [pid for pid in pids if pid not in output] == []
        assert "…".encode() not in output
        assert ended(process, own_end) == 0


async def test_traces_are_listed_and_one_is_printed_as_a_tree(cluster: RunningApp) -> None:
    # Of one second only the first few new traces are kept.
    await call(cluster, TRACE)
    while TRACE[:16] not in run_command("trace", "--admin", cluster.admin).stdout:
        await call(cluster, TRACE)

    def tree() -> list[str]:
        run = run_command("trace", TRACE[:12], "--admin", cluster.admin)
        assert run.returncode == 0
        return run.stdout.splitlines()

    # The shards report their spans one after the other.
    await eventually(lambda: forwards_in(tree()))
    lines = tree()
    assert lines[0].startswith("trace 3af7")
    # A forward, and below it the call on the owner.
    forward, owners_call = forwards_in(lines)[0]
    assert owners_call.index("echo.v1") > forward.index("echo.v1")


def forwards_in(tree: list[str]) -> list[tuple[str, str]]:
    """The lines of calls that have been forwarded, each with the next one, that of the call on the owner."""
    return [
        (line, following)
        for line, following in itertools.pairwise(tree)
        if "echo.v1.Echo/Unary client" in line and "echo.v1.Echo/Unary server" in following
    ]


def test_an_unknown_trace_and_an_address_without_a_supervisor_are_errors(cluster: RunningApp) -> None:
    unknown = run_command("trace", "ffff", "--admin", cluster.admin)
    assert (unknown.returncode, "there is no such trace" in unknown.stderr) == (1, True)
    unreachable = run_command("top", "127.0.0.1:1")
    assert (
        unreachable.returncode,
        "nothing listens at 127.0.0.1:1; is `onelane up` running?" in unreachable.stderr,
    ) == (1, True)


def test_a_method_without_calls_has_dashes_in_place_of_numbers() -> None:
    now = {"calls": 0, "errors": 0, "p50": 0, "p95": 0, "p99": 0}
    listing = watching._methods({"name": "a", "methods": [{"name": "a/B", "now": now}]})
    assert listing.rows == [("a", "a/B", *watching.NO_CALLS * 5)]
