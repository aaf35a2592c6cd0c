"""The lane decides where a call runs and what becomes of it; here with a forwarder that only says what it was told."""

import asyncio
from collections.abc import Collection, Sequence
from math import inf
from random import Random
from time import perf_counter
from typing import Any

import grpc
import pytest
from onelane.core import keys
from onelane.core.clock import SystemClock
from onelane.core.keys import FieldKey
from onelane.core.placement import Member, Placement
from onelane.core.trace_context import TraceContext
from onelane.core.turns import Turns
from onelane.lane import admission
from onelane.lane.admission import MANY, RESERVE, Admission
from onelane.lane.lane import Lane
from onelane.lane.routing import Router
from onelane.lane.turn_queue import TurnQueue
from onelane.lane.unary_forward import NOT_HOME
from onelane.server.call import DIRECT_HOP, FORWARDED_HOP, Call
from onelane.server.methods import Method
from onelane.server.plain_context import PlainContext
from onelane.telemetry.sampling import NEVER, Sampler
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer
from onelane.testing.listener import MemoryCall

from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

A, B = Member("a", "127.0.0.1:1001", "a.sock"), Member("b", "127.0.0.1:1002", "b.sock")
RULE = keys.field_key(EchoRequest.DESCRIPTOR, ["key"])


class SaysWhatItWasTold:
    """A forwarder without sockets: answers with what `answers` says, one after another."""

    def __init__(self, answers: Sequence[tuple[grpc.StatusCode, tuple[tuple[str, str], ...]]] = ()) -> None:
        self.sent: list[str] = []
        self.epochs: list[int] = []
        self.given_up: list[str] = []
        self.was_sent = asyncio.Event()
        self._answers = list(answers)

    def begin(
        self, owner: Member, call: Call, request: bytes, trace: TraceContext | None, done: Any, *, epoch: int = 0
    ) -> None:
        self.sent.append(owner.name)
        self.epochs.append(epoch)
        self.was_sent.set()
        if not self._answers:
            raise ValueError("cannot be sent")
        code, call.trailers = self._answers.pop(0)
        call.fail(code, "")
        call.cancel_forward = _nothing
        done(b"forwarded")

    async def stream(self, owner: Member, call: Call, request: bytes | None, trace: Any, **_: Any) -> bytes:
        raise NotImplementedError

    def give_up(self, owner: Member) -> None:
        self.given_up.append(owner.name)

    def keep(self, sockets: Collection[str]) -> None:
        """It has no connections."""

    async def aclose(self) -> None:
        """Nothing to close."""


def _nothing() -> None:
    """Cancels nothing: the call is over."""


async def echo(request: EchoRequest, context: Any) -> EchoReply:
    return EchoReply(text=request.text)


class BenchCall(MemoryCall):
    epoch = 0


class Bench:
    """A lane called `a`, its counts, and calls made by hand."""

    def __init__(
        self, placement: Placement, forwarder: SaysWhatItWasTold, handler: Any = echo, sampler: Sampler = NEVER
    ) -> None:
        self.stats = Stats()
        self.tracer = Tracer(shard="a", sampler=sampler, clock=SystemClock(), rng=Random(1))
        self.forwarder = forwarder
        router = Router("a", placement)
        turns = Turns("a", draw=iter(range(1, 99)).__next__, per_key=1, in_all=9)
        self.lane = Lane(
            router=router,
            queue=TurnQueue(turns, router),
            admission=Admission("a", max_in_flight=2, max_late_s=0.05),
            forwarder=forwarder,
            stats=self.stats,
            tracer=self.tracer,
        )
        rule: FieldKey = RULE
        is_async = asyncio.iscoroutinefunction(handler)
        self.lane.add(
            Method("/t.T/M", handler, is_async, False, False, EchoRequest.FromString, EchoReply.SerializeToString, rule)
        )

    def run_late(self) -> None:
        """Let the round that is under way be late, with many calls in it."""
        self.lane._lateness.begin(perf_counter() - 10, calls=-MANY)

    async def call(
        self,
        *,
        forwarded: bool = False,
        from_service: bool = False,
        metadata: Any = (),
        key: str = "k",
        epoch: int | None = None,
    ) -> MemoryCall:
        """forwarded: a sibling has sent it on, by the placement of `epoch`. from_service: a service of a sibling has
        made it."""
        call = BenchCall("/t.T/M", metadata, trusted=forwarded or from_service, deadline_s=None)
        call.epoch = self.lane.placement.epoch if epoch is None else epoch
        call.hop = FORWARDED_HOP if forwarded else DIRECT_HOP
        request = EchoRequest(key=key, text="hi").SerializeToString()
        await self.lane.serve(self.lane.entries["/t.T/M"].method, call, request)
        return call

    def counted(self) -> float:
        points = self.stats.take()
        return sum(p.value for p in points if p.instrument.name == "onelane.calls" and isinstance(p.value, int | float))

    def refused(self) -> dict[str, float]:
        """Reason → calls refused for it."""
        points = [point for point in self.stats.take() if point.instrument.name == "onelane.refusals"]
        return {dict(p.attributes)["onelane.reason"]: p.value for p in points if isinstance(p.value, float | int)}


@pytest.mark.parametrize("metadata", [(), (("x-own", "1"),)])
async def test_a_second_hop_is_refused_with_the_epoch(metadata: Any) -> None:
    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold())
    call = await bench.call(forwarded=True, metadata=metadata)
    assert call.code_now is grpc.StatusCode.UNAVAILABLE
    assert tuple(call.trailers) == ((NOT_HOME, "7"), ("onelane-epoch", "7"))
    assert bench.counted() == 0, "its sender counts it"


async def test_a_call_to_a_key_of_a_lane_that_does_not_tick_is_refused_and_counted() -> None:
    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold([(grpc.StatusCode.OK, ())]))
    assert bench.lane.avoid({"b": "unresponsive"}) == [B]
    assert bench.lane.avoid({"b": "unresponsive"}) == [], "is new but once"
    call = await bench.call()
    assert (call.code_now, call.details_now) == (
        grpc.StatusCode.UNAVAILABLE,
        "shard b, which owns the key, is unresponsive",
    )
    assert bench.refused() == {"unresponsive": 1}
    assert (bench.forwarder.sent, bench.forwarder.given_up) == ([], ["b"])
    bench.lane.avoid({})
    assert (await bench.call()).code_now is grpc.StatusCode.OK
    assert bench.forwarder.sent == ["b"]


async def test_no_connection_is_handed_to_a_lane_that_does_not_tick() -> None:
    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold())
    method = bench.lane.entries["/t.T/M"].method
    message = EchoRequest(key="k").SerializeToString()
    assert bench.lane.home_of(method, (), message) == B.socket
    bench.lane.avoid({"b": "unresponsive"})
    assert bench.lane.home_of(method, (), message) == ""


async def test_a_call_in_a_draining_lane_is_refused_unless_a_sibling_sent_it() -> None:
    bench = Bench(Placement(7, (A,)), SaysWhatItWasTold())
    await bench.lane.drain()
    assert (await bench.call()).code_now is grpc.StatusCode.UNAVAILABLE
    assert (await bench.call(forwarded=True)).code_now is grpc.StatusCode.OK


async def test_a_forwarded_call_is_refused_as_late_like_a_call_of_a_client() -> None:
    bench = Bench(Placement(7, (A,)), SaysWhatItWasTold())
    bench.run_late()
    for forwarded in (False, True):
        call = await bench.call(forwarded=forwarded)
        assert (call.code_now, call.details_now[:12]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "shard a runs")


async def test_a_late_round_takes_no_more_than_the_reserve_of_calls_that_go_first() -> None:
    bench = Bench(Placement(7, (A,)), SaysWhatItWasTold())
    bench.run_late()
    codes = [(await bench.call(from_service=True)).code_now for _ in range(RESERVE + 5)]
    assert codes == [grpc.StatusCode.OK] * RESERVE + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 5
    bench.run_late()
    assert (await bench.call(from_service=True)).code_now is grpc.StatusCode.OK


@pytest.mark.parametrize("short_s", [inf, 0.0])
async def test_a_short_round_that_leaves_no_call_behind_ends_without_a_look_at_the_sockets(
    short_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "SHORT_S", short_s)
    bench = Bench(Placement(7, (A,)), SaysWhatItWasTold())
    await bench.call()
    await asyncio.sleep(0)
    assert (bench.lane._lateness.began_at == 0) is (short_s == inf)
    await asyncio.sleep(0)
    assert bench.lane._lateness.began_at == 0


async def test_a_round_that_leaves_a_call_behind_lasts_while_what_that_has_made_ready_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "SHORT_S", inf)
    has_begun, release = asyncio.Event(), asyncio.Event()

    async def wait(request: EchoRequest, context: Any) -> EchoReply:
        has_begun.set()
        await release.wait()
        return EchoReply()

    bench = Bench(Placement(7, (A,)), SaysWhatItWasTold(), handler=wait)
    call = asyncio.create_task(bench.call())
    await has_begun.wait()
    assert bench.lane._lateness.began_at > 0
    await asyncio.sleep(0)
    assert bench.lane._lateness.began_at == 0
    release.set()
    assert (await call).code_now is grpc.StatusCode.OK


async def test_keys_of_megabytes_are_refused_and_none_is_remembered() -> None:
    bench = Bench(Placement(7, (A,)), SaysWhatItWasTold())
    for letter in "abcdef":
        call = await bench.call(key=letter * 3_500_000)
        assert call.code_now is grpc.StatusCode.INVALID_ARGUMENT
        assert call.details_now.startswith("echo.v1.EchoRequest.key is too long")
    assert (bench.lane.router.homes, bench.lane.hot_keys.seen) == ({}, [])


async def test_a_newer_placement_is_followed_and_an_older_one_ignored() -> None:
    forwarder = SaysWhatItWasTold([(grpc.StatusCode.OK, ())])
    bench = Bench(Placement(7, (B,)), forwarder)
    bench.lane.place(Placement(6, (A,)))
    await bench.call()
    bench.lane.place(Placement(8, (A,)))
    await bench.call()
    assert forwarder.sent == ["b"]


async def test_a_plain_handler_runs_without_a_task_and_can_abort() -> None:
    def handler(request: EchoRequest, context: PlainContext) -> EchoReply:
        assert isinstance(context, grpc.ServicerContext)
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    call = await Bench(Placement(7, (A,)), SaysWhatItWasTold(), handler).call()
    assert (call.code_now, call.details_now) == (grpc.StatusCode.NOT_FOUND, "gone")
