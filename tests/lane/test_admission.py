"""What is too much is refused at once, with a word when to try again; what goes first still goes."""

import asyncio
import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from onelane.lane.admission import BURST_S, INTERVAL_S, MANY, MOST_KEYS, SHORT_S, Lateness, Rates
from onelane.shard.siblings import LocalCall
from onelane.v1 import topology_pb2, topology_pb2_grpc

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.gate import Gate
from tests.running_app import RunningApp, Scrape, echo, running
from tests.shard.parts import setup, wired

TARGET = 0.05
LATE = f"max_late_s = {TARGET}"
FLOOD = 400


def rounds(lateness: Lateness, *lengths: float, start: float = 1.0, gap: float = 0.0) -> float:
    """Go through rounds of these lengths, `gap` apart; when the last has ended."""
    now = start
    for length in lengths:
        lateness.begin(now, 0)
        now += length
        lateness.end(now)
        now += gap
    return now


def grace(lateness: Lateness, now: float) -> float:
    """How far into a round that begins now calls are taken."""
    lateness.begin(now, 0)
    return lateness.refuse_from - now


def test_short_rounds_refuse_nothing_within_the_interval() -> None:
    lateness = Lateness(TARGET)
    assert grace(lateness, rounds(lateness, *[TARGET] * 100)) == pytest.approx(BURST_S)


def test_lateness_that_stands_leaves_each_round_its_target() -> None:
    lateness = Lateness(TARGET)
    assert grace(lateness, rounds(lateness, 0.06, 0.06)) == pytest.approx(TARGET)


def test_one_short_round_ends_it() -> None:
    lateness = Lateness(TARGET)
    assert grace(lateness, rounds(lateness, 0.06, 0.06, 0.06, 0.01)) == pytest.approx(BURST_S)


def test_long_rounds_with_rest_between_are_no_lateness() -> None:
    lateness = Lateness(TARGET)
    assert grace(lateness, rounds(lateness, *[0.3] * 9, gap=TARGET * 1.1)) == pytest.approx(BURST_S)


def test_a_round_is_short_where_the_next_one_is_no_later_for_it() -> None:
    lateness = Lateness(TARGET)
    lateness.begin(1.0, calls=0)
    assert lateness.is_short(1.0 + SHORT_S / 2)
    assert not lateness.is_short(1.0 + SHORT_S * 2)


def test_a_few_slow_calls_are_no_pile() -> None:
    lateness = Lateness(TARGET)
    lateness.begin(1.0, calls=100)
    assert not lateness.refuses(1.4, calls=102)
    assert lateness.refuse_from == pytest.approx(1.4 + TARGET)
    assert lateness.refuses(1.5, calls=100 + MANY)


@given(st.floats(0.5, 50), st.integers(1, 20), st.lists(st.floats(0, 2), max_size=200))
def test_a_key_never_gets_more_than_its_burst_and_its_rate(per_s: float, burst: int, pauses: list[float]) -> None:
    rates, now, taken = Rates(per_s, burst), 5.0, 0
    for pause in pauses:
        now += pause
        wait = rates.wait_s("k", now)
        taken += wait == 0
        assert 0 <= wait <= 1 / per_s
    assert taken <= burst + (now - 5.0) * per_s + 1e-6


def test_who_waits_as_long_as_told_is_let_in_and_other_keys_at_once() -> None:
    rates = Rates(2.0, 1)
    assert rates.wait_s("k", 1.0) == 0
    wait = rates.wait_s("k", 1.1)
    assert wait == pytest.approx(0.4)
    assert rates.wait_s("other", 1.1) == 0
    assert rates.wait_s("k", 1.1 + wait + 1e-9) == 0


def test_the_keys_that_are_known_are_bounded() -> None:
    rates = Rates(1.0, 1)
    for n in range(MOST_KEYS + 10):
        rates.wait_s(str(n), 1.0)
    assert rates.wait_s("0", 1.0) == 0
    assert rates.wait_s(str(MOST_KEYS + 9), 1.0) > 0


@pytest.mark.slow
async def test_a_lane_that_runs_late_refuses_with_a_pushback_and_still_serves_health(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, LATE)) as cluster:
        async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)
            keys = map(str, itertools.count())
            asked = [stub.Misbehave(EchoRequest(key=next(keys), order="block 0.02")) for _ in range(200)]
            healthy = [health.Check(health_pb2.HealthCheckRequest()) for _ in range(20)]
            codes = [await call.code() for call in asked]
            assert {await call.code() for call in healthy} == {grpc.StatusCode.OK}
            refused = [call for call, code in zip(asked, codes, strict=True) if code is not grpc.StatusCode.OK]
            assert 0 < len(refused) < 200
            for call in refused:
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "shard echo-0 runs" in (await call.details() or "")
                assert dict(await call.trailing_metadata())["grpc-retry-pushback-ms"] == "100"
            assert cluster.metric("onelane_refusals_total", onelane_reason="late") == len(refused)
            # What was too much has passed: it serves as before.
            await round_ends(channel)
            assert (await stub.Unary(EchoRequest(key="after", text="x"))).text == "x"


@pytest.mark.slow
async def test_a_flood_of_forwarded_calls_is_refused_and_the_clients_of_their_owner_are_served(tmp_path: Path) -> None:
    """All of it waits before the owner begins: of each of its rounds, the calls of the first 50 ms are served."""
    # Until all of it waits, the owner is silent.
    with running(tmp_path, echo(2, LATE, f"unresponsive_s = {BOUND_S}")) as cluster:
        owner, sender = cluster.shards()
        async with (
            grpc.aio.insecure_channel(sender["address"]) as flooding,
            grpc.aio.insecure_channel(owner["address"]) as neighbour,
        ):
            key, gate = await key_at(neighbour, owner["name"]), Gate(tmp_path)
            stalling = echo_pb2_grpc.EchoStub(neighbour).Misbehave(EchoRequest(key=key, order=f"stall_at {gate}"))
            async with gate.occupied():
                calls = await flood(cluster, flooding, key, sender["name"])
                # Else the lateness of the owner would not be lasting.
                await asyncio.sleep(INTERVAL_S)
            refused = [call for call in calls if await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
            assert FLOOD / 2 < len(refused) < FLOOD
            assert {"shard echo-0 runs" in (await call.details() or "") for call in refused} == {True}
            await stalling
            await round_ends(neighbour)
            assert (await echo_pb2_grpc.EchoStub(neighbour).Unary(EchoRequest(key=key, text="x"))).text == "x"
        late = cluster.metric("onelane_refusals_total", onelane_reason="late", onelane_shard=owner["name"])
        assert late == len(refused)


async def flood(cluster: RunningApp, channel: grpc.aio.Channel, key: str, sender: str) -> list[Any]:
    """`FLOOD` calls that the sender has forwarded, to an owner that answers none: an answer is the sender's own, which
    runs late where the machine is busy."""
    flooding = echo_pb2_grpc.EchoStub(channel).Misbehave
    calls: list[Any] = []

    def are_forwarded() -> bool:
        calls[:] = [call for call in calls if not call.done()]
        # The owner is late with its report, so `RunningApp.scrape` would not end.
        return Scrape(cluster.get("/metrics")).in_flight(onelane_shard=sender) == len(calls) == FLOOD

    while len(calls) < FLOOD or not await asyncio.to_thread(are_forwarded):
        missing = FLOOD - len(calls)
        calls += [flooding(EchoRequest(key=key, order="compute 0.005"), timeout=BOUND_S) for _ in range(missing)]
    return calls


async def test_watches_have_a_bound_of_their_own_and_leave_the_lane_to_calls(tmp_path: Path) -> None:
    """max_in_flight and its reserve hold 264 calls; a thousand watches of two kinds would fill them."""
    with running(tmp_path, echo(1, "max_in_flight = 8", "max_watches = 300")) as cluster:
        async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch_topology = topology_pb2_grpc.TopologyStub(channel).Watch
            kinds = (
                lambda: health.Watch(health_pb2.HealthCheckRequest()),
                lambda: watch_topology(topology_pb2.WatchRequest()),
            )
            watches = [watch() for watch in kinds for _ in range(310)]
            answers = await asyncio.gather(*(watch.read() for watch in watches), return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
            assert [error.code() for error in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 20
            assert "max_watches" in (refused[0].details() or "")
            stub = echo_pb2_grpc.EchoStub(channel)
            assert (await stub.Unary(EchoRequest(key="k", text="x"))).text == "x"
            assert cluster.in_flight() == 0
            assert cluster.metric("onelane_refusals_total", onelane_reason="watches") == 20
            for watch in watches:
                watch.cancel()
            # Their places are free again.
            await eventually_read(kinds[0])


async def round_ends(channel: grpc.aio.Channel) -> None:
    """The last answers of a late round reach their clients before it ends, and until then a call is refused. A call of
    the runtime's own is answered all the same, and what is sent once it is comes in a later round."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    await health.Check(health_pb2.HealthCheckRequest())


async def eventually_read(watch: Any) -> None:
    while True:
        with suppress(grpc.aio.AioRpcError):
            await watch().read()
            return


async def key_at(channel: grpc.aio.Channel, shard: str) -> str:
    """A key that this shard owns."""
    stub = echo_pb2_grpc.EchoStub(channel)
    for key in map(str, itertools.count()):
        if (await stub.Unary(EchoRequest(key=key))).shard == shard:
            return key
    raise AssertionError("unreachable")


@pytest.mark.slow
async def test_a_key_that_asks_too_often_is_refused_and_no_other(tmp_path: Path) -> None:
    with running(tmp_path, echo(2, "max_rate_per_key = 0.05")) as cluster:
        async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            await asyncio.gather(*(stub.Unary(EchoRequest(key=str(n))) for n in range(10)))
            again = stub.Unary(EchoRequest(key="3"))
            assert await again.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "this key is called more often than 0.05 times a second" in (await again.details() or "")
            pushback = int(dict(await again.trailing_metadata())["grpc-retry-pushback-ms"])
            assert 10_000 < pushback <= 20_000


class OwnHealth(health_pb2_grpc.HealthServicer):
    """In place of grpcio's, and so within reach of interceptors."""

    async def Watch(self, request: Any, context: Any) -> None:
        raise AssertionError("an interceptor refuses it")


class RefusingWatches(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        raise PermissionError(handler_call_details.method)


async def test_a_watch_that_an_interceptor_refuses_leaves_its_place() -> None:
    services, interceptors = (f"{__name__}:OwnHealth",), (f"{__name__}:RefusingWatches",)
    parts, _ = wired(setup(services=services, interceptors=interceptors, health=False, max_watches=2))
    parts.services.load()
    entry = parts.lane.entries["/grpc.health.v1.Health/Watch"]
    for _ in range(3):
        call = LocalCall(entry.method.path, (), None)
        await parts.lane.serve(entry.method, call, b"")
        assert call.code_now is grpc.StatusCode.INTERNAL
    assert (entry.watches, parts.lane.in_flight) == (0, 0)
