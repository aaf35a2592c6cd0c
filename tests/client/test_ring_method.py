"""Calls to a server that fails as a script says: tried again where that is safe, sent elsewhere, refused."""

import asyncio
from time import monotonic
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.client.channel import NativeChannel
from onelane.client.outlier import CONSECUTIVE_FAILURES, RECENT_CALLS, EndpointHealth
from onelane.client.retry import SAFE_RETRY
from onelane.client.ring_router import ShardEndpoint
from onelane.core.context import TaskContext, current_call_var
from onelane.core.placement import Member, Placement
from onelane.core.trace_context import TraceContext

from tests.bounds import BOUND_S
from tests.client.configs import RETRY
from tests.client.scripted import ABORTED, UNAVAILABLE, Scripted
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest


async def test_a_safe_call_is_tried_again_and_says_how_often(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE, UNAVAILABLE]
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(text="x"), timeout=BOUND_S)
        assert (await call).text == "2"
        assert await call.code() is grpc.StatusCode.OK
    assert [seen.get("grpc-previous-rpc-attempts") for seen in scripted.seen] == [None, "1", "2"]


async def test_attempts_are_bounded_and_the_last_status_counts(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE] * 9
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is UNAVAILABLE
        assert len(scripted.seen) == SAFE_RETRY.attempts


async def test_a_call_that_may_have_had_effects_is_made_once(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE]
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)
    assert len(scripted.seen) == 1


async def test_a_service_config_asks_for_retries_of_any_method(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [ABORTED, UNAVAILABLE, ABORTED]
    config = {"methodConfig": [{"name": [{"service": "echo.v1.Echo"}], "retryPolicy": RETRY}]}
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        assert (await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)).text == "3"


async def test_there_is_no_attempt_past_the_deadline_and_a_cancelled_call_makes_none(
    server: tuple[Scripted, str],
) -> None:
    scripted, address = server
    scripted.steps, scripted.trailers = [UNAVAILABLE] * 9, (("grpc-retry-pushback-ms", "600000"),)
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=BOUND_S)
        assert await call.code() is UNAVAILABLE
        endless = stub.Who(EchoRequest(), timeout=3000)
        while len(scripted.seen) < 2:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        endless.cancel()
        assert await endless.code() is grpc.StatusCode.CANCELLED
    assert len(scripted.seen) == 2


async def test_a_call_that_waits_for_its_next_attempt_ends_with_its_channel(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps, scripted.trailers = [UNAVAILABLE] * 9, (("grpc-retry-pushback-ms", "60000"),)
    channel = onelane.connect(address)
    stub: Any = echo_pb2_grpc.EchoStub(channel)
    call = stub.Who(EchoRequest(), timeout=300)
    while not channel.router.between_attempts:  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)
    await channel.close()
    assert call.done()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_a_call_that_waits_for_its_next_attempt_has_the_grace_of_its_channel(
    server: tuple[Scripted, str],
) -> None:
    scripted, address = server
    scripted.steps, scripted.trailers = [UNAVAILABLE], (("grpc-retry-pushback-ms", "200"),)
    channel = onelane.connect(address)
    stub: Any = echo_pb2_grpc.EchoStub(channel)
    call = stub.Who(EchoRequest(), timeout=300)
    while not channel.router.between_attempts:  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)
    await channel.close(60)
    assert await call.code() is grpc.StatusCode.OK


async def test_a_spent_budget_tries_nothing_again(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE] * 99
    config = {"retryThrottling": {"maxTokens": 4, "tokenRatio": 0.1}}
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        attempts = []
        for _ in range(4):
            before = len(scripted.seen)
            assert await stub.Who(EchoRequest(), timeout=BOUND_S).code() is UNAVAILABLE
            attempts.append(len(scripted.seen) - before)
    assert attempts == [2, 1, 1, 1]


async def test_more_calls_at_once_than_a_peer_may_have_are_refused_unsent(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [60.0, 60.0]
    async with onelane.connect(address, service_config={"max_in_flight": 2}, name="peer") as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        held = [stub.Unary(EchoRequest(key="k")) for _ in range(2)]
        refused = stub.Unary(EchoRequest(key="k"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "2 calls to peer are under way already"
        while len(scripted.seen) < 2:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        for call in held:
            call.cancel()
        assert (await stub.Unary(EchoRequest(key="k"), timeout=BOUND_S)).text
    assert len(scripted.seen) == 3


class LaterHealth(EndpointHealth):
    """The health of an endpoint as of a later time than now: a test says how much."""

    later_s = 0.0

    def allows(self, now: float) -> bool:
        return super().allows(now + self.later_s)


async def owned(channel: onelane.Channel, address: str) -> LaterHealth:
    """Have `channel` take the server for the only shard of an app."""
    router = channel.router
    assert router._follower is not None
    router._follower.cancel()
    health = LaterHealth()
    endpoint = ShardEndpoint(NativeChannel(address, router._dialling), health)
    await endpoint.channel.channel_ready()
    router.endpoints = {address: endpoint}
    router.placement = Placement(1, (Member("a", address, ""),), 8, {})
    return health


KEY = (("onelane-key", "k"),)


async def test_a_retry_that_is_the_probe_ends_the_ejection(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    async with onelane.connect(address) as channel:
        health = await owned(channel, address)
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        for _ in range(CONSECUTIVE_FAILURES):
            health.ended("UNAVAILABLE", monotonic())
        assert health.is_ejected
        health.later_s = -3600.0

        def fail_when_the_ejection_ends() -> grpc.StatusCode:
            health.later_s = 3600.0
            return UNAVAILABLE

        # By the shared address; the retry comes when the ejection is over, and is its probe.
        scripted.steps = [fail_when_the_ejection_ends]
        await stub.Who(EchoRequest(), timeout=BOUND_S, metadata=KEY)
        assert not health.is_ejected


async def fail_by_its_caller(stub: Any, how: str) -> None:
    if how == "its request cannot be serialized":
        with pytest.raises(TypeError):
            stub.Who("no message", metadata=KEY)
    elif how == "its deadline has passed when it is made":
        assert await stub.Who(EchoRequest(), timeout=0, metadata=KEY).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        stub.Who(EchoRequest(), timeout=BOUND_S, metadata=KEY).cancel()


async def test_calls_that_fail_by_their_caller_alone_neither_eject_an_endpoint_nor_use_up_its_probe(
    server: tuple[Scripted, str],
) -> None:
    _, address = server
    ways = ("its request cannot be serialized", "its deadline has passed when it is made", "it is cancelled")
    async with onelane.connect(address) as channel:
        health = await owned(channel, address)
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        for way in ways:
            for _ in range(CONSECUTIVE_FAILURES):
                await fail_by_its_caller(stub, way)
            assert not health.is_ejected, way
        for _ in range(CONSECUTIVE_FAILURES):
            health.ended("UNAVAILABLE", monotonic())
        health.later_s = 3600.0
        for way in ways:
            await fail_by_its_caller(stub, way)
            assert health.is_ejected, way
        await stub.Who(EchoRequest(), timeout=BOUND_S, metadata=KEY)
        assert not health.is_ejected


async def test_attempts_that_fail_count_against_their_endpoint_though_a_retry_saves_the_call(
    server: tuple[Scripted, str],
) -> None:
    scripted, address = server
    async with onelane.connect(address) as channel:
        health = await owned(channel, address)
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        scripted.steps = [UNAVAILABLE, "done"] * RECENT_CALLS
        for _ in range(RECENT_CALLS):
            channel.peer.budget.tokens = 100.0
            await stub.Who(EchoRequest(), timeout=BOUND_S, metadata=KEY)
            if health.is_ejected:
                return
        pytest.fail("half of the attempts failed, and nobody noticed")


async def test_a_call_and_its_retry_carry_what_the_call_in_progress_hands_on(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE]
    trace = TraceContext("a" * 32, "b" * 16, True)
    context = TaskContext("/a.B/C", monotonic() + 60, trace, "0001@s-0/a.B/C", "k=v")
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        token = current_call_var.set(context)
        call = stub.Who(EchoRequest(), metadata=(("x-own", "1"),))
        current_call_var.reset(token)
        await call
    for received in scripted.seen:
        assert received["traceparent"] == trace.traceparent()
        assert (received["onelane-chain"], received["baggage"], received["x-own"]) == ("0001@s-0/a.B/C", "k=v", "1")
    assert [received.get("grpc-previous-rpc-attempts") for received in scripted.seen] == [None, "1"]


async def test_the_key_is_read_from_the_message_once_the_topology_is_known_and_the_callers_own_counts(
    server: tuple[Scripted, str],
) -> None:
    scripted, address = server
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        await stub.Unary(EchoRequest(key="k"))
        await owned(channel, address)
        await stub.Unary(EchoRequest(key="k"))
        await stub.Unary(EchoRequest(key="k"), metadata=(("onelane-key", "own"),))
    assert [received.get("onelane-key") for received in scripted.seen] == [None, "k", "own"]


async def test_a_method_keeps_nothing_of_shards_that_have_left(server: tuple[Scripted, str]) -> None:
    _, address = server
    async with onelane.connect(address) as channel:
        await owned(channel, address)
        method: Any = channel.unary_unary("/echo.v1.Echo/Unary")
        channels = [NativeChannel(address) for _ in range(5)]
        for shard in channels:
            method._sender(shard)
            await shard.close()
        assert len(method._senders) <= 1 + len(channel.router.endpoints)
