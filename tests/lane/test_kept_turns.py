"""The output gate: what leaves when. Each row of decision 0024 is one test; the store is in the test's hands."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.testing import Cluster

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.state.held_store import StoreControl

READ, WRITE = "Misbehave", "Unary"
"""A method without and one with side effects; see `Counting`."""


class Counting(echo_pb2_grpc.EchoServicer):
    """Counts in a durable dict, and does as `order` says."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
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

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        """Changes nothing, but for what an order does."""
        self.began.append(request.text)
        return await self.carry_out(request, context)

    async def carry_out(self, request: EchoRequest, context: Any) -> EchoReply:
        kind, _, rest = request.order.partition(" ")
        if kind == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "as ordered", (("x-kept", "no"),))
        elif kind == "wait":
            await self.may_go.setdefault(request.key, asyncio.Event()).wait()
        elif kind == "publish":
            self.shard.publish("topic", EchoReply(text=rest), at_once=True)
        elif kind == "call":
            key, _, inner = rest.partition(" ")
            request = EchoRequest(key=key, text="inner", order=inner)
            inner_reply: Any = await self.shard.call(key, f"echo.v1.Echo/{READ}", request)
            return EchoReply(text=inner_reply.text, seen=inner_reply.seen)
        elif kind == "bad":
            self.counts[request.key] = object()  # type: ignore[assignment]
        return EchoReply(text=request.text, seen=self.counts.get(request.key, 0))

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
        self.stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        kind: Any = Counting
        self.service: Counting = cluster.service(kind, shard=0)

    def call(self, method: str, key: str, order: str = "", text: str = "") -> "asyncio.Task[EchoReply]":
        """A call that has begun to run once `began` says so."""

        async def send() -> EchoReply:
            reply: EchoReply = await getattr(self.stub, method)(
                EchoRequest(key=key, order=order, text=text), timeout=20
            )
            return reply

        return asyncio.ensure_future(send())

    async def write(self, key: str, order: str = "", text: str = "") -> int:
        return (await self.call(WRITE, key, order, text)).seen

    async def began(self, *texts: str) -> None:
        """Wait until these calls, and no others since, have begun."""
        async with asyncio.timeout(20):
            while self.service.began != [*texts]:  # noqa: ASYNC110 - the handlers are the test's
                await asyncio.sleep(0)
        self.service.began.clear()

    async def committing(self, count: int = 1) -> None:
        """Wait until so many commits have begun."""
        async with asyncio.timeout(20):
            while len(self.store.commits) < count:  # noqa: ASYNC110 - they begin on a thread
                await asyncio.sleep(0.001)

    async def fresh(self, *keys: str) -> None:
        """Count each key once, and begin to watch."""
        for key in keys:
            await self.write(key)
        self.store.commits.clear()
        self.service.began.clear()


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    store = StoreControl()
    settings = {"turns": {"echo.v1.Echo/*": "KEYED"}}
    async with Cluster(Counting, shards=1, store=store, settings=settings) as cluster:
        yield Counted(cluster, store)


@pytest.fixture(autouse=True)
def reads_are_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the proto said of `Misbehave` that it has no side effects."""
    from onelane.lane import method_entry

    monkeypatch.setattr(method_entry, "_has_no_side_effects", lambda path: path.endswith(READ))


async def status_of(call: "asyncio.Task[EchoReply]") -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_an_answer_leaves_when_its_change_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k")
        await counted.committing()
        assert not call.done()
    assert (await call).seen == 2


async def test_an_error_status_leaves_when_the_change_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k", "abort")
        await counted.committing()
        assert not call.done()
    assert await status_of(call) == "NOT_FOUND"
    assert await counted.write("k") == 3


async def test_the_answer_of_a_read_waits_for_the_change_that_it_has_seen(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        write = counted.call(WRITE, "k")
        await counted.committing()
        read = counted.call(READ, "k", text="read")
        # A read of another key rests on nothing, and overtakes it.
        await counted.call(READ, "other")
        assert [read.done(), write.done()] == [False, False]
    assert (await read).seen == 2


async def test_the_lane_runs_the_next_turn_of_the_key_while_the_commit_runs(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        calls = [counted.call(WRITE, "k", text=str(number)) for number in range(5)]
        await counted.began("0", "1", "2", "3", "4")
        await counted.committing()
        assert not any(call.done() for call in calls)
    assert [(await call).seen for call in calls] == [2, 3, 4, 5, 6]
    assert len(counted.store.commits) <= 2


async def test_a_turn_that_changes_nothing_is_answered_at_once(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        assert (await counted.call(READ, "k")).seen == 1
    assert counted.store.commits == []


async def test_what_a_turn_publishes_leaves_when_the_turn_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k", "publish news")
        await counted.committing()
        assert counted.service.heard == []
    await call
    assert counted.service.heard == ["news"]


async def test_what_a_failed_turn_publishes_never_leaves(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.fails("commit"):
        assert await status_of(counted.call(WRITE, "k", "publish news")) == "UNAVAILABLE"
    await counted.write("k", "publish later news")
    assert counted.service.heard == ["later news"]


async def test_a_call_made_inside_a_turn_leaves_at_once(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        call = counted.call(WRITE, "k", "call other", text="outer")
        await counted.began("outer", "inner")
        await counted.committing()
        assert not call.done()
    await call


async def test_a_call_made_inside_a_later_turn_waits_for_the_earlier_one(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        first = counted.call(WRITE, "k", text="first")
        await counted.committing()
        later = counted.call(READ, "k", "call other", text="later")
        await counted.began("first", "later")
        await counted.call(READ, "other", text="beside")
        await counted.began("beside")
    await asyncio.gather(first, later)
    assert counted.service.began == ["inner"]


async def test_a_call_inside_a_later_turn_is_not_sent_where_the_earlier_one_fails(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.fails("commit"):
        with counted.store.held():
            first = counted.call(WRITE, "k", text="first")
            await counted.committing()
            later = counted.call(READ, "k", "call other", text="later")
            await counted.began("first", "later")
        assert [await status_of(call) for call in (first, later)] == ["UNAVAILABLE"] * 2
    assert counted.service.began == []


async def test_a_call_in_a_circle_to_its_own_key_is_answered_inside_the_turn(counted: Counted) -> None:
    await counted.fresh("k")
    assert await counted.write("k", "call k") == 2


async def test_a_turn_by_hand_ends_when_it_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        answers = counted.stub.Download(EchoRequest(key="k"), timeout=20)
        assert (await answers.read()).seen == 2
        after = asyncio.ensure_future(answers.read())
        await counted.committing()
        assert not after.done()
    assert (await after).text == "after"


async def test_a_turn_by_hand_begins_when_those_before_it_are_on_disk(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        write = counted.call(WRITE, "k", text="write")
        await counted.committing()
        answers = counted.stub.Download(EchoRequest(key="k", text="by hand"), timeout=20)
        inside = asyncio.ensure_future(answers.read())
        await counted.call(READ, "other", text="beside")
        await counted.began("write", "beside")
        assert not inside.done()
    assert ((await inside).seen, (await write).seen) == (3, 2)


async def test_a_turn_by_hand_that_is_not_kept_raises(counted: Counted) -> None:
    await counted.fresh("k")
    answers = counted.stub.Download(EchoRequest(key="k"), timeout=20)
    with counted.store.fails("commit"):
        await answers.read()
        with pytest.raises(grpc.aio.AioRpcError, match="not kept"):
            await answers.read()
    assert await counted.write("k") == 2


async def test_what_rests_on_a_failed_commit_is_unavailable_and_never_seen(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.fails("commit"):
        with counted.store.held():
            calls = [counted.call(WRITE, "k", "abort")]
            await counted.committing()
            calls += [counted.call(WRITE, "k"), counted.call(READ, "k", text="last")]
            await counted.call(READ, "other")
        assert [await status_of(call) for call in calls] == ["UNAVAILABLE"] * 3
    # The trailers that the first one's handler chose are not sent either.
    assert calls[0].exception().trailing_metadata() == ()  # type: ignore[union-attr]
    assert await counted.write("k") == 2


async def test_a_turn_that_runs_while_the_earlier_one_fails_fails_with_it(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.fails("commit"):
        with counted.store.held():
            first = counted.call(WRITE, "k", text="first")
            await counted.committing()
            running = counted.call(READ, "k", "wait", text="running")
            waiting = counted.call(WRITE, "k", text="waiting")
            await counted.began("first", "running")
        assert await status_of(first) == "UNAVAILABLE"
    counted.service.may_go["k"].set()
    assert await status_of(running) == "UNAVAILABLE"
    # It had the turn after them, and began with what is on disk.
    assert (await waiting).seen == 2


async def test_a_key_is_loaded_before_its_first_turn(counted: Counted) -> None:
    await counted.fresh("k")
    await counted.cluster.restart(0)
    assert await counted.write("k") == 2


async def test_a_store_that_fails_refuses_the_first_turn_and_the_next_one_tries_again(counted: Counted) -> None:
    await counted.fresh("k")
    await counted.cluster.restart(0)
    with counted.store.fails("load"):
        assert await status_of(counted.call(WRITE, "k")) == "UNAVAILABLE"
    assert await counted.write("k") == 2


async def test_a_value_that_cannot_be_encoded_fails_its_turn_and_names_it(counted: Counted) -> None:
    await counted.fresh("k")
    with pytest.raises(grpc.aio.AioRpcError, match="keyed 'counts', key 'k'"):
        await counted.write("k", "bad")
    assert await counted.write("k") == 2


async def test_a_client_that_goes_away_undoes_nothing(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k")
        await counted.committing()
        call.cancel()
    assert await counted.write("k") == 3


async def test_a_call_that_is_cancelled_while_its_key_is_loaded_leaves_the_turn(counted: Counted) -> None:
    calls = [counted.call(WRITE, "new") for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()
    assert await counted.write("new") >= 3
