"""A stream's generator that is left before its end is closed at once, in its own task and context; what it holds, such
as the turn of a key, is free again. The garbage collector is off: nothing here may wait for it."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import greenlet
import grpc
import grpc.aio
import onelane
import pytest
from onelane.core import context
from onelane.server.handler import MAX_CLOSE_ATTEMPTS
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.faulty.v1 import faulty_pb2_grpc
from tests.faulty.v1.faulty_pb2 import Order, Reply
from tests.running_app import eventually

mark: ContextVar[str] = ContextVar("mark", default="")


class Streams(faulty_pb2_grpc.FaultyServicer):
    """Its streams note where they begin and where they are closed."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.begun: list[Any] = []
        self.closed: list[Any] = []
        self.has_closed = asyncio.Event()

    async def AsyncStream(self, request: Order, context: Any) -> AsyncIterator[Any]:
        refusals = MAX_CLOSE_ATTEMPTS if request.misdeed == "yields while it is closed" else 0
        while refusals:
            try:
                yield Reply()
            except GeneratorExit:
                refusals -= 1
        mark.set(request.key)
        self.begun.append((asyncio.current_task(), mark.get()))
        try:
            async with self.shard.turn(request.key):
                try:
                    async for reply in self.replies(request):
                        yield reply
                finally:
                    if request.waits:
                        yield Reply(text="and one more")
        finally:
            # Cleanup may wait: its task has been cancelled once, and not again.
            await asyncio.sleep(0)
            self.closed.append((asyncio.current_task(), mark.get()))
            self.has_closed.set()

    async def replies(self, request: Order) -> AsyncIterator[Any]:
        """An inner generator, which also holds a turn, and which nobody closes."""
        async with self.shard.turn(f"{request.key} inner"):
            while True:
                yield None if request.misdeed == "answers_none" else Reply(text="x" * 1000)

    async def Writer(self, request: Order, context: Any) -> None:  # type: ignore[override]
        """Holds the turn in a generator whose steps run in a task each, as with `asyncio.wait_for` on 3.11."""
        replies = self.replies(request)
        async for reply in stepwise(replies):
            await context.write(reply)

    def PlainStream(self, request_iterator: Iterator[Order], context: Any) -> Iterator[Reply]:
        self.begun.append(greenlet.getcurrent())
        try:
            for _ in request_iterator:
                while True:
                    yield Reply(text="x" * 1000)
        finally:
            self.closed.append(greenlet.getcurrent())
            self.has_closed.set()

    async def Async(self, request: Order, context: Any) -> Reply:
        return Reply(text="had its turn")


async def stepwise(replies: AsyncIterator[Any]) -> AsyncIterator[Any]:
    while True:
        yield await asyncio.create_task(anext(replies))  # type: ignore[arg-type]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(Streams, shards=1) as cluster:
        gc.disable()
        yield cluster
        gc.enable()


def streams(cluster: Cluster) -> Any:
    return cluster.service(Streams, shard=0)  # type: ignore[type-abstract]


def stub(cluster: Cluster) -> Any:
    return cluster.stub(faulty_pb2_grpc.FaultyStub, shard=0)


async def has_turns(cluster: Cluster, key: str) -> None:
    """Wait until calls of this key, and of its inner one, get their turn."""
    for name in (key, f"{key} inner"):
        reply = await stub(cluster).Async(Order(key=name), timeout=BOUND_S)
        assert reply.text == "had its turn"


async def leave_by_cancel(call: Any) -> None:
    call.cancel()


async def leave_by_deadline(call: Any) -> None:
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("leave", [leave_by_cancel, leave_by_deadline])
@pytest.mark.parametrize("method", ["AsyncStream", "Writer"])
async def test_a_stream_that_its_client_leaves_frees_the_turns_that_it_holds(
    cluster: Cluster, method: str, leave: Any
) -> None:
    # On a starved machine a deadline may pass before the first answer: then it is one of the next, which are longer.
    for timeout in (0.3, 3.0, 30.0) if leave is leave_by_deadline else (None,):
        call = getattr(stub(cluster), method)(Order(key="k"), timeout=timeout)
        with suppress(grpc.aio.AioRpcError):
            assert await call.read() is not grpc.aio.EOF
            break
    else:
        pytest.fail(f"no first answer: {await call.code()}")
    await leave(call)
    await has_turns(cluster, "k")


async def test_its_generator_is_closed_in_its_own_task_and_context(cluster: Cluster) -> None:
    service = streams(cluster)
    call = stub(cluster).AsyncStream(Order(key="k"))
    await call.read()
    call.cancel()
    await service.has_closed.wait()
    assert service.closed == service.begun


async def test_a_generator_is_closed_when_its_answer_cannot_be_sent(cluster: Cluster) -> None:
    service = streams(cluster)
    call = stub(cluster).AsyncStream(Order(key="k", misdeed="answers_none"))
    assert await call.code() is grpc.StatusCode.INTERNAL
    # Before the status was sent, and so before the call has ended.
    assert service.closed == service.begun
    await has_turns(cluster, "k")


async def test_a_generator_that_yields_while_it_is_closed_frees_its_turns_all_the_same(cluster: Cluster) -> None:
    service = streams(cluster)
    call = stub(cluster).AsyncStream(Order(key="k", waits=True))
    await call.read()
    call.cancel()
    await has_turns(cluster, "k")
    assert service.closed == service.begun


async def test_a_generator_that_cannot_be_closed_is_an_error_in_the_log(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    call = stub(cluster).AsyncStream(Order(key="k", misdeed="yields while it is closed"))
    await call.read()
    call.cancel()
    await eventually(lambda: "call.failed" in caplog.text)
    assert "Streams.AsyncStream yields whenever it is closed" in caplog.text
    assert f"at={__file__}:" in caplog.text


async def test_a_plain_generator_is_closed_at_once_in_its_own_greenlet(cluster: Cluster) -> None:
    service = streams(cluster)
    call = stub(cluster).PlainStream()
    await call.write(Order(key="k"))
    await call.read()
    call.cancel()
    await service.has_closed.wait()
    assert service.closed == service.begun


async def test_a_drain_ends_what_streams_hold(cluster: Cluster) -> None:
    service = streams(cluster)
    call = stub(cluster).AsyncStream(Order(key="k"))
    await call.read()
    await cluster.kill(0)
    assert service.closed == service.begun
    assert await call.code() is not grpc.StatusCode.OK


async def test_no_turn_is_held_when_all_is_over(cluster: Cluster) -> None:
    shard = streams(cluster).shard
    for _ in range(20):
        call = stub(cluster).AsyncStream(Order(key="k"))
        await call.read()
        call.cancel()
        await has_turns(cluster, "k")
    assert shard._lane.queue.turns.held == {}
    assert context.current_call() is None
