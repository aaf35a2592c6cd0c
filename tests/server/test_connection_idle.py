"""What ten thousand connections cost that only stand there."""

import asyncio
import re
import resource
import socket
from pathlib import Path

import grpc.aio
import pytest

from tests import frames as h2
from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, running

pytestmark = pytest.mark.slow

CONNECTIONS = 6_000
SPARE = 500
"""File descriptors that each of the two processes needs beside its connections."""
LARGEST = 16 * 1024
"""Bytes of the shard's memory that one may cost."""
PORTS = 5_000
"""Connections from one loopback address: its ephemeral ports are some 28,000, and other tests use them too."""
AT_ONCE = 200


@pytest.fixture
def many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + SPARE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"a process may open {hard} files here, and {wanted} are needed")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # The shard inherits it.
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def rss(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


async def stand(cluster: RunningApp, n: int) -> socket.socket:
    """One connection that has said hello, been told the settings, acknowledged them and seen its own acknowledged."""
    host, _, port = cluster.listen["echo"].rpartition(":")
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((f"127.0.0.{2 + n // PORTS}", 0))
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (host, int(port)))
    await loop.sock_sendall(sock, h2.HELLO + h2.frame(h2.SETTINGS, flags=h2.ACK))
    seen = b""
    while h2.frame(h2.SETTINGS, flags=h2.ACK) not in seen:
        piece = await loop.sock_recv(sock, 4096)
        assert piece
        seen += piece
    return sock


@pytest.mark.usefixtures("many_files")
async def test_an_idle_connection_costs_at_most_16_kib_and_calls_are_answered(tmp_path: Path) -> None:
    # These clients answer no ping, and none of them sends a request.
    limits = 'listener = "native"\nheaders_s = 3600\nfirst_request_s = 3600'
    with running(tmp_path, echo(1, limits)) as cluster:
        (shard,) = await asyncio.to_thread(cluster.shards)
        socks: list[socket.socket] = []
        try:
            # The first ones pay for what all share.
            socks += await asyncio.gather(*(stand(cluster, n) for n in range(AT_ONCE)))
            before = rss(shard["pid"])
            for n in range(AT_ONCE, CONNECTIONS, AT_ONCE):
                socks += await asyncio.gather(*(stand(cluster, n + m) for m in range(AT_ONCE)))
            each = (rss(shard["pid"]) - before) / (CONNECTIONS - AT_ONCE)
            print(f"{each:.0f} bytes for each of {CONNECTIONS} idle connections")  # noqa: T201
            async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
                reply = await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key="k", text="hi"), timeout=BOUND_S)
        finally:
            for sock in socks:
                sock.close()
    assert reply.text == "hi"
    assert each <= LARGEST
