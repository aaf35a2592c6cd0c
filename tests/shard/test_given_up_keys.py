"""A handler that catches its cancellation, and so holds the turn of a key that leaves, costs its own call alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.errors import NotKept
from onelane.shard import handoff
from onelane.supervisor import placing
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoServicer, EchoStub
from tests.running_app import eventually
from tests.state.held_store import StoreControl

KEYS = [f"k{number}" for number in range(40)]
LATE = 100
"""What a handler that does not end writes in the end."""


class Stubborn(EchoServicer):
    """Counts the calls of a key, in memory and on disk; its other method does not end before it may."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.counts = shard.keyed("counts", int)
        self.kept = shard.keyed("kept", int, durable=True)
        self.may_end = asyncio.Event()
        self.began = asyncio.Event()
        self.has_ended = asyncio.Event()
        self.heard: list[tuple[str, object, int | None]] = []
        self.published: list[str] = []
        self.refused: list[str] = []
        """What the turn that does not end could not send in the end."""
        self.sends = False
        self.others = shard.stub(EchoStub, to=shard.app)
        shard.on_arrive(lambda key: self.heard.append(("arrives", key, self.counts.get(str(key)))))
        shard.on_leave(lambda key: self.heard.append(("leaves", key, self.counts.get(str(key)))))
        shard.subscribe("topic", EchoReply, lambda message: self.published.append(getattr(message, "text", "lost")))

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        """Adds one; answers both counts."""
        for counts in (self.counts, self.kept):
            counts[request.key] = counts.get(request.key, 0) + 1
        return EchoReply(seen=self.counts[request.key], text=str(self.kept[request.key]), shard=self.shard.name)

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        """Adds ten, stays, whatever comes, and writes and sends once more."""
        self.counts[request.key] += 10
        self.kept[request.key] += 10
        self.began.set()
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                continue
        self.counts[request.key] = self.kept[request.key] = LATE
        if self.sends:
            await self.send(request.key)
        self.has_ended.set()
        return EchoReply()

    async def send(self, key: str) -> None:
        self.shard.publish("topic", EchoReply(text="late"), at_once=True)
        method, other = "echo.v1.Echo/Plain", f"{key}-other"
        sent: dict[str, Awaitable[object]] = {
            "call": self.others.Plain(EchoRequest(key=other)),
            "reminder": self.shard.remind(key, method, EchoRequest(key=key), after_s=3600),
            "reminder of another key": self.shard.remind(other, method, EchoRequest(key=other), after_s=3600),
        }
        for name, sending in sent.items():
            try:
                await sending
            except (NotKept, grpc.aio.AioRpcError) as error:
                self.refused.append(f"{name}: {error}")

    async def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        """Answers."""
        return EchoReply()


async def _code(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = await call.code()
    return code


class Bench:
    """Two shards, and a key that goes to a third one and back."""

    def __init__(self, cluster: Cluster, store: StoreControl) -> None:
        self.cluster = cluster
        self.store = store
        self.key = self.unused = self.staying = ""

    def service(self, shard: int) -> Stubborn:
        kind: Any = Stubborn
        service: Stubborn = self.cluster.service(kind, shard=shard)
        return service

    async def choose(self) -> None:
        before = {key: self.cluster.owner_of(key) for key in KEYS}
        await self.cluster.scale(3)
        self.key, self.unused, *_ = (key for key in KEYS if before[key] == 0 and self.cluster.owner_of(key) == 2)
        self.staying = next(key for key in KEYS if self.cluster.owner_of(key) == 0)
        await self.scale(2)

    async def scale(self, shards: int) -> None:
        await asyncio.wait_for(self.cluster.scale(shards), BOUND_S)

    async def count(self, key: str = "") -> tuple[int, int]:
        """Adds one: in memory, on disk."""
        reply = await self.cluster.stub(EchoStub).Unary(EchoRequest(key=key or self.key), timeout=BOUND_S)
        return reply.seen, int(reply.text)

    @asynccontextmanager
    async def stuck(self) -> AsyncIterator[Awaitable[EchoReply]]:
        """A call which does not end before the block does."""
        service = self.service(0)
        # Of a plain channel, which repeats no call.
        stub = self.cluster.stub(EchoStub, shard=0)
        staying = asyncio.ensure_future(stub.Misbehave(EchoRequest(key=self.key), timeout=BOUND_S))
        try:
            await asyncio.wait_for(service.began.wait(), BOUND_S)
            yield staying
        finally:
            service.may_end.set()
            await asyncio.gather(staying, return_exceptions=True)
        await asyncio.wait_for(service.has_ended.wait(), BOUND_S)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(handoff, "GIVE_UP_S", 0.05)
    store = StoreControl()
    async with Cluster(Stubborn, shards=2, settings={"drain_s": 0.05}, store=store) as cluster:
        bench = Bench(cluster, store)
        await bench.choose()
        assert (await bench.count(), await bench.count(bench.staying)) == ((1, 1), (1, 1))
        yield bench


def test_a_turn_is_given_up_before_the_supervisor_kills_its_process() -> None:
    assert handoff.GIVE_UP_S < placing.CHANGE_MARGIN_S / 2


async def test_the_key_leaves_its_call_is_unavailable_and_the_other_keys_stay(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    service = bench.service(0)
    async with bench.stuck() as staying:
        await bench.scale(3)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await staying
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await bench.count(bench.staying) == (2, 2)
        assert bench.service(0) is service
        # What was in memory goes on from the middle of the turn; on disk is what was before it.
        assert await bench.count() == (12, 2)
    await eventually(lambda: bench.key not in service.counts and bench.key not in service.kept)
    assert await bench.count() == (13, 3)
    [line] = [record.getMessage() for record in caplog.records if "turn_given_up" in record.getMessage()]
    assert f"key={bench.key!r}" in line
    assert "held_by=echo.v1.Echo/Misbehave" in line


async def test_the_service_is_told_before_the_entries_are_gone(bench: Bench) -> None:
    async with bench.stuck():
        await bench.scale(3)
    assert [event for event in bench.service(0).heard if event[1] == bench.key][-1] == ("leaves", bench.key, 11)
    await eventually(lambda: bench.service(2).heard and bench.service(2).heard[-1][:2] == ("arrives", bench.key))


async def test_where_the_key_is_back_before_its_turn_has_ended_it_has_the_state_that_came(bench: Bench) -> None:
    async with bench.stuck():
        await bench.scale(3)
        assert await bench.count() == (12, 2)
        await bench.scale(2)
        counting = asyncio.ensure_future(bench.count())
        await asyncio.sleep(0)
        assert not counting.done()
    assert await asyncio.wait_for(counting, BOUND_S) == (13, 3)
    assert bench.service(0).heard[-1] == ("arrives", bench.key, 12)


async def test_a_key_that_leaves_once_more_with_its_turn_held_takes_along_the_state_that_came(bench: Bench) -> None:
    async with bench.stuck():
        await bench.scale(3)
        await bench.scale(2)
        await bench.scale(3)
        assert await bench.count() == (12, 2)
    assert await bench.count() == (13, 3)


async def test_what_the_turn_has_changed_when_it_ends_is_not_written_while_the_key_waits_for_an_earlier_commit(
    bench: Bench,
) -> None:
    service, begun = bench.service(0), len(bench.store.commits)
    with bench.store.held():
        counting = asyncio.ensure_future(bench.count())
        await bench.store.committing(begun + 1)
        async with bench.stuck():
            scaling = asyncio.ensure_future(bench.scale(3))
            await eventually(lambda: bench.key not in service.counts)
    assert await counting == (2, 2)
    await scaling
    assert await bench.count() == (13, 3)


async def test_what_the_turn_sends_after_it_was_given_up_does_not_leave(bench: Bench) -> None:
    """It would tell of changes that are not kept, and a reminder of it would be kept at the new owner."""
    service = bench.service(0)
    service.sends = True
    async with bench.stuck():
        await bench.scale(3)
    assert [text.partition(":")[0] for text in service.refused] == ["call", "reminder", "reminder of another key"]
    assert all("its key has moved to another shard" in text for text in service.refused)
    assert await bench.service(2).shard.reminders(bench.key) == ()
    for index in range(3):
        assert bench.service(index).published == []


async def test_a_call_that_waits_for_the_state_of_a_key_that_leaves_without_it_does_not_run(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answer would tell of a change that nobody has."""
    stub: Any = bench.cluster.stub(EchoStub, shard=0)
    bench.store.may_load.clear()
    before = bench.store.loads
    counting = asyncio.ensure_future(_code(stub.Unary(EchoRequest(key=bench.unused), timeout=BOUND_S)))
    # The call is there before its key leaves: else it would wait for the key at its new owner.
    await eventually(lambda: bench.store.loads > before)
    scaling = asyncio.ensure_future(bench.scale(3))
    await eventually(lambda: "turn_given_up" in caplog.text)
    bench.store.may_load.set()
    await scaling
    code = await counting
    assert (code, await bench.count(bench.unused)) == (grpc.StatusCode.UNAVAILABLE, (1, 1))


async def test_what_the_turn_writes_after_it_was_given_up_is_lost_by_that_name(bench: Bench) -> None:
    """It is found as the key comes back, and as the turn ends."""
    async with bench.stuck():
        await bench.scale(3)
        bench.service(0).counts[bench.key] = LATE
        await bench.scale(2)
    # The turn that waits for it begins after its end.
    await bench.count()
    lost = [await bench.cluster.stats("onelane.state.lost", which) for which in ({}, {"onelane.reason": "given_up"})]
    assert lost == [3, 3]
