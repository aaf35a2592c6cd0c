"""A hedged call is made several times, and is one call to its caller."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest

from tests.bounds import BOUND_S
from tests.client.configs import WHO, hedging
from tests.client.scripted import ABORTED, UNAVAILABLE, Scripted
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest


async def test_a_hedged_call_takes_the_first_answer_and_cancels_the_rest(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [60.0, 60.0]
    config = {
        "methodConfig": [{"name": WHO, "hedgingPolicy": {"maxAttempts": 3, "hedgingDelay": "0.02s"}}],
    }
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=BOUND_S)
        assert (await call).text == "2"
        assert await call.code() is grpc.StatusCode.OK
        while scripted.cancelled < 2:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)


async def test_a_hedged_call_goes_on_after_what_is_not_fatal_and_ends_with_what_is(
    server: tuple[Scripted, str],
) -> None:
    scripted, address = server
    hedging = {"maxAttempts": 3, "hedgingDelay": "60s", "nonFatalStatusCodes": ["UNAVAILABLE"]}
    config = {"methodConfig": [{"name": WHO, "hedgingPolicy": hedging}]}
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        scripted.steps = [UNAVAILABLE, UNAVAILABLE]
        assert (await stub.Who(EchoRequest(), timeout=BOUND_S)).text == "2"
        scripted.steps = [UNAVAILABLE, ABORTED]
        assert await stub.Who(EchoRequest(), timeout=BOUND_S).code() is ABORTED
        scripted.steps = [UNAVAILABLE] * 3
        assert await stub.Who(EchoRequest(), timeout=BOUND_S).code() is UNAVAILABLE
    assert len(scripted.seen) == 3 + 2 + 3


async def test_a_spent_budget_ends_a_hedged_call(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE] * 99
    config = hedging(retryThrottling={"maxTokens": 2, "tokenRatio": 0.1})
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        assert await stub.Who(EchoRequest(), timeout=BOUND_S).code() is UNAVAILABLE


@pytest.mark.parametrize("how", ["the call", "who waits for it"])
async def test_a_hedged_call_that_is_cancelled_between_two_attempts_makes_no_other(
    server: tuple[Scripted, str], how: str
) -> None:
    scripted, address = server
    scripted.steps, scripted.trailers = [UNAVAILABLE], (("grpc-retry-pushback-ms", "60000"),)
    async with onelane.connect(address, service_config=hedging()) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=300)

        async def wait() -> Any:
            return await call

        waiting = asyncio.create_task(wait())
        while not scripted.seen or call._open:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        if how == "the call":
            assert call.cancel()
        else:
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert call._timer is None or call._timer.cancelled()


async def test_a_hedged_call_ends_also_where_its_channel_closes_between_two_attempts(
    server: tuple[Scripted, str],
) -> None:
    """At once, as any call, or with a grace by its next attempt, for which it is too late."""
    scripted, address = server
    for grace_s, pushback_ms, code in ((None, "60000", grpc.StatusCode.CANCELLED), (30, "100", UNAVAILABLE)):
        scripted.steps, scripted.trailers = [UNAVAILABLE], (("grpc-retry-pushback-ms", pushback_ms),)
        scripted.seen.clear()
        channel = onelane.connect(address, service_config=hedging())
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=300)
        async with asyncio.timeout(BOUND_S):
            while not scripted.seen or call._open:  # noqa: ASYNC110 - turns of the loop are what is waited for
                await asyncio.sleep(0)
            await channel.close(grace_s)
            assert call.done()
            assert await call.code() is code
        assert not channel.router.between_attempts


async def test_a_pushback_past_the_deadline_ends_a_hedged_call_at_once(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps, scripted.trailers = [UNAVAILABLE], (("grpc-retry-pushback-ms", "600000"),)
    async with onelane.connect(address, service_config=hedging()) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        # Not DEADLINE_EXCEEDED: it does not wait for what cannot help any more.
        assert await stub.Who(EchoRequest(), timeout=BOUND_S).code() is UNAVAILABLE


async def test_hedged_attempts_say_how_often_and_a_success_counts_once(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE]
    async with onelane.connect(address, service_config=hedging()) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        await stub.Who(EchoRequest(), timeout=BOUND_S)
        assert [seen.get("grpc-previous-rpc-attempts") for seen in scripted.seen] == [None, "1"]
        assert channel.peer.budget.tokens == pytest.approx(100 - 1 + 0.1)
