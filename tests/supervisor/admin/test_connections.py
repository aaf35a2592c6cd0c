"""Peers that connect to the admin server and say nothing, or speak slowly, take nothing from others."""

import asyncio
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from onelane.supervisor.admin import connections as connections_module
from onelane.supervisor.admin.connections import AdminConnection, AdminConnections

from tests.running_app import RunningApp, descendants, echo, eventually, http_request, running

PEERS_AT_ONCE = 16
"""Less than the backlog: Linux lets a client of a full one wait for a second."""
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Server:
    """An admin server whose requests wait until `answering` is set."""

    def __init__(self, max_connections: int) -> None:
        self.refusals = Counter[str]()
        self.connections = AdminConnections(max_connections, lambda reason: self.refusals.update([reason]))
        self.answering = asyncio.Event()
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        async def answer(_: web.Request) -> web.Response:
            await self.answering.wait()
            return web.Response(text="answered")

        app = web.Application(middlewares=[self.connections.serve])
        app.add_routes([web.get("/", answer)])
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        new_handler: Any = self.runner.server
        self.listening = await asyncio.get_running_loop().create_server(
            lambda: AdminConnection(new_handler(), self.connections), "127.0.0.1", 0
        )
        self.port = self.listening.sockets[0].getsockname()[1]

    async def open(self, first: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(first)
        self.writers.append(writer)
        return reader, writer

    async def stop(self) -> None:
        self.answering.set()
        self.listening.close()
        await self.runner.cleanup()
        self.connections.close()
        for writer in self.writers:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(max_connections=4)
    await server.start()
    yield server
    await server.stop()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def test_where_all_connections_are_silent_the_oldest_makes_room_for_a_new_one(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    silent = [await server.open() for _ in range(4)]
    server.answering.set()
    reader, _ = await server.open(REQUEST)
    assert (await reader.readuntil(b"answered")).startswith(b"HTTP/1.1 200")
    assert await is_closed(silent[0][0])
    assert server.refusals == {"full": 1}
    assert "admin.connections_closed full=1" in caplog.text
    for _, writer in silent[1:]:
        writer.write(REQUEST)
    for reader, _ in silent[1:]:
        await reader.readuntil(b"answered")


async def test_a_connection_whose_request_is_under_way_is_never_closed_for_another(server: Server) -> None:
    asked = [await server.open(REQUEST) for _ in range(4)]
    await eventually(lambda: not server.connections._waiting)
    reader, _ = await server.open(REQUEST)
    assert await is_closed(reader)
    server.answering.set()
    for reader, _ in asked:
        await reader.readuntil(b"answered")


@pytest.mark.parametrize("first", [b"", REQUEST[:10]])
async def test_a_request_that_does_not_come_whole_in_time_ends_its_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(connections_module, "REQUEST_S", 0.02)
    reader, _ = await server.open(first)
    assert await is_closed(reader)
    assert server.refusals == {"slow": 1}


async def test_a_flood_of_refusals_is_counted_and_logged_once_a_second(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    for _ in range(50):
        await server.open()
    await eventually(lambda: server.refusals["full"] == 46)
    # On a busy machine they take some.
    seconds = time.monotonic() - began
    assert caplog.text.count("admin.connections_closed") <= 2 + seconds / connections_module.TELL_EVERY_S


@contextmanager
def silent_peers(admin: str) -> Iterator[None]:
    host, _, port = admin.rpartition(":")
    with ExitStack() as opened:
        for number in range(176):
            opened.enter_context(socket.create_connection((host, int(port))))
            if number % PEERS_AT_ONCE == 0:
                # Its answer, or a reset, comes once all peers before it have been accepted.
                with suppress(OSError):
                    http_request(f"http://{admin}/healthz")
        yield


@pytest.mark.slow
async def test_silent_peers_keep_nobody_from_the_admin_server_and_no_shard_from_its_restart(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -n 200\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with running(tmp_path, echo(1), python=str(python)) as cluster:
        with silent_peers(cluster.admin):
            os.kill(cluster.shards()[0]["pid"], signal.SIGKILL)
            await eventually(lambda: cluster.shards()[0]["restarts"] and cluster.shards()[0]["state"] == "ready")
        assert "few_descriptors limit=200 a shard of echo has room for some 136 connections" in cluster.log.read_text()
        # Now without any descriptor but those in reserve.
        (shard,), pid = cluster.shards(), cluster.process.pid
        in_use = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use + 40, 200))
        before = descendants(pid)
        with silent_peers(cluster.admin):
            os.kill(shard["pid"], signal.SIGKILL)
            await eventually(lambda: descendants(pid) - before)
        # Until it has closed theirs, it resets further connections.
        await eventually(lambda: is_ready(cluster))
        # A launch that had failed would count.
        assert cluster.shards()[0]["restarts"] == 2


def is_ready(cluster: RunningApp) -> bool:
    # Some reset connections urllib reports by an error of its own.
    with suppress(OSError):
        return bool(cluster.shards()[0]["state"] == "ready")
    return False
