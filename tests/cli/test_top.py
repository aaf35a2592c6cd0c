"""`onelane top` and `onelane trace`: the page's content in a terminal."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import grpc.aio
import pytest
from onelane.cli import top as watching
from onelane.cli.main import console

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import Cluster, echo, eventually, running

pytestmark = pytest.mark.slow
TRACE = "3af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("top"), echo(2)) as made:
        yield made


def onelane(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "onelane", *arguments], capture_output=True, text=True, timeout=30)


async def call(cluster: Cluster, trace_id: str) -> None:
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for key in map(str, range(8)):
            await stub.Unary(EchoRequest(key=key), metadata=metadata, timeout=10)


async def test_top_prints_once_where_nobody_watches(cluster: Cluster) -> None:
    await call(cluster, TRACE.replace("3a", "4a", 1))
    await eventually(lambda: "echo.v1.Echo/Unary" in onelane("top", cluster.admin).stdout)
    found = onelane("top", cluster.admin).stdout
    assert re.search(r"echo-0 +ready +\d+", found)
    assert re.search(r"helper +shard +queued", found)
    assert "\x1b" not in found


def test_what_callers_have_named_moves_no_terminal_and_is_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = watching.printable({"name": "\x1b]0;owned\x07 [/red] :bomb: \u202egnp \ud800", "rows": ["\x9b2J", 1]})
    assert hostile == {"name": "\ufffd]0;owned\ufffd [/red] :bomb: \ufffdgnp \ufffd", "rows": ["\ufffd2J", 1]}
    row = hostile | {"trace_id": TRACE, "start_ns": 0, "seconds": 0.5, "spans": 1, "errors": 0}
    monkeypatch.setattr(watching, "fetch", lambda *_: {"traces": [row]})
    watching.traces("", console())
    assert hostile["name"] in capsys.readouterr().out


def test_no_proxy_is_asked_for_what_is_on_this_machine(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "onelane", "top", cluster.admin]
    proxied = os.environ | {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    assert "echo-0" in subprocess.run(command, capture_output=True, text=True, timeout=30, env=proxied).stdout


def test_top_in_a_terminal_shows_picture_after_picture_until_it_is_interrupted(cluster: Cluster) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "onelane", "top", cluster.admin],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "140", "LINES": "40"},
        # Whoever runs the tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    try:
        while seen.count(b"echo-0") < 4:
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        try:
            while os.read(ours, 65536):
                pass
        except OSError:
            # How a terminal says that nobody writes to it any more.
            pass
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


async def test_traces_are_listed_and_one_is_printed_as_a_tree(cluster: Cluster) -> None:
    await call(cluster, TRACE)
    await eventually(lambda: TRACE[:16] in onelane("trace", "--admin", cluster.admin).stdout)
    tree = onelane("trace", TRACE[:12], "--admin", cluster.admin)
    assert tree.returncode == 0
    lines = tree.stdout.splitlines()
    assert lines[0].startswith("trace 3af7")
    # A forward and what it led to, one below the other.
    client = next(n for n, line in enumerate(lines) if "echo.v1.Echo/Unary client" in line)
    assert "echo.v1.Echo/Unary server" in lines[client + 1]
    assert lines[client + 1].index("echo.v1") > lines[client].index("echo.v1")


def test_a_trace_that_is_not_there_and_an_address_where_nobody_is_are_told(cluster: Cluster) -> None:
    gone = onelane("trace", "ffff", "--admin", cluster.admin)
    assert (gone.returncode, "there is no such trace" in gone.stderr) == (1, True)
    nobody = onelane("top", "127.0.0.1:1")
    assert (nobody.returncode, "does not answer as an admin address does" in nobody.stderr) == (1, True)
