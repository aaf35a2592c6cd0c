"""A strict cluster finds each touch of a keyed entry outside of the turn of its key, and no other."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.errors import NotItsKey
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoServicer, EchoStub
from tests.testing.test_cluster import KEYS

Job = Callable[["Desk", str], Awaitable[None]]


class Desk(EchoServicer):
    """Counts the calls of each key in a dict that moves and in a durable one, and does what a test gives it to do."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.totals = shard.keyed("totals", int)
        self.kept = shard.keyed("kept", int, durable=True)
        self.links = shard.keyed("links", list, moves=False)
        self.arrived: list[tuple[Any, int]] = []
        self.errors: asyncio.Queue[NotItsKey | None] = asyncio.Queue()
        """Of each touch that was tried: how it has failed."""
        self.after_turn = asyncio.Event()
        self.job: Job | None = None
        shard.on_arrive(lambda key: self.arrived.append((key, self.totals.get(key, 0))))
        shard.every(10, self.tick)
        self.at_ticks: Callable[[], object] = lambda: len(self.totals)

    def tick(self) -> None:
        self.at_ticks()

    def count(self, key: str) -> int:
        self.totals[key] = self.totals.get(key, 0) + 1
        self.kept[key] = self.kept.get(key, 0) + 1
        return self.kept[key]

    def touch(self, key: str) -> None:
        """Change the entry of a key, and say whether that has raised."""
        try:
            self.totals[key] = 99
        except NotItsKey as error:
            self.errors.put_nowait(error)
        else:
            self.errors.put_nowait(None)

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        self.count(request.key)
        if self.job is not None:
            await self.job(self, request.key)
        return EchoReply(seen=self.totals[request.key])


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(Desk, shards=1, settings=KEYS, strict=True) as running:
        yield running


def desk_of(cluster: Cluster, shard: int = 0) -> Desk:
    kind: Any = Desk
    desk: Desk = cluster.service(kind, shard=shard)
    return desk


async def call(cluster: Cluster, key: str = "ada") -> int:
    stub: Any = cluster.stub(EchoStub)
    return int((await stub.Unary(EchoRequest(key=key), timeout=BOUND_S)).seen)


async def touch_at_once(desk: Desk, key: str) -> None:
    desk.touch("bob")


async def touch_from_a_task_that_outlives_the_turn(desk: Desk, key: str) -> None:
    async def touch_later() -> None:
        await desk.after_turn.wait()
        desk.touch(key)

    desk.task = asyncio.create_task(touch_later())  # type: ignore[attr-defined]


async def touch_by_a_timer_of_another_key(desk: Desk, key: str) -> None:
    desk.shard.later("eve", 1, lambda: desk.touch(key))


async def touch_in_the_turn_of_another_key_by_hand(desk: Desk, key: str) -> None:
    async def touch() -> None:
        async with desk.shard.turn("eve"):
            desk.touch("bob")

    desk.task = asyncio.create_task(touch())  # type: ignore[attr-defined]


async def touch_every_so_often(desk: Desk, key: str) -> None:
    desk.at_ticks = lambda: desk.touch(key)


async def touch_after_a_turn_by_hand(desk: Desk, key: str) -> None:
    async def touch() -> None:
        async with desk.shard.turn("eve"):
            pass
        desk.touch("eve")

    desk.task = asyncio.create_task(touch())  # type: ignore[attr-defined]


async def touch_from_a_task_that_outlives_a_turn_by_hand(desk: Desk, key: str) -> None:
    async def touch() -> None:
        async with desk.shard.turn("eve"):
            await touch_from_a_task_that_outlives_the_turn(desk, "eve")

    desk.outer_task = asyncio.create_task(touch())  # type: ignore[attr-defined]


async def touch_on_a_worker_thread(desk: Desk, key: str) -> None:
    await desk.shard.offload(object).run(lambda _: desk.touch(key))


OUTSIDE: dict[Job, str] = {
    touch_at_once: r"'bob' was touched in the turn of 'ada'",
    touch_from_a_task_that_outlives_the_turn: r"'ada' was touched outside of any turn, by /echo.v1.Echo/Unary",
    touch_by_a_timer_of_another_key: r"'ada' was touched in the turn of 'eve'",
    touch_in_the_turn_of_another_key_by_hand: r"'bob' was touched in the turn of 'eve'",
    touch_from_a_task_that_outlives_a_turn_by_hand: r"'eve' was touched outside of any turn, by /echo.v1.Echo/Unary",
    touch_after_a_turn_by_hand: r"'eve' was touched outside of any turn, by /echo.v1.Echo/Unary",
    touch_every_so_often: r"'ada' was touched outside of any turn, by /timer Desk.tick",
    touch_on_a_worker_thread: r"'ada' was touched outside of any turn, by the thread offload-0",
}


@pytest.mark.parametrize(("job", "error"), OUTSIDE.items(), ids=[job.__name__ for job in OUTSIDE])
async def test_a_touch_outside_of_the_keys_turn_is_an_error_and_changes_nothing(
    cluster: Cluster, job: Job, error: str
) -> None:
    desk = desk_of(cluster)
    desk.job = job
    assert await call(cluster) == 1
    # Its timers, and code in turns by hand.
    await cluster.advance(11)
    desk.after_turn.set()
    async with asyncio.timeout(BOUND_S):
        raised = await desk.errors.get()
    assert raised is not None
    key = raised.key
    assert str(raised).startswith(f"app 'app', keyed 'totals': the entry of {key!r} was touched ")
    assert str(raised).endswith(f"take its turn (`async with shard.turn({key!r})`), or have its owner do it "
                                f"(`shard.call({key!r}, …)`)")  # fmt: skip
    with pytest.raises(NotItsKey, match=error):
        raise raised
    assert desk.totals == {"ada": 1}


async def test_the_call_whose_handler_touches_another_key_fails_and_the_log_says_why(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async def touch(desk: Desk, key: str) -> None:
        desk.kept["bob"] += 1

    desk_of(cluster).job = touch
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(cluster)
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "bob" not in str(raised.value.details())
    assert "keyed 'kept': the entry of 'bob' was touched in the turn of 'ada'" in caplog.text


async def test_what_a_service_does_in_turns_is_as_without_strict(cluster: Cluster) -> None:
    async def use(desk: Desk, key: str) -> None:
        desk.job = None

        # Inside its own turn: by a task that ends before it, by hand, and by a call in a circle.
        async def count(key: str) -> None:
            desk.count(key)

        await asyncio.gather(asyncio.create_task(count(key)))
        async with desk.shard.turn(key):
            desk.count(key)
        assert (await desk.shard.call(key, EchoServicer.Unary, EchoRequest(key=key))).seen == 4
        desk.shard.later("bob", 1, lambda: desk.count("bob"))
        await desk.shard.remind(key, EchoServicer.Unary, EchoRequest(key=key), after_s=2)

    desk = desk_of(cluster)
    desk.job = use
    assert await call(cluster) == 4
    async with asyncio.timeout(BOUND_S):
        while desk.kept.get("ada") != 5 or desk.kept.get("bob") != 1:
            await cluster.advance(1)
    assert (desk.totals, desk.kept) == ({"ada": 5, "bob": 1}, {"ada": 5, "bob": 1})


async def test_the_keys_may_be_listed_to_take_the_turn_of_each(cluster: Cluster) -> None:
    async def sweep() -> int:
        for key in list(desk.totals):
            async with desk.shard.turn(key):
                del desk.totals[key]
        desk.errors.put_nowait(None)
        return 0

    desk = desk_of(cluster)
    await call(cluster, "ada")
    await call(cluster, "bob")
    desk.tick = sweep  # type: ignore[assignment, method-assign]
    desk.shard.every(1, sweep)
    await cluster.advance(1)
    async with asyncio.timeout(BOUND_S):
        await desk.errors.get()
    assert desk.totals == {}


async def test_entries_move_and_are_loaded_and_written_as_without_strict() -> None:
    async with Cluster(Desk, shards=2, settings=KEYS, strict=True) as cluster:
        key = next(key for key in map(str, range(200)) if cluster.owner_of(key) == 1)
        assert await call(cluster, key) == 1
        await cluster.scale(1)
        assert await call(cluster, key) == 2
        assert desk_of(cluster).arrived == [(key, 1)]
        assert desk_of(cluster).kept == {key: 2}
        await cluster.crash(0)
        stub: Any = cluster.stub(EchoStub)
        assert (await stub.Unary(EchoRequest(key=key), wait_for_ready=True, timeout=BOUND_S)).seen == 1
        assert desk_of(cluster).kept == {key: 3}


async def test_dicts_that_stay_are_for_streams_and_are_never_strict(cluster: Cluster) -> None:
    async def link(desk: Desk, key: str) -> None:
        desk.links["bob"] = []

    desk = desk_of(cluster)
    desk.job = link
    assert await call(cluster) == 1
    assert type(desk.links) is dict
    assert desk.links == {"bob": []}


@pytest.mark.parametrize("is_strict", [False, True])
async def test_the_apps_own_setting_counts_too(is_strict: bool) -> None:
    async with Cluster(Desk, shards=1, settings=KEYS | {"strict": is_strict}) as cluster:
        desk = desk_of(cluster)
        desk.job = touch_at_once
        await call(cluster)
        assert (desk.errors.get_nowait() is not None) == is_strict
        assert desk.totals == ({"ada": 1} if is_strict else {"ada": 1, "bob": 99})
        assert (type(desk.totals) is dict) == (not is_strict)
