"""A machine that is cut off from etcd as it joins: its record stands, and its shards have no number yet."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.etcd import EtcdServer, etcd
from tests.running_app import RunningApp, echo, eventually, running
from tests.supervisor.cluster_variables import environment_of
from tests.supervisor.machines_up import Callers, Machines, epoch_of, served_by


class Way:
    """The way of one machine to etcd: from a transaction on that writes a number of a life, nothing passes."""

    NUMBER = b"L29uZWxhbmUvYXJlbmEvbnVtYmVycy"
    """How /onelane/arena/numbers/ begins in base64."""

    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self.cut = asyncio.Event()
        self.healed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{path:.*}", self._pass)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with aiohttp.ClientSession() as self._session:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
            await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.NUMBER in body and not self.healed.is_set():
            self.cut.set()
        if self.cut.is_set() and not self.healed.is_set():
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        async with self._session.post(f"{self._server.url}/{request.match_info['path']}", data=body) as answer:
            response = web.StreamResponse(status=answer.status)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with etcd("--election-timeout=4000") as server:
        yield Machines(server, tmp_path)


async def test_it_says_so_serves_nothing_and_joins_by_itself_once_it_is_not_cut_off(
    machines: Machines, tmp_path: Path
) -> None:
    way, log = Way(machines.server), tmp_path / "late" / "log"
    log.parent.mkdir()
    with ExitStack() as stack:
        a = stack.enter_context(machines.up("a"))
        epoch = epoch_of(a)
        async with way.running() as url, Callers(a) as callers:
            variables = environment_of(replace(machines.settings_of("b"), etcd=(url,)))

            def start() -> RunningApp:
                return stack.enter_context(running(log.parent, echo(1), **variables))

            starts = asyncio.ensure_future(asyncio.to_thread(start))
            await way.cut.wait()
            await eventually(lambda: f"machine.waits name=b reason=etcd at {url} does not answer" in log.read_text())
            await callers.answered(3)
            assert (epoch_of(a), starts.done()) == (epoch, False)
            way.healed.set()
            b = await starts
            await eventually(lambda: epoch_of(a) == epoch_of(b) > epoch)
            await callers.answered(3)
            assert set((await served_by(b, shards=2)).values()) == {"a/echo-0", "b/echo-0"}
            assert callers.failed == []
            assert callers.seen_once()
            await asyncio.to_thread(stack.close)
