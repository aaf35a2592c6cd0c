"""A store of etcd, and the wire to it, which a test harms."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from onelane.cluster.coordination.etcd import EtcdAddress, EtcdStore

from tests.bounds import BOUND_S


@asynccontextmanager
async def opened(*urls: str, **details: object) -> AsyncIterator[EtcdStore]:
    bounds = {"timeout_s": BOUND_S, "linger_s": BOUND_S, "late_s": BOUND_S}
    store = EtcdStore(EtcdAddress(urls, **(bounds | details)))  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


class Wire:
    """TCP connections in between, which can be cut, held up, or go silent without an end."""

    def __init__(self, url: str, *, way_s: float = 0.0) -> None:
        """way_s: what all that is sent takes, each way, from when a connection stands. A connection itself takes no
        time, as the kernel makes it."""
        self._port = int(url.rpartition(":")[2])
        self._writers: list[asyncio.StreamWriter] = []
        self._silenced: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._way_s = way_s
        self.connections = 0
        """So far."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def silence(self) -> None:
        """Nothing passes on the connections of now any more, and nobody learns of it."""
        self._silenced = set(self._writers)

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Meanwhile nothing passes; all of it does afterwards."""
        self._passes.clear()
        try:
            yield
        finally:
            self._passes.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answers, requests = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, requests]
        await asyncio.gather(self._pass(reader, requests), self._pass(answers, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._passes.wait()
                await asyncio.sleep(self._way_s)
                if writer not in self._silenced:
                    writer.write(data)
        writer.close()
