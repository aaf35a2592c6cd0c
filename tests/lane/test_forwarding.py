"""What becomes of a call that another shard owns: forwarded once, and once more to a newer owner; each ends once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from onelane.config import App
from onelane.core import keys
from onelane.core.clock import SystemClock
from onelane.core.hop import SERVED
from onelane.core.placement import Member, Placement
from onelane.lane import forwarding
from onelane.lane.forwarder import NOT_HOME, NativeForwarder
from onelane.lane.forwarding import Forwarding
from onelane.lane.method_entry import Entry
from onelane.lane.routing import Router
from onelane.server.listener import Bind
from onelane.server.native_listener import NativeListener
from onelane.telemetry.sampling import Sampler
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer
from onelane.testing.listener import MemoryCall

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.lane.test_lane import B, Bench, SaysWhatItWasTold
from tests.servers import Answering

SETTINGS = App(services=("a:B",), listen="127.0.0.1:0")


async def test_the_sender_looks_again_when_the_owner_knows_a_newer_placement() -> None:
    refused = (grpc.StatusCode.UNAVAILABLE, ((NOT_HOME, "8"),))
    forwarder = SaysWhatItWasTold([refused, (grpc.StatusCode.OK, ((SERVED, "c"),))])
    bench = Bench(Placement(7, (B,)), forwarder)
    calling = asyncio.ensure_future(bench.call())
    await forwarder.was_sent.wait()
    bench.lane.place(Placement(8, (Member("c", "127.0.0.1:1003", "c.sock"),)))
    assert (await calling).code_now is grpc.StatusCode.OK
    assert forwarder.sent == ["b", "c"]


@pytest.mark.parametrize("request_message", [b"hi", None], ids=["one message", "a stream of the client's"])
async def test_a_stream_that_is_refused_is_sent_to_the_newer_owner_as_well(
    tmp_path: Path, request_message: bytes | None
) -> None:
    members = [Member(name, f"127.0.0.1:{port}", str(tmp_path / name)) for name, port in (("b", 1), ("c", 2))]
    router, has_refused = Router("a", Placement(7, (members[0],))), asyncio.Event()

    async def refuse(_: bytes, call: Any) -> bytes:
        has_refused.set()
        call.fail(grpc.StatusCode.UNAVAILABLE, "not here")
        call.trailers = ((NOT_HOME, "8"),)
        return b""

    listeners = [NativeListener(), NativeListener()]
    for listener, member, serve in zip(listeners, members, (refuse, None), strict=True):
        await listener.start([Bind(f"unix:{member.socket}", trusted=True)], Answering(serve), SETTINGS)
    stats, forwarder = Stats(), NativeForwarder()
    tracer = Tracer(shard="a", clock=SystemClock(), rng=Random(1))
    forwards = Forwarding(forwarder, router, stats=stats, tracer=tracer, end=unexpected, fail=unexpected)
    call = MemoryCall("/t.T/Echo", ((keys.HEADER, "k"),), trusted=False, deadline_s=None)
    # It says at each attempt that no further message comes.
    for message in (b"hi", None, None):
        call.inbox.put_nowait(message)
    entry = Entry(Answering().methods()[0], stats)
    sending = asyncio.ensure_future(forwards.stream(members[0], entry, call, request_message))
    await has_refused.wait()
    router.place(Placement(8, (members[1],)))
    forwards.placed()
    assert (await asyncio.wait_for(sending, 20), call.code_now, call.trailers) == (b"hi", grpc.StatusCode.OK, ())
    await forwarder.aclose()
    for listener in listeners:
        await listener.stop(1.0)


def unexpected(*_: object) -> None:
    raise AssertionError("it is its task that ends a stream")


async def test_a_call_that_cannot_be_sent_once_more_has_a_status_all_the_same() -> None:
    forwarder = SaysWhatItWasTold([(grpc.StatusCode.UNAVAILABLE, ((NOT_HOME, "8"),))])
    bench = Bench(Placement(7, (B,)), forwarder)
    calling = asyncio.ensure_future(bench.call())
    await forwarder.was_sent.wait()
    bench.lane.place(Placement(8, (B,)))
    assert (await calling).code_now is grpc.StatusCode.INTERNAL
    assert (forwarder.sent, bench.lane.in_flight) == (["b", "b"], 0)


@pytest.mark.parametrize("answers", [[], [(grpc.StatusCode.UNAVAILABLE, ((NOT_HOME, "8"), (SERVED, "b")))]])
@pytest.mark.parametrize("away", [{}, {"b": "unresponsive"}], ids=["cannot be sent", "its owner is away"])
async def test_a_call_that_cannot_be_sent_ends_the_span_of_its_hop_and_keeps_no_marker(
    answers: Any, away: dict[str, str]
) -> None:
    """Whether it fails at once, or once more."""
    forwarder = SaysWhatItWasTold(answers)
    bench = Bench(Placement(7, (B,)), forwarder, sampler=Sampler(parent_based=True, ratio=1.0))
    calling = asyncio.ensure_future(bench.call())
    await forwarder.was_sent.wait()
    bench.lane.avoid(away)
    bench.lane.place(Placement(8, (B,)))
    call = await calling
    hops = [span for span in bench.tracer.take() if span.kind == "CLIENT"]
    assert [(span.hop, span.status) for span in hops] == [("forwarded", call.code_now.name)]
    assert (call.trailers, bench.counted()) == ((), 1)


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
    call.is_cancelled = True
    call.cancel_forward()
    await bench.lane.drain()
    assert (bench.lane.in_flight, forwarder.sent) == (0, ["b"])
    assert call.code_now is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(("trailers", "counted"), [(((SERVED, "b"),), 0), ((), 1)])
async def test_a_forwarded_call_is_counted_here_only_where_the_owner_did_not(trailers: Any, counted: int) -> None:
    code = grpc.StatusCode.OK if trailers else grpc.StatusCode.UNAVAILABLE
    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold([(code, trailers)]))
    call = await bench.call()
    assert (bench.counted(), tuple(call.trailers)) == (counted, ())
