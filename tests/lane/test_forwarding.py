"""What becomes of a call that another shard owns: forwarded once, and once more to a newer owner; each ends once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from onelane.core.hop import SERVED
from onelane.core.placement import Member, Placement
from onelane.lane import forwarding
from onelane.lane.forwarder import NOT_HOME
from onelane.testing.listener import MemoryCall

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.lane.test_lane import B, Bench, SaysWhatItWasTold


async def test_the_sender_looks_again_when_the_owner_knows_a_newer_placement() -> None:
    refused = (grpc.StatusCode.UNAVAILABLE, ((NOT_HOME, "8"),))
    forwarder = SaysWhatItWasTold([refused, (grpc.StatusCode.OK, ((SERVED, "c"),))])
    bench = Bench(Placement(7, (B,)), forwarder)
    calling = asyncio.ensure_future(bench.call())
    await forwarder.was_sent.wait()
    bench.lane.place(Placement(8, (Member("c", "127.0.0.1:1003", "c.sock"),)))
    assert (await calling).code_now is grpc.StatusCode.OK
    assert forwarder.sent == ["b", "c"]


async def test_a_call_that_cannot_be_sent_once_more_has_a_status_all_the_same() -> None:
    forwarder = SaysWhatItWasTold([(grpc.StatusCode.UNAVAILABLE, ((NOT_HOME, "8"),))])
    bench = Bench(Placement(7, (B,)), forwarder)
    calling = asyncio.ensure_future(bench.call())
    await forwarder.was_sent.wait()
    bench.lane.place(Placement(8, (B,)))
    assert (await calling).code_now is grpc.StatusCode.INTERNAL
    assert (forwarder.sent, bench.lane.in_flight) == (["b", "b"], 0)


@pytest.fixture
async def reported() -> AsyncIterator[list[Any]]:
    """The exceptions that asyncio reports, because nobody has retrieved them."""
    loop = asyncio.get_running_loop()
    before, errors = loop.get_exception_handler(), list[Any]()
    loop.set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    yield errors
    loop.set_exception_handler(before)


async def test_a_call_that_cannot_be_answered_still_ends_once(reported: list[Any]) -> None:
    class Faulty(MemoryCall):
        def answer(self, reply: bytes) -> None:
            raise ValueError("cannot be answered")

    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold([(grpc.StatusCode.UNAVAILABLE, ((NOT_HOME, "8"),))]))
    call = Faulty("/t.T/M", (), trusted=False, deadline_s=None)
    bench.lane.arrive(bench.lane.entries["/t.T/M"].method, call, EchoRequest(key="k").SerializeToString())
    await asyncio.sleep(0)
    assert call.cancel_forward is not None
    call.cancel_forward()
    await bench.lane.drain()
    while not reported:  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)
    assert [str(error) for error in reported] == ["cannot be answered"]
    assert (bench.lane.in_flight, bench.counted()) == (0, 1)


@pytest.mark.parametrize("turns_of_the_loop", [0, 1, 2])
async def test_a_call_that_is_cancelled_while_it_waits_for_a_newer_placement_ends(
    turns_of_the_loop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the task that waits has taken its first step."""
    monkeypatch.setattr(forwarding, "NEWER_PLACEMENT_S", 3600.0)
    refused = (grpc.StatusCode.UNAVAILABLE, ((NOT_HOME, "8"),))
    forwarder = SaysWhatItWasTold([refused])
    bench = Bench(Placement(7, (B,)), forwarder)
    call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
    request = EchoRequest(key="k").SerializeToString()
    assert bench.lane.arrive(bench.lane.entries["/t.T/M"].method, call, request) is None
    for _ in range(turns_of_the_loop):
        await asyncio.sleep(0)
    assert call.cancel_forward is not None
    call.cancel_forward()
    await bench.lane.drain()
    assert (bench.lane.in_flight, forwarder.sent) == (0, ["b"])


@pytest.mark.parametrize(("trailers", "counted"), [(((SERVED, "b"),), 0), ((), 1)])
async def test_a_forwarded_call_is_counted_here_only_where_the_owner_did_not(trailers: Any, counted: int) -> None:
    code = grpc.StatusCode.OK if trailers else grpc.StatusCode.UNAVAILABLE
    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold([(code, trailers)]))
    call = await bench.call()
    assert (bench.counted(), tuple(call.trailers)) == (counted, ())
