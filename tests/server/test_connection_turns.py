"""Of the calls that one client sends at once a few begin in one turn of the loop; those of others begin in between."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest
from onelane.config import App
from onelane.core.keys import ANY
from onelane.server.call import Call
from onelane.server.connection import NativeConnection
from onelane.server.listener import Bind, Serving, Work
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener
from onelane.wire import driver
from onelane.wire.driver import PIECE, TURN_EVENTS, TURN_S
from onelane.wire.framing import frame
from onelane.wire.held_bytes import CONNECTION_BYTES

from tests import frames as h2
from tests.bounds import BOUND_S
from tests.ports import reserved

CHAT = b"/t.T/Chat"
HELLO = h2.HELLO + h2.frame(h2.SETTINGS, flags=h2.ACK)
FEW, MANY = 1, 5 * TURN_EVENTS
"""Calls."""


class Chatting(Serving):
    """Notes the turn of the loop in which each call begins, and its client; none ends by itself."""

    def __init__(self) -> None:
        self.turn = 0
        self.begun: list[tuple[int, str]] = []
        self.cancelled = 0

    def methods(self) -> list[Method]:
        return [Method(CHAT.decode(), lambda *_: None, True, True, True, None, None, ANY)]

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        self.begun.append((self.turn, call.peer()))
        return super().arrive(method, call, request)

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b""

    async def count_turns(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turn += 1

    async def until_begun(self, amount: int) -> None:
        async with asyncio.timeout(BOUND_S):
            while len(self.begun) < amount:  # noqa: ASYNC110 - turns of the loop are what is waited for
                await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is handled takes as long as a turn may."""
    clock: Iterator[float] = count(1.0, TURN_S)
    monkeypatch.setattr(driver, "monotonic", lambda: next(clock))


@asynccontextmanager
async def chatting() -> AsyncIterator[tuple[Chatting, NativeListener, str]]:
    serving, listener = Chatting(), NativeListener()
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        await listener.start([Bind(address)], serving, App(services=("a:B",), listen=address))
        turns = asyncio.create_task(serving.count_turns())
        try:
            yield serving, listener, address
        finally:
            turns.cancel()
            await listener.stop(0)


async def connected(address: str, listener: NativeListener) -> tuple[socket.socket, NativeConnection]:
    """A client that has said hello and begun a first call, and the server's end."""
    known = set(listener._connections)
    client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    client.sendall(HELLO + calls(1, FEW))
    async with asyncio.timeout(BOUND_S):
        while not any(other.has_request for other in listener._connections - known):  # noqa: ASYNC110
            await asyncio.sleep(0)
    (connection,) = listener._connections - known
    return client, connection


def calls(first: int, amount: int) -> bytes:
    data = b"".join(h2.headers(n, h2.request(CHAT)) for n in range(first, first + 2 * amount, 2))
    assert len(data) <= PIECE
    return data


async def test_calls_that_come_in_one_piece_begin_in_many_turns_and_a_neighbours_in_between() -> None:
    async with chatting() as (serving, listener, address):
        busy, _ = await connected(address, listener)
        neighbour, _ = await connected(address, listener)
        serving.begun.clear()
        busy.sendall(calls(3, MANY))
        neighbour.sendall(calls(3, FEW))
        await serving.until_begun(MANY + FEW)
        name = "ipv4:{}:{}".format(*neighbour.getsockname())
        turns = [turn for turn, peer in serving.begun if peer != name]
        assert max(turns.count(turn) for turn in turns) <= TURN_EVENTS
        assert [peer for _, peer in serving.begun].index(name) < MANY
        busy.close()
        neighbour.close()


async def test_the_first_calls_of_a_connection_begin_in_many_turns_too() -> None:
    async with chatting() as (serving, _, address):
        client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        client.sendall(HELLO + calls(1, MANY))
        await serving.until_begun(MANY)
        turns = [turn for turn, _ in serving.begun]
        assert max(turns.count(turn) for turn in turns) <= TURN_EVENTS
        client.close()


async def test_a_call_whose_reset_waits_behind_many_calls_is_cancelled_with_its_connection() -> None:
    async with chatting() as (serving, listener, address):
        client, connection = await connected(address, listener)
        await serving.until_begun(FEW)
        reset = h2.frame(h2.RST_STREAM, h2.number(h2.CANCEL), stream=1)
        connection.data_received(calls(3, MANY) + reset)
        assert connection.is_behind
        begun = len(serving.begun)
        assert begun == FEW + TURN_EVENTS
        client.close()
        connection.abort()
        async with asyncio.timeout(BOUND_S):
            while serving.cancelled < begun:  # noqa: ASYNC110 - turns of the loop are what is waited for
                await asyncio.sleep(0)
        assert len(serving.begun) == begun


async def test_a_call_that_was_ended_for_what_it_holds_while_its_beginning_waited_does_not_begin() -> None:
    async with chatting() as (serving, listener, address):
        client, connection = await connected(address, listener)
        large = 1 + 2 * 2 * TURN_EVENTS
        part = h2.frame(h2.DATA, frame(bytes(16_384))[:16_384], stream=large)
        connection.data_received(calls(3, 2 * TURN_EVENTS) + part)
        assert connection.let_go(0, CONNECTION_BYTES, keeps_oldest=False) < 16_384
        await serving.until_begun(2 * TURN_EVENTS)
        async with asyncio.timeout(BOUND_S):
            while connection.is_behind:  # noqa: ASYNC110 - turns of the loop are what is waited for
                await asyncio.sleep(0)
        assert len(serving.begun) == FEW + 2 * TURN_EVENTS - 1
        client.close()
