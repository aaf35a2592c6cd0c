"""Whatever ends a call, at both ends nothing of it is left: no stream, task, turn, generator, file, object or byte.

The garbage collector is off, and stays off: what refers to itself would show.
"""

import asyncio
import gc
import logging
import os
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

import grpc
import grpc.aio
import pytest
from greenlet import greenlet
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

TEXT = "x" * 64 * 1024
CALLS = 3
SLACK_BYTES = CALLS * len(TEXT) // 2
"""What a process may allocate besides: half a message for each call."""
POLL_S = 0.002
TYPES = (asyncio.CancelledError, grpc.RpcError, TracebackType, FrameType, greenlet)
"""Beside our own: what keeps the frames of a call, and so all that they name."""
SPARE = "_SpareTask"
"""Stands ready for calls to come, see `onelane.server.eager`: there are more or fewer of them at any time."""
NOT_OF_CALLS = {SPARE, "CounterSeries", "HistogramSeries"}
Stub = Callable[..., Any]


class Ending(echo_pb2_grpc.EchoServicer):
    """Ends its calls, after their first message, as the request orders."""

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        await self._end(request, context)
        return EchoReply(text=request.text)

    async def Download(self, request: EchoRequest, context: Any) -> AsyncIterator[EchoReply]:
        yield EchoReply(text=request.text)
        await self._end(request, context)
        while request.order == "flood":
            yield EchoReply(text=TEXT)

    async def Upload(self, request_iterator: AsyncIterator[EchoRequest], context: Any) -> EchoReply:
        async for request in request_iterator:
            await self._end(request, context)
        return EchoReply()

    async def Chat(self, request_iterator: AsyncIterator[EchoRequest], context: Any) -> AsyncIterator[EchoReply]:
        async for request in request_iterator:
            yield EchoReply(text=request.text)
            await self._end(request, context)
            while request.order == "flood":
                yield EchoReply(text=TEXT)

    def PlainUpload(self, request_iterator: Iterator[EchoRequest], context: Any) -> EchoReply:
        for request in request_iterator:
            self._end_now(request, context)
        return EchoReply()

    def PlainChat(self, request_iterator: Iterator[EchoRequest], context: Any) -> Iterator[EchoReply]:
        for request in request_iterator:
            yield EchoReply(text=request.text)
            self._end_now(request, context)
            while request.order == "flood":
                yield EchoReply(text=TEXT)

    async def _end(self, request: EchoRequest, context: Any) -> None:
        match request.order:
            case "hold":
                # As many a helper of asyncio does: the frame refers to its task.
                task = asyncio.current_task()
                await asyncio.Event().wait()
                assert task
            case "hold in time":
                # The loop keeps the cancelled timer for a minute, the timer its context, and that the call.
                async with asyncio.timeout(60):
                    await asyncio.Event().wait()
            case "late":
                await asyncio.sleep(0)
                raise ValueError("late")
            case "leak":
                raise asyncio.CancelledError
            case "abort":
                await context.abort(grpc.StatusCode.NOT_FOUND, "as ordered")
            case _:
                self._end_now(request, context)

    def _end_now(self, request: EchoRequest, context: Any) -> None:
        match request.order:
            case "raise":
                raise ValueError("at once")
            case "abort":
                context.abort(grpc.StatusCode.NOT_FOUND, "as ordered")


REQUEST_STREAMS = {"Upload", "Chat", "PlainUpload", "PlainChat"}
RESPONSE_STREAMS = {"Download", "Chat", "PlainChat"}
KINDS = ["Unary", "Download", "Upload", "Chat", "PlainUpload", "PlainChat"]


class Client:
    """Makes calls of one method and ends them."""

    def __init__(self, channel: Any, kind: str, key: str) -> None:
        self.kind = kind
        self.key = key
        self._method = getattr(echo_pb2_grpc.EchoStub(channel), kind)
        unparsing: Any = Unparsing(channel)
        self._unparsing = getattr(echo_pb2_grpc.EchoStub(unparsing), kind)

    def call(self, order: str, *, endless: bool = False, **options: Any) -> Any:
        return self._call(self._method, order, endless=endless, **options)

    def _call(self, method: Any, order: str, *, endless: bool = False, **options: Any) -> Any:
        request = EchoRequest(key=self.key, order=order, text=TEXT)
        streams = self.kind in REQUEST_STREAMS
        return method(self._requests(request, endless=endless) if streams else request, **options)

    async def _requests(self, request: EchoRequest, *, endless: bool) -> AsyncIterator[EchoRequest]:
        for _ in range(3):
            yield request
        if endless:
            await asyncio.Event().wait()

    async def until_begun(self, call: Any) -> None:
        """The server has the call; where it streams, the client has its first response."""
        if self.kind in RESPONSE_STREAMS:
            await call.read()
        else:
            await call.wait_for_connection()

    # Ways to end a call

    async def ends(self, order: str) -> None:
        call = self.call(order)
        if self.kind in RESPONSE_STREAMS:
            async for _ in call:
                pass
        else:
            await call

    async def cancelled(self, order: str) -> None:
        call = self.call(order, endless=True)
        await self.until_begun(call)
        call.cancel()

    async def reader_cancelled(self, order: str) -> None:
        call = self.call(order, endless=True)

        async def read() -> None:
            reading.set()
            if self.kind in RESPONSE_STREAMS:
                async for _ in call:
                    pass
            else:
                await call

        reading = asyncio.Event()
        reader = asyncio.ensure_future(read())
        await reading.wait()
        await call.wait_for_connection()
        reader.cancel()
        await reader

    async def expires(self, order: str) -> None:
        await self.call(order, endless=True, timeout=0.02).code()

    async def expires_at_once(self, order: str) -> None:
        await self.call(order, timeout=0).code()

    async def dropped(self, order: str) -> None:
        if self.kind in RESPONSE_STREAMS:
            async for _ in self.call(order, endless=True):
                break
        else:
            # It goes on without its caller.
            self.call("")

    async def connection_lost(self, order: str) -> None:
        call = self.call(order, endless=True)
        await self.until_begun(call)
        call.connection.transport.abort()
        await call.code()

    async def unparsed(self, order: str) -> None:
        call = self._call(self._unparsing, order)
        await (call.read() if self.kind in RESPONSE_STREAMS else call)

    async def requests_fail(self, order: str) -> None:
        if self.kind in REQUEST_STREAMS:
            await self._method(self._failing_requests()).code()

    async def _failing_requests(self) -> AsyncIterator[EchoRequest]:
        yield EchoRequest(key=self.key, text=TEXT)
        raise ValueError("the iterator's")


WAYS = [
    *[(Client.ends, order) for order in ("", "abort", "raise", "late", "leak")],
    *[(way, "hold") for way in (Client.cancelled, Client.reader_cancelled, Client.expires, Client.dropped)],
    (Client.connection_lost, "hold"),
    *[(way, "flood") for way in (Client.cancelled, Client.expires, Client.dropped, Client.connection_lost)],
    *[(way, "") for way in (Client.expires_at_once, Client.unparsed, Client.requests_fail)],
]


class Unparsing:
    """A channel of whose responses none can be deserialized."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __getattr__(self, shape: str) -> Any:
        def method(path: str, *, request_serializer: Any, response_deserializer: Any, **more: Any) -> Any:
            return getattr(self._channel, shape)(path, request_serializer, lambda data: 1 / 0, **more)

        return method


@dataclass(frozen=True)
class Inventory:
    """What there is, at both ends."""

    counts: Counter[str]
    allocated: int

    def beyond(self, before: "Inventory") -> dict[str, int]:
        """What there is more than before."""
        growth = {name: count - before.counts[name] for name, count in self.counts.items()}
        growth["bytes"] = max(0, self.allocated - before.allocated - SLACK_BYTES)
        return {name: more for name, more in growth.items() if more > 0}


@pytest.mark.parametrize("route", ["home", "away"])
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_of_a_call_is_left_once_it_has_ended(kind: str, route: str) -> None:
    async with Cluster(Ending, shards=2) as cluster:
        key = next(key for key in map(str, range(99)) if cluster.owner_of(key) == 0)
        channel: Any = cluster.stub(lambda channel: channel, shard=("home", "away").index(route))
        client = Client(channel, kind, key)
        with collector_off():
            for way, order in ways_of(kind):
                # The first call of its kind makes what all of them use.
                await end_calls(client, way, order, 1)
                before = await until_still(cluster, channel)
                await end_calls(client, way, order, CALLS)
                assert (way.__name__, order, await what_is_left(before, cluster, channel)) == (way.__name__, order, {})


@pytest.mark.parametrize("route", ["home", "away"])
@pytest.mark.parametrize("kind", ["Upload", "Chat"])
async def test_a_call_that_a_timer_of_its_handler_keeps_has_none_of_its_messages_any_more(
    kind: str, route: str
) -> None:
    async with Cluster(Ending, shards=2) as cluster:
        key = next(key for key in map(str, range(99)) if cluster.owner_of(key) == 0)
        channel: Any = cluster.stub(lambda channel: channel, shard=("home", "away").index(route))
        client = Client(channel, kind, key)
        with collector_off():
            await end_calls(client, Client.ends, "", 1)
            await end_calls(client, Client.expires, "hold in time", 1)
            before = await until_still(cluster, channel)
            await end_calls(client, Client.expires, "hold in time", CALLS)
            until = monotonic() + 3
            while (left := inventory(cluster, channel).beyond(before)).get("bytes") and monotonic() < until:  # noqa: ASYNC110 - as above
                await asyncio.sleep(POLL_S)
            assert "bytes" not in left


def ways_of(kind: str) -> list[tuple[Any, str]]:
    return [(way, order) for way, order in WAYS if order != "flood" or kind in RESPONSE_STREAMS]


async def end_calls(client: Client, way: Any, order: str, times: int) -> None:
    for _ in range(times):
        with suppress(grpc.RpcError, asyncio.CancelledError):
            await way(client, order)


async def until_still(cluster: Cluster, channel: Any) -> Inventory:
    """The inventory once it is the same twice, and no call is under way."""
    last = inventory(cluster, channel)
    async with asyncio.timeout(BOUND_S):
        while True:
            await asyncio.sleep(POLL_S)  # both ends are of this loop, and what ends there nobody tells
            now = inventory(cluster, channel)
            if now.counts == last.counts and not any(c.wire.streams for c in channel.subchannel._connections):
                return now
            last = now


async def what_is_left(before: Inventory, cluster: Cluster, channel: Any) -> dict[str, int]:
    """What there is more than before, once that is nothing, or after 3 s."""
    until = monotonic() + 3
    while (left := inventory(cluster, channel).beyond(before)) and monotonic() < until:  # noqa: ASYNC110 - as above
        await asyncio.sleep(POLL_S)
    return left


def inventory(cluster: Cluster, channel: Any) -> Inventory:
    return Inventory(counted(cluster, channel), tracemalloc.get_traced_memory()[0])


def counted(cluster: Cluster, channel: Any) -> Counter[str]:
    count = Counter[str]()
    for kind, things in Counter(map(type, gc.get_objects())).items():
        if is_counted(kind):
            count[kind.__name__] += things
    count["files"] = len(os.listdir("/proc/self/fd"))
    count["tasks"] = sum(SPARE not in repr(task.get_coro()) for task in asyncio.all_tasks())
    for shard in cluster._all():
        parts: Any = shard.lifecycle.parts
        connections = parts.listener._connections
        count["tasks of connections"] += sum(len(connection.tasks) for connection in connections)
        count["streams"] += sum(len(connection.wire.streams) for connection in connections)
        count["deadlines"] += due(parts.listener)
        count["calls in flight"] += parts.lane.in_flight
        count["turns"] += len(parts.lane.queue.turns.held)
        count["waiting for a turn"] += parts.lane.queue.turns.waiting
        for sibling in parts.forwarder._siblings.values():
            add_subchannel(count, sibling)
    add_subchannel(count, channel.subchannel)
    return count


def add_subchannel(count: Counter[str], subchannel: Any) -> None:
    count["deadlines"] += due(subchannel)
    count["streams"] += sum(len(connection.wire.streams) for connection in subchannel._connections)


def due(owner: Any) -> int:
    return sum(map(len, owner.deadlines._due.values()))


def is_counted(kind: type) -> bool:
    return issubclass(kind, TYPES) or (
        str(kind.__module__).startswith("onelane.") and kind.__name__ not in NOT_OF_CALLS
    )


@contextmanager
def collector_off() -> Iterator[None]:
    # pytest keeps log records, and with them the tracebacks of errors.
    logging.disable()
    # asyncio tells of the errors of request iterators.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    gc.collect()
    # `gc.get_objects` then returns only what is made from here on. It stays so: in a whole run thousands of tests and
    # what they have imported were frozen before, and each full collection would look at all of it again.
    gc.freeze()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()
        logging.disable(logging.NOTSET)
