"""Calls to an app of several shards while these drain, die, restart and get placements; see `tests/scenarios`.

Real shards on Unix sockets in one process, by `onelane.testing.Cluster`; the scenario is their supervisor, and each of
its calls a client with a connection of its own. A shard is named by its number.

    start N                   N shards
    key K of S                name a key that shard S owns
    call K [at S]             make a call and print how it ended: its status, the shard that served it, its hop, and how
                              many calls of the key that shard has served; at S, else at the owner
    begin C K [at S]          begin a call that holds the turn of its key until `finish C`
    finish C, cancel C        let the handler of a call go on; cancel it at the client
    place E K to S [at S …]   give shards, by default all, the placement of epoch E, in which S owns K
    drain S [grace G]         order a shard to drain, and to wait no longer than G seconds for its calls
    stop S, kill S            end a shard as its supervisor does, or as a process that dies
    start S again             start it once more, on the same sockets

What follows from a command is printed below it: calls that have ended, then those that begin to run, then what became
of shards. Of a call that does not run at once it is printed where it is: forwarded, queued for the turn of its key,
held for a placement that is on its way, or not accepted by any shard.
"""

import asyncio
import contextlib
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from onelane.cluster.control import placement_to_proto
from onelane.core.placement import Placement
from onelane.shard import lifecycle
from onelane.testing import Cluster
from onelane.v1 import control_pb2

from tests import scenarios
from tests.bounds import BOUND_S
from tests.echo.service import Echo
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest

ITERATIONS = 60
"""Iterations of the loop after which nothing more happens on sockets of one process."""


class ClusterScenario:
    """Shards, keys and calls by name."""

    def __init__(self) -> None:
        self._ended: list[str] = []
        self._shards: list[str] = []
        self._cluster: Cluster
        self._ends = contextlib.AsyncExitStack()
        self._keys: dict[str, str] = {}
        self._calls: dict[str, tuple[str, Any]] = {}
        """Name → key and call, until it has ended."""
        self._tasks: list[asyncio.Task[None]] = []
        self._orders: dict[int, asyncio.Queue[control_pb2.ToShard | None]] = {}
        self._epochs: dict[int, int] = {}
        self._running: set[str] = set()

    async def run(self, line: str) -> list[str]:
        command, *words = line.split()
        await getattr(self, f"_{command}")(*words)
        await settle()
        # What one command leads to goes on side by side: only the kinds have an order.
        output = [*sorted(self._ended), *self._begun(), *sorted(self._shards), *self._newer()]
        self._ended, self._shards = [], []
        return output

    async def aclose(self) -> None:
        for _, call in self._calls.values():
            call.cancel()
        for orders in self._orders.values():
            orders.put_nowait(None)
        await asyncio.gather(*self._tasks)
        await self._ends.aclose()

    # Shards

    async def _start(self, number: str, again: str = "") -> None:
        if again:
            await self._cluster.restart(int(number))
            await self._supervise(int(number))
            await self._arrived()
            return
        self._cluster = await self._ends.enter_async_context(Cluster(Echo, shards=int(number)))
        for index in range(int(number)):
            await self._supervise(index)

    async def _supervise(self, index: int) -> None:
        """Let a shard follow orders, and hear what it reports."""
        shard = self._shard(index)
        orders = self._orders[index] = asyncio.Queue()
        send: Callable[[control_pb2.ToSupervisor], Any] = type(shard).send.__get__(shard)

        async def hear(message: control_pb2.ToSupervisor) -> None:
            if message.WhichOneof("kind") == "drained":
                self._shards.append(f"{index} has drained")
            await send(message)

        shard.receive, shard.send = orders.get, hear
        self._tasks.append(asyncio.create_task(shard.lifecycle._follow_orders()))
        self._running -= set(self._service(index).began)
        self._shards.append(f"{index} serves")

    async def _drain(self, number: str, _grace: str = "", grace_s: str = "30") -> None:
        order = control_pb2.ToShard(drain=control_pb2.Drain(grace_s=float(grace_s)))
        self._orders[int(number)].put_nowait(order)

    async def _stop(self, number: str) -> None:
        self._orders[int(number)].put_nowait(None)
        await self._shard(int(number)).end()
        self._shards.append(f"{number} has ended")

    async def _kill(self, number: str) -> None:
        self._orders[int(number)].put_nowait(None)
        await self._cluster.kill(int(number))
        self._shards.append(f"{number} has died")

    async def _place(self, epoch: str, key: str, _to: str, owner: str, _at: str = "", *shards: str) -> None:
        first = self._shard(0).app.placement
        pins = {self._keys[key]: first.members[int(owner)].name}
        newer = placement_to_proto(Placement(int(epoch), first.members, first.points, pins))
        for index in map(int, shards or self._orders):
            self._orders[index].put_nowait(control_pb2.ToShard(placement=newer))

    # Calls

    async def _key(self, name: str, _of: str, owner: str) -> None:
        candidates = (f"{name}-{number}" for number in count())
        self._keys[name] = next(key for key in candidates if self._cluster.owner_of(key) == int(owner))

    async def _call(self, key: str, _at: str = "", shard: str = "") -> None:
        call, channel = self._dial(key, shard, "Unary", EchoRequest(key=self._keys[key]))
        self._ended.append(await self._outcome(call))
        await channel.close()

    async def _begin(self, name: str, key: str, _at: str = "", shard: str = "") -> None:
        before = {index: self._load(index) for index in self._orders}
        call, channel = self._dial(key, shard, "Misbehave", EchoRequest(key=self._keys[key], order=f"wait {name}"))
        self._calls[name] = (key, call)
        self._tasks.append(asyncio.create_task(self._watch(name, call, channel)))
        await settle()
        after = {index: self._load(index) for index in self._orders}
        grown = [index for index in after if after[index] != before[index]]
        if not grown and name in self._calls:
            self._shards.append(f"{name} is not accepted")
        for index in grown:
            _, queued, held = (now > then for now, then in zip(after[index], before[index], strict=True))
            if queued or held or name not in self._service(index).began:
                self._shards.append(f"{index} {'queues' if queued else 'holds' if held else 'forwards'} {name}")

    async def _arrived(self) -> None:
        """Wait until every call that has begun runs or is queued: a sibling connects again after a pause."""
        while len(self._calls) > self._running_or_queued():
            await settle()

    def _running_or_queued(self) -> int:
        begun = {name for index in self._orders for name in self._service(index).began}
        return len(begun & self._calls.keys()) + sum(sum(self._load(index)[1:]) for index in self._orders)

    def _load(self, index: int) -> tuple[int, int, int]:
        """Calls under way in a shard; those of them that wait for the turn of their key, and for a placement or a key
        that is on its way."""
        lane = self._lane(index)
        return lane.in_flight, lane.queue.turns.waiting, lane.queue.arrivals.count

    async def _finish(self, name: str) -> None:
        for index in self._orders:
            if name in self._service(index).held:
                self._service(index).held[name].set()

    async def _cancel(self, name: str) -> None:
        self._calls[name][1].cancel()

    def _dial(self, key: str, shard: str, method: str, request: EchoRequest) -> tuple[Any, grpc.aio.Channel]:
        index = int(shard) if shard else self._cluster.owner_of(self._keys[key])
        channel = self._cluster.stub(lambda channel: channel, shard=index)
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        return getattr(stub, method)(request, metadata=(("onelane-debug", "1"),), timeout=BOUND_S), channel

    async def _watch(self, name: str, call: Any, channel: grpc.aio.Channel) -> None:
        outcome = await self._outcome(call)
        del self._calls[name]
        self._ended.append(f"{name} ends: {outcome}")
        await channel.close()

    async def _outcome(self, call: Any) -> str:
        """Status, and the way of the call where it was served."""
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            details = (await call.details()).partition(": ")[0]
            # Else they are the client's own, of how a connection ended.
            return f"{code.name}, {details}" if "shard" in details or "drain" in details else code.name
        reply, trailers = await call, dict(await call.trailing_metadata())
        shard = trailers["onelane-shard"].rpartition("-")[2]
        served = f", its call {reply.seen} of the key" if reply.seen else ""
        return f"OK by {shard}, {trailers['onelane-hop']}{served}"

    # What has followed

    def _begun(self) -> list[str]:
        """The calls that hold the turn of their key since the last command."""
        begun = {name: index for index in self._orders for name in self._service(index).began}
        new = sorted(begun.keys() - self._running)
        self._running |= begun.keys()
        return [f"{begun[name]} runs {name}" for name in new]

    def _newer(self) -> list[str]:
        epochs = {index: self._lane(index).placement.epoch for index in self._orders if self._shard(index).is_up}
        newer = [index for index in epochs if epochs[index] != self._epochs.get(index, 1)]
        self._epochs = epochs
        return [f"{index} has epoch {epochs[index]}" for index in newer]

    def _service(self, index: int) -> Echo:
        return self._cluster.service(Echo, shard=index)

    def _lane(self, index: int) -> Any:
        return self._shard(index).lifecycle.parts.lane

    def _shard(self, index: int) -> Any:
        return self._cluster._shards(None)[index]


async def settle() -> None:
    for _ in range(ITERATIONS):
        await asyncio.sleep(0)


@pytest.mark.parametrize("file", scenarios.files_of(__file__), ids=lambda file: file.stem)
async def test_scenario(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Calls come at once, or not at all: nobody has to wait for those that are on their way.
    monkeypatch.setattr(lifecycle, "QUIET_S", 0.0)
    monkeypatch.setattr(lifecycle, "STOP_S", 0.0)
    await scenarios.check(file, ClusterScenario)
