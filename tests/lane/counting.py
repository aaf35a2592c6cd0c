"""A service that counts in a durable dict, in a cluster whose store is in the test's hands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.lane.lane import Lane
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.state.held_store import StoreControl

READ, WRITE = "Misbehave", "Unary"
"""A method without and one with side effects; see `Counting`."""


class Counting(echo_pb2_grpc.EchoServicer):
    """Counts in a durable dict, and does as `order` says."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.others = shard.stub(echo_pb2_grpc.EchoStub, to="app")
        self.counts = shard.keyed("counts", int, durable=True)
        self.may_go: dict[str, asyncio.Event] = {}
        self.began: list[str] = []
        self.heard: list[str] = []
        shard.subscribe("topic", EchoReply, lambda message: self.heard.append(getattr(message, "text", "lost")))

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        """Adds one, and carries out an order."""
        self.began.append(request.text)
        self.counts[request.key] = self.counts.get(request.key, 0) + 1
        return await self.carry_out(request, context)

    async def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        """Changes nothing, though it might."""
        return EchoReply(seen=self.counts.get(request.key, 0))

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        """Changes nothing, but for what an order does."""
        self.began.append(request.text)
        return await self.carry_out(request, context)

    async def carry_out(self, request: EchoRequest, context: Any) -> EchoReply:
        kind, _, rest = request.order.partition(" ")
        if kind == "abort":
            await context.abort(grpc.StatusCode[rest or "NOT_FOUND"], "as ordered", (("x-kept", "no"),))
        elif kind == "wait":
            await self.may_go.setdefault(request.key, asyncio.Event()).wait()
        elif kind == "publish":
            self.shard.publish("topic", EchoReply(text=rest), at_once=True)
        elif kind == "call":
            key, _, inner = rest.partition(" ")
            request = EchoRequest(key=key, text="inner", order=inner)
            inner_reply: Any = await self.shard.call(key, f"echo.v1.Echo/{READ}", request)
            return EchoReply(text=inner_reply.text, seen=inner_reply.seen)
        elif kind == "later":
            self.shard.later(request.key, 0.5, partial(self.add, request.key))
        elif kind == "stub":
            reply: EchoReply = await self.others.Misbehave(EchoRequest(key=rest, text="inner"))
            return reply
        elif kind == "bad":
            self.counts[request.key] = object()  # type: ignore[assignment]
        return EchoReply(text=request.text, seen=self.counts.get(request.key, 0))

    def add(self, key: str) -> None:
        self.counts[key] += 1

    async def Download(self, request: EchoRequest, context: Any) -> AsyncIterator[EchoReply]:
        """Adds one in a turn taken by hand."""
        async with self.shard.turn(request.key):
            self.began.append(request.text)
            self.counts[request.key] = self.counts.get(request.key, 0) + 1
            yield EchoReply(text="inside", seen=self.counts[request.key])
        yield EchoReply(text="after")


class Counted:
    """One shard of `Counting`, and its store."""

    def __init__(self, cluster: Cluster, store: StoreControl) -> None:
        self.cluster, self.store = cluster, store
        self.stub: Any = cluster.stub(echo_pb2_grpc.EchoStub, shard=0)
        """Sends no ids of its own, and repeats nothing."""
        kind: Any = Counting
        self.service: Counting = cluster.service(kind, shard=0)

    @property
    def lane(self) -> Lane:
        return self.cluster._shards(None)[0].lifecycle.parts.lane

    def call(self, method: str, key: str, order: str = "", text: str = "") -> "asyncio.Task[EchoReply]":
        """A call that has begun to run once `began` says so."""

        async def send() -> EchoReply:
            reply: EchoReply = await getattr(self.stub, method)(
                EchoRequest(key=key, order=order, text=text), timeout=BOUND_S
            )
            return reply

        return asyncio.ensure_future(send())

    async def write(self, key: str, order: str = "", text: str = "") -> int:
        return (await self.call(WRITE, key, order, text)).seen

    async def began(self, *texts: str) -> None:
        """Wait until these calls, and no others since, have begun."""
        async with asyncio.timeout(BOUND_S):
            while self.service.began != [*texts]:  # noqa: ASYNC110 - the handlers are the test's
                await asyncio.sleep(0)
        self.service.began.clear()

    async def committing(self, count: int = 1) -> None:
        """Wait until so many commits have begun."""
        await self.store.committing(count)

    async def commits_of(self, count: int) -> None:
        """Wait until so many commits have ended, well or not."""
        await self.committing(count)
        assert self.lane.kept is not None
        await asyncio.wait_for(self.lane.kept.journal.wait_idle(), BOUND_S)

    async def counts(self, name: str) -> None:
        """Wait until a counter has counted something."""
        async with asyncio.timeout(BOUND_S):
            while not await self.cluster.stats(name):  # noqa: ASYNC110 - it is in another task
                await asyncio.sleep(0.001)

    async def fresh(self, *keys: str) -> None:
        """Count each key once, and begin to watch."""
        for key in keys:
            await self.write(key)
        self.store.commits.clear()
        self.service.began.clear()


@asynccontextmanager
async def counted_cluster(**state: Any) -> AsyncIterator["Counted"]:
    """One shard of `Counting`. state: settings of its durable state."""
    store = StoreControl()
    settings = {"turns": {"echo.v1.Echo/*": "KEYED"}, "state": state}
    with pytest.MonkeyPatch.context() as patch:
        # As if the proto said of `Misbehave` that it has no side effects.
        patch.setattr("onelane.lane.method_entry.has_no_side_effects", lambda path: path.endswith(READ))
        async with Cluster(Counting, shards=1, store=store, settings=settings, trace=True) as cluster:
            yield Counted(cluster, store)


async def status_of(call: "asyncio.Task[EchoReply]") -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"
