"""State of keys of several fields, which a service names by tuples, moves and is kept as that of any other key."""

import asyncio
from typing import Any

import onelane
import pytest
from onelane.errors import Misuse, NoRoutingKey
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoServicer, EchoStub
from tests.running_app import eventually

RULE = {"echo.v1.Echo/*": "key,text"}
KEYS = [("eu/west", str(number)) for number in range(12)]


class Seats(EchoServicer):
    """Counts the calls of a key, in memory and on disk."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.seen = shard.keyed("seen", int)
        self.kept = shard.keyed("kept", int, durable=True)
        self.told: list[object] = []
        shard.on_arrive(self.told.append)

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        key = (request.key, request.text)
        for counts in (self.seen, self.kept):
            counts[key] = counts.get(key, 0) + 1
        return EchoReply(seen=self.seen[key], text=str(self.kept[key]), shard=self.shard.name)

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        """Sets a reminder of the key, and takes the turn of its own key again."""
        key = (request.key, request.text)
        async with self.shard.turn(key):
            await self.shard.remind(key, "echo.v1.Echo/Unary", request, after_s=5)
        return EchoReply()


def service(cluster: Cluster, shard: int) -> Seats:
    kind: Any = Seats
    seats: Seats = cluster.service(kind, shard=shard)
    return seats


async def test_it_moves_is_kept_and_has_turns_and_reminders() -> None:
    settings = {"keys": RULE}
    async with Cluster(Seats, shards=1, settings=settings, strict=True) as cluster:
        stub = cluster.stub(EchoStub)

        async def count(key: tuple[str, str]) -> tuple[int, int]:
            reply = await stub.Unary(EchoRequest(key=key[0], text=key[1]), timeout=BOUND_S)
            return reply.seen, int(reply.text)

        assert [await count(key) for key in KEYS] == [(1, 1)] * len(KEYS)
        await asyncio.wait_for(cluster.scale(3), BOUND_S)
        assert [await count(key) for key in KEYS] == [(2, 2)] * len(KEYS)
        services = [service(cluster, index) for index in range(3)]
        assert sorted(key for seats in services for key in seats.seen) == sorted(KEYS)
        assert all(seats.seen for seats in services)
        assert set(services[1].told) == set(services[1].seen)
        await stub.Misbehave(EchoRequest(key=KEYS[3][0], text=KEYS[3][1]), timeout=BOUND_S)
        await cluster.advance(6)
        await eventually(lambda: 3 in [seats.seen.get(KEYS[3]) for seats in services])
        assert await count(KEYS[3]) == (4, 4)


async def test_what_is_no_key_has_an_error_that_says_what_is_one() -> None:
    async with Cluster(Seats, shards=1, settings={"keys": RULE}, strict=True) as cluster:
        seats = service(cluster, 0)
        with pytest.raises(Misuse, match=r"is \('eu',\): one of several fields is a tuple of two or more"):
            seats.shard.later(("eu",), 1, lambda: None)
        with pytest.raises(NoRoutingKey, match="for a key of several fields a tuple of two to five"):
            seats.seen[("eu",)] = 1
