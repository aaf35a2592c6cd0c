"""A service that sets reminders, and remembers in a durable dict which have run."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import onelane
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.state.held_store import StoreControl

RUN, DO = "echo.v1.Echo/Unary", "Misbehave"
ROUNDS = 8
"""A run asks the store to load its key and to write, one after the other; the next one follows it."""
SETTINGS = {"turns": {"echo.v1.Echo/*": "KEYED"}}


class Reminded(echo_pb2_grpc.EchoServicer):
    """`Unary` is what reminders call; `Misbehave` does as `order` says."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.counts = shard.keyed("counts", int, durable=True)
        self.began: list[str] = []
        """Keys and texts of the runs, as they began."""
        self.ids: list[str] = []
        """Their idempotency keys."""
        self.ordered: list[str] = []
        """Orders that were carried out."""
        self.failing: grpc.StatusCode | None = None
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        self.began.append(f"{request.key}{request.text}")
        self.ids += [value for name, value in context.invocation_metadata() if name == "idempotency-key"]
        self.counts[request.key] = self.counts.get(request.key, 0) + 1
        await self.may_end.wait()
        if self.failing is not None:
            await context.abort(self.failing, "as ordered")
        if request.order:
            await self.carry_out(request)
        return EchoReply(seen=self.counts[request.key])

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        text = await self.carry_out(request)
        self.ordered.append(request.order)
        if request.text == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "as ordered")
        return EchoReply(text=text or "", seen=self.counts.get(request.key, 0))

    async def carry_out(self, request: EchoRequest) -> str:
        """`set KEY SECONDS EVERY_S ID`, `forget KEY ID`, `list KEY`."""
        order, key, *rest = request.order.split()
        if order == "set":
            after_s, every_s = (float(text) if text != "-" else None for text in rest[:2])
            await self.shard.remind(
                key, RUN, EchoRequest(key=key, text=rest[2]), after_s=after_s, every_s=every_s, id=rest[2]
            )
        elif order == "forget":
            return str(await self.shard.forget_reminder(key, rest[0]))
        return " ".join(reminder.id for reminder in await self.shard.reminders(key))


class RemindedCluster:
    """`Reminded` in a cluster with a store that is in the test's hands."""

    def __init__(self, cluster: Cluster, store: StoreControl) -> None:
        self.cluster, self.store = cluster, store
        self.stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)

    async def do(self, key: str, order: str, text: str = "") -> Any:
        """Carry out an order in a turn of `key`."""
        return await self.stub.Misbehave(EchoRequest(key=key, order=order, text=text), timeout=BOUND_S)

    def service(self, shard: int = 0) -> Reminded:
        kind: Any = Reminded
        service: Reminded = self.cluster.service(kind, shard=shard)
        return service

    @property
    def services(self) -> list[Reminded]:
        return [self.service(shard.index) for shard in self.cluster._shards(None) if shard.is_up]

    @property
    def began(self) -> list[str]:
        return [text for service in self.services for text in service.began]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait, while the clock moves on by next to nothing."""
        async with asyncio.timeout(BOUND_S):
            while not condition():
                await self.cluster.advance(0.0001)
                await asyncio.sleep(0.001)

    async def ran(self, count: int) -> list[str]:
        """Wait until so many runs have begun."""
        await self.until(lambda: len(self.began) >= count)
        return self.began

    async def settle(self) -> None:
        """Let all end that has begun: what it asks of the threads of the stores, and what follows from that."""
        for _ in range(ROUNDS):
            await self.cluster.advance(0.0001)
            for shard in self.cluster._shards(None):
                if shard.is_up:
                    await _barrier(shard.lifecycle.parts.shard)

    async def count_of(self, key: str) -> int:
        return int((await self.do(key, f"list {key}")).seen)


async def _barrier(shard: onelane.Shard) -> None:
    """Wait until the thread of its store has done all that it was asked for."""
    assert shard.durable_state is not None
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    shard.durable_state.store.submit(lambda _: None, lambda _, __: done.set_result(None))
    await asyncio.wait_for(done, BOUND_S)


@asynccontextmanager
async def reminded_cluster(shards: int = 1, **state: Any) -> AsyncIterator[RemindedCluster]:
    """state: settings of the durable state."""
    store = StoreControl()
    async with Cluster(Reminded, shards=shards, store=store, settings=SETTINGS | {"state": state}) as cluster:
        yield RemindedCluster(cluster, store)
