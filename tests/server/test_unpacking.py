"""Compressed messages are unpacked after admission, in pieces, the connections in turn, and bounded in sum."""

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import pytest
from onelane.server.unpacking import UNPACKED_PIECE, Unpacker, Unpacking
from onelane.wire.framing import BadWire, Headers, frame
from onelane.wire.packed import Packed

from tests.server.test_connection_held_bytes import CONNECTION, MIB, REQUEST, Peer, Shard, started, until

ZEROS = bytes(MIB)
PACKED = b"\1" + frame(gzip.compress(ZEROS))[1:]
"""A thousand bytes that become a MiB."""

WEB: dict[str, Headers] = {
    "connect": [
        *(REQUEST[:3]),
        (b"content-type", b"application/connect+proto"),
        (b"connect-content-encoding", b"gzip"),
    ],
    "grpc-web": [*(REQUEST[:3]), (b"content-type", b"application/grpc-web+proto"), (b"grpc-encoding", b"gzip")],
}
"""Headers of a browser's request, by protocol."""


class Loop:
    """Runs what was called soon, turn by turn."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        callbacks, self.soon = self.soon, []
        for callback in callbacks:
            callback()


class Wanted:
    """A message that is unpacked for one connection, and how far."""

    def __init__(self, unpacker: Unpacker, connection: str, message: bytes = ZEROS) -> None:
        self.packed = Packed(gzip.compress(message), b"gzip", 4 * MIB)
        self.is_wanted = True
        self.ends: list[BadWire | None] = []
        unpacker.add(connection, Unpacking(self.packed, grown=lambda _: self.is_wanted, ended=self.ends.append))


def made() -> tuple[Loop, Unpacker]:
    loop: Any = Loop()
    return loop, Unpacker(loop)


def test_a_turn_of_the_loop_unpacks_one_piece_and_the_connections_take_turns() -> None:
    loop, unpacker = made()
    many = [Wanted(unpacker, "many") for _ in range(100)]
    other = Wanted(unpacker, "other", bytes(2 * UNPACKED_PIECE))
    unpacked = 0
    while not other.ends:
        loop.turn()
        now = sum(wanted.packed.size for wanted in (*many, other))
        assert now - unpacked <= UNPACKED_PIECE
        unpacked = now
    assert unpacked <= 6 * UNPACKED_PIECE
    assert [wanted.packed.size > 0 for wanted in many] == [True] + [False] * 99


def test_a_message_that_is_wanted_no_more_is_unpacked_no_further() -> None:
    loop, unpacker = made()
    dropped, other = Wanted(unpacker, "a"), Wanted(unpacker, "a")
    loop.turn()
    dropped.is_wanted = False
    while not other.ends:
        loop.turn()
    assert dropped.packed.size <= 2 * UNPACKED_PIECE
    assert (other.packed.message(), loop.soon) == (ZEROS, [])


async def test_calls_that_are_refused_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(max_in_flight=1) as shard:
        peer = await packing_peer(shard)
        sizes = watch_sizes(monkeypatch)
        peer.call(b"Upload", frame(b""), end=False)
        await until(lambda: shard.lane.in_flight == 1)
        for _ in range(5):
            peer.call(b"Echo", PACKED, end=True)
        await until(lambda: list(peer.ends.values()).count("8") >= 5)
        assert sizes == []


async def test_what_is_unpacked_is_bounded_in_sum_and_a_neighbour_is_answered() -> None:
    """60 MiB of 60 KiB, for handlers that wait: of each call it is held until the call ends."""
    async with started() as shard:
        peer = await packing_peer(shard)
        for _ in range(60):
            peer.call(b"Wait", PACKED, end=True)
        assert await shard.answers()
        await until(lambda: len(peer.ends) >= 58)
        assert set(peer.ends.values()) == {"8"}
        assert shard.most <= CONNECTION + MIB
        assert await shard.answers()


async def test_a_compressed_message_arrives_whole_in_a_call_and_in_a_stream() -> None:
    async with started() as shard:
        peer = await packing_peer(shard)
        peer.call(b"Length", PACKED, end=True)
        peer.call(b"Lengths", PACKED + PACKED, end=True)
        await until(lambda: len(peer.bodies) == 2 and len(peer.ends) == 2)
        assert set(peer.bodies.values()) == {frame(b"%d" % MIB), frame(b"%d" % (2 * MIB))}
        assert shard.listener.held_bytes.total == 0


async def test_a_drain_waits_for_a_call_whose_message_is_being_unpacked() -> None:
    async with started() as shard:
        peer = await packing_peer(shard)
        step = shard.listener.unpacker._step
        stopped = asyncio.Event()

        def hold() -> None:
            stopped.set()

        shard.listener.unpacker._step = hold  # type: ignore[method-assign]
        peer.call(b"Length", PACKED, end=True)
        await stopped.wait()
        assert shard.lane.in_flight == 1
        drain = asyncio.ensure_future(shard.lane.drain(begun=shard.listener.under_way()))
        shard.listener.unpacker._step = step  # type: ignore[method-assign]
        step()
        await drain
        await until(lambda: peer.ends)
        assert set(peer.ends.values()) == {"0"}


@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
async def test_calls_of_browsers_are_unpacked_as_those_of_grpc_are(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After admission, and in pieces; a call that is refused is not unpacked at all."""
    headers = WEB[protocol]
    async with started(max_in_flight=1) as shard:
        sizes = watch_sizes(monkeypatch)
        peer = await shard.peer(window=MIB, headers=headers)
        peer.call(b"Lengths", PACKED + PACKED, end=True)
        await until(lambda: len(peer.bodies) == 1)
        assert b"%d" % (2 * MIB) in next(iter(peer.bodies.values()))
        assert max(sizes) <= UNPACKED_PIECE
        sizes.clear()
        holder = await shard.peer()
        holder.call(b"Upload", frame(b""), end=False)
        await until(lambda: shard.lane.in_flight == 1)
        for _ in range(5):
            peer.call(b"Lengths", PACKED + PACKED, end=True)
        await until(lambda: len(peer.bodies) == 6)
        assert sizes == []


def watch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each unpacking was asked to advance, from now on."""
    sizes: list[int] = []
    advance = Packed.advance

    def watched(packed: Packed, amount: int) -> bool:
        sizes.append(amount)
        return advance(packed, amount)

    monkeypatch.setattr(Packed, "advance", watched)
    return sizes


async def packing_peer(shard: Shard) -> Peer:
    """A client whose messages are compressed, and that takes answers."""
    return await shard.peer(window=MIB, headers=[*REQUEST, (b"grpc-encoding", b"gzip")])
