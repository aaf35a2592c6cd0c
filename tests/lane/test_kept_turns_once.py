"""Exactly once by stubs: what is cut off, crashes or moves is repeated, and counted once, over several services too."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane import config
from onelane.server.native_listener import NativeListener
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.lane.counting import WRITE, Counted, counted_cluster, status_of
from tests.state.held_store import StoreControl

ID = "idempotency-key"


class Account(echo_pb2_grpc.EchoServicer):
    """Keeps totals, and calls other accounts. An order is a list of calls, "app Method key", of which each one is the
    order of the one before; the app "." is this one, by `shard.call`."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.stubs = {app: shard.stub(echo_pb2_grpc.EchoStub, to=app) for app in ("outer", "inner", "plain")}
        self.totals = shard.keyed("totals", int, durable=shard.app != "plain")
        self.ids: list[Any] = []
        """Of the calls that have run."""
        self.may_end = asyncio.Event()
        """Of `Misbehave`."""
        self.codes: list[grpc.StatusCode] = []
        """Of the last two calls with one id."""

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        """Takes one, and carries out the order."""
        self.change(request, context, -1)
        if request.order:
            await self.carry_out(*request.order.split(" > "))
        return EchoReply(seen=abs(self.totals[request.key]))

    async def carry_out(self, order: str, *orders: str) -> None:
        app, method, key = order.split()
        request = EchoRequest(key=key, order=" > ".join(orders))
        if app == ".":
            timeout = 0.05 if method == "Misbehave" else None
            await self.shard.call(key, f"echo.v1.Echo/{method}", request, timeout=timeout)
        elif method in ("Twice", "Clash"):
            second = EchoRequest(key=key, text="another" if method == "Clash" else "")
            calls = [self.stubs[app].Plain(message, metadata=((ID, "mine"),)) for message in (request, second)]
            self.codes = [await call.code() for call in calls]
        elif method == "Refused":
            call = self.stubs[app].Plain(EchoRequest(key=key, text="refuse"), metadata=((ID, "mine"),))
            self.codes = [await call.code()]
        else:
            await getattr(self.stubs[app], method)(request)

    async def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        """Gives one, and may refuse it all the same."""
        self.change(request, context, 1)
        await asyncio.sleep(0)
        if request.text == "refuse":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return EchoReply(seen=self.totals[request.key])

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        """Gives one, and waits."""
        self.change(request, context, 1)
        await self.may_end.wait()
        return EchoReply()

    def change(self, request: EchoRequest, context: Any, amount: int) -> None:
        self.ids.append(dict(context.invocation_metadata()).get(ID))
        self.totals[request.key] = self.totals.get(request.key, 0) + amount


class Bank:
    """The apps `outer`, `inner` and `plain` of `Account`, with two shards each; the last one keeps nothing."""

    def __init__(self, cluster: Cluster, stores: dict[str, StoreControl]) -> None:
        self.cluster, self.stores = cluster, stores
        self.outer: Any = cluster.stub(echo_pb2_grpc.EchoStub, app="outer")

    def account(self, app: str, key: str) -> Account:
        """At the shard that owns the key."""
        kind: Any = Account
        account: Account = self.cluster.service(kind, shard=self.cluster.owner_of(key, app=app), app=app)
        return account

    async def crash_before_commit(self, order: str) -> EchoReply:
        """Make a call of `a`, and let the process that serves it end when all of its turn is done but the commit."""
        owner = self.cluster.owner_of("a", app="outer")
        store = self.stores[f"outer-{owner}"]
        request = EchoRequest(key="a", order=order)
        call = asyncio.ensure_future(_reply(self.outer.Unary(request, timeout=BOUND_S, wait_for_ready=True)))
        with store.held():
            await store.committing()
            with store.fails("commit"):
                crash = asyncio.ensure_future(self.cluster.crash(owner, app="outer"))
                await asyncio.sleep(0)
                store.may_go.set()
                await crash
        return await asyncio.wait_for(call, BOUND_S)


@pytest.fixture
async def bank() -> AsyncIterator[Bank]:
    names = ("outer", "inner", "plain")
    app = {
        "services": ["tests.lane.test_kept_turns_once:Account"],
        "turns": {"echo.v1.Echo/*": "KEYED"},
        "pins": {"a": 0, "b": 1, "c": 0},
    }
    apps = {name: app | {"listen": f"127.0.0.1:{50051 + number}"} for number, name in enumerate(names)}
    stores = {f"{name}-{index}": StoreControl() for name in names for index in range(2)}
    async with Cluster(
        config.parse({"apps": apps}), shards=2, store=lambda options: stores[options.shard](options)
    ) as cluster:
        yield Bank(cluster, stores)


@asynccontextmanager
async def once_cluster() -> AsyncIterator[tuple[Counted, Any]]:
    """With a stub that sends ids by itself."""
    async with counted_cluster() as counted:
        yield counted, counted.cluster.stub(echo_pb2_grpc.EchoStub)


def cut_connections(counted: Counted) -> None:
    listener = counted.cluster._shards(None)[0].lifecycle.parts.listener
    assert isinstance(listener, NativeListener)
    for connection in list(listener._connections):
        connection.transport.abort()


async def test_a_call_whose_connection_is_cut_before_its_answer_counts_once_and_succeeds() -> None:
    async with once_cluster() as (counted, stub):
        await counted.fresh("k")
        with counted.store.held():
            call = stub.Unary(EchoRequest(key="k", text="held"), timeout=BOUND_S, wait_for_ready=True)
            await counted.committing()
            cut_connections(counted)
        assert (await call).seen == 2
        assert counted.service.began == ["held"]


async def test_a_call_whose_connection_is_cut_while_it_runs_is_undone_and_counts_once() -> None:
    async with once_cluster() as (counted, stub):
        await counted.fresh("k")
        call = stub.Unary(EchoRequest(key="k", order="wait", text="first"), timeout=BOUND_S, wait_for_ready=True)
        await counted.began("first")
        cut_connections(counted)
        await counted.began("first")
        counted.service.may_go["k"].set()
        assert (await call).seen == 2


async def test_a_call_that_is_undone_after_an_earlier_turn_has_failed_leaves_its_key_to_be_loaded() -> None:
    """What it rests on has failed, so its own end fails as well; the next call is not to begin with its memory."""
    async with counted_cluster() as counted:
        await counted.fresh("k")
        with counted.store.fails("commit"):
            with counted.store.held():
                first = counted.call(WRITE, "k", text="first")
                await counted.committing()
                request = EchoRequest(key="k", order="wait", text="undone")
                undone = counted.stub.Unary(request, metadata=((ID, "mine"),), timeout=BOUND_S)
                await counted.began("first", "undone")
            assert await status_of(first) == "UNAVAILABLE"
        undone.cancel()
        async with asyncio.timeout(BOUND_S):
            while counted.lane.queue.turns.held:  # noqa: ASYNC110 - a turn tells nobody that it ends
                await asyncio.sleep(0)
        assert await counted.write("k") == 2


async def test_a_call_whose_process_ends_between_its_commit_and_its_answer_counts_once_and_succeeds() -> None:
    async with once_cluster() as (counted, stub):
        await counted.fresh("k")
        with counted.store.held():
            call = stub.Unary(EchoRequest(key="k"), timeout=BOUND_S, wait_for_ready=True)
            await counted.committing()
            crash = asyncio.ensure_future(counted.cluster.crash(0))
            await asyncio.sleep(0)
        await crash
        assert (await call).seen == 2
        assert await counted.write("k") == 3


async def test_a_repeat_at_the_next_owner_of_the_key_gets_the_answer_that_moved_there() -> None:
    async with counted_cluster() as counted:
        mine = {"metadata": ((ID, "mine"),), "timeout": 20}
        assert (await counted.stub.Unary(EchoRequest(key="k"), **mine)).seen == 1
        await counted.cluster.scale(3)
        stub: Any = counted.cluster.stub(echo_pb2_grpc.EchoStub)
        await counted.cluster.restart(counted.cluster.owner_of("k"))
        assert (await stub.Unary(EchoRequest(key="k"), **mine)).seen == 1
        # By way of a shard that does not own it, too.
        for shard in range(3):
            by_way: Any = counted.cluster.stub(echo_pb2_grpc.EchoStub, shard=shard)
            assert (await by_way.Unary(EchoRequest(key="k"), **mine)).seen == 1


@pytest.mark.parametrize("order", ["inner Plain b", "inner Unary b > inner Plain c", ". Plain b"])
async def test_a_turn_that_is_repeated_after_a_crash_repeats_its_calls_and_they_count_once(
    bank: Bank, order: str
) -> None:
    assert (await bank.crash_before_commit(order)).seen == 1
    assert bank.account("outer", "a").totals["a"] == -1
    app = "outer" if order.startswith(".") else "inner"
    assert bank.account(app, "b").totals["b"] == (1 if "Plain b" in order else -1)
    if "Plain c" in order:
        assert bank.account(app, "c").totals["c"] == 1


@pytest.mark.parametrize("key", ["b", "c"], ids=["sibling", "self"])
async def test_a_call_inside_that_is_cut_off_is_undone(bank: Bank, key: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await bank.outer.Unary(EchoRequest(key="a", order=f". Misbehave {key}"), timeout=BOUND_S)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await bank.outer.Plain(EchoRequest(key=key), timeout=BOUND_S)).seen == 1


async def test_calls_inside_a_turn_without_an_id_have_random_ones_and_count_each(bank: Bank) -> None:
    dialled: Any = bank.cluster.stub(echo_pb2_grpc.EchoStub, app="outer", shard=0)
    for _ in range(2):
        await dialled.Unary(EchoRequest(key="a", order="inner Plain b"), timeout=BOUND_S)
    ids = bank.account("inner", "b").ids
    assert (len(set(ids)), None in ids) == (2, False)
    assert bank.account("outer", "a").ids == [None, None]


async def test_the_same_id_for_two_keys_becomes_two_inside(bank: Bank) -> None:
    for key in ("a", "b"):
        request = EchoRequest(key=key, order="inner Plain c")
        await bank.outer.Unary(request, metadata=((ID, "order-1"),), timeout=BOUND_S)
    assert bank.account("inner", "c").totals["c"] == 2


async def test_a_service_that_keeps_nothing_gets_no_id(bank: Bank) -> None:
    await bank.outer.Unary(EchoRequest(key="a", order="plain Plain b"), timeout=BOUND_S)
    assert bank.account("plain", "b").ids == [None]
    assert bank.account("outer", "a").ids != [None]


async def test_a_repeat_inside_the_turn_of_its_own_key_runs_once(bank: Bank) -> None:
    """In a circle, where it cannot wait for the turn."""
    await bank.outer.Unary(EchoRequest(key="a", order="inner Unary b > outer Twice a"), timeout=BOUND_S)
    outer = bank.account("outer", "a")
    assert (outer.totals["a"], outer.ids[1:]) == (0, ["mine"])
    assert bank.account("inner", "b").codes == [grpc.StatusCode.OK] * 2


async def test_another_request_with_the_id_of_one_that_runs_in_the_same_turn_is_refused(bank: Bank) -> None:
    await bank.outer.Unary(EchoRequest(key="a", order="inner Unary b > outer Clash a"), timeout=BOUND_S)
    assert bank.account("inner", "b").codes == [grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT]
    assert bank.account("outer", "a").totals["a"] == 0


async def test_a_call_inside_the_turn_of_its_own_key_that_ends_unavailable_leaves_the_turn_to_its_caller(
    bank: Bank,
) -> None:
    await bank.outer.Unary(EchoRequest(key="a", order="inner Unary b > outer Refused a"), timeout=BOUND_S)
    outer = bank.account("outer", "a")
    assert bank.account("inner", "b").codes == [grpc.StatusCode.UNAVAILABLE]
    assert (outer.totals["a"], outer.ids[1:]) == (0, ["mine"])


async def _reply(call: Any) -> EchoReply:
    reply: EchoReply = await call
    return reply
