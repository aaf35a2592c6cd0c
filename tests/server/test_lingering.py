"""A socket whose our side is shut is closed once the client closes, or has had its time and its bytes."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from onelane.server import lingering
from onelane.server.lingering import Lingering


class Client:
    """A socket's far end, and what became of the near one, which lingers."""

    def __init__(self, sock: socket.socket, transport: asyncio.Transport, lost: "asyncio.Future[None]") -> None:
        self.sock = sock
        self.transport = transport
        self.lost = lost

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    far.setblocking(False)
    transport, _ = await loop.create_unix_connection(asyncio.Protocol, sock=near)
    lost: asyncio.Future[None] = loop.create_future()
    transport.write_eof()
    transport.set_protocol(Lingering(transport, lambda _: lost.set_result(None)))
    yield Client(far, transport, lost)
    far.close()
    transport.close()


async def test_it_is_closed_when_the_client_closes(client: Client) -> None:
    await client.send(b"one more frame")
    assert not client.lost.done()
    client.sock.close()
    await client.lost


async def test_it_is_closed_after_a_while_though_the_client_does_not(client: Client) -> None:
    await client.lost


@pytest.fixture
def never_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "MAX_S", 3600.0)


@pytest.mark.usefixtures("never_too_late")
async def test_a_client_that_goes_on_sending_is_cut_off(client: Client) -> None:
    async def flood() -> None:
        while True:
            await client.send(b"x" * 1024)

    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        await flood()
