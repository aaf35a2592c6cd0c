"""What a lane does with calls while the placement changes: of keys that arrive, that leave, and that stay."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from onelane.core.handoff import Handoff
from onelane.core.placement import Member, Placement
from onelane.errors import ForeignKey
from onelane.lane.admission import Rates
from onelane.lane.lane import Lane
from onelane.server.call import Call
from onelane.server.call_state import DONE, FORWARDED, WAITING
from onelane.testing.listener import MemoryCall

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.lane.test_lane import Bench, BenchCall, SaysWhatItWasTold

A, B = Member("a", "127.0.0.1:1001", "a.sock"), Member("b", "127.0.0.1:1002", "b.sock", 2)
OF_A, OF_B = Placement(7, (A,)), Placement(7, (B,))


def after(*members: Member) -> Placement:
    return Placement(8, members)


def arriving(bench: Bench) -> Handoff:
    """A change by which every key of B comes to this lane."""
    change = Handoff(A, OF_B, after(A))
    bench.lane.change(change)
    change.begin(())
    return change


def leaving(bench: Bench) -> Handoff:
    change = Handoff(A, OF_A, after(B))
    bench.lane.change(change)
    return change


def arrive(lane: Lane, *, timeout_s: float | None = None, chain: str = "", epoch: int = 0) -> MemoryCall:
    """A call that a listener gives to the lane, without a task."""
    call = BenchCall("/t.T/M", (("onelane-chain", chain),) if chain else (), trusted=epoch > 0, deadline_s=timeout_s)
    call.epoch = epoch
    lane.arrive(lane.entries["/t.T/M"].method, call, EchoRequest(key="k", text="hi").SerializeToString())
    return call


async def turns_of_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def states(calls: Sequence[Call]) -> list[object]:
    return [call.state for call in calls]


async def test_calls_of_a_key_that_arrives_are_held_and_go_on_in_their_order() -> None:
    order: list[str] = []

    async def handler(request: EchoRequest, context: Call) -> EchoReply:
        order.append(context.details_now)
        return EchoReply()

    bench = Bench(OF_B, SaysWhatItWasTold(), handler)
    change = arriving(bench)
    serving = []
    for name in ("first", "second"):
        call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
        call.details_now = name
        request = EchoRequest(key="k").SerializeToString()
        serving.append(asyncio.ensure_future(bench.lane.serve(bench.lane.entries["/t.T/M"].method, call, request)))
    await turns_of_the_loop()
    assert (order, bench.lane.arrivals.count) == ([], 2)
    change.moved(B.life, A.life, ["k"])
    change.installed(["k"])
    bench.lane.arrivals.arrived(["k"])
    await asyncio.wait_for(asyncio.gather(*serving), BOUND_S)
    assert order == ["first", "second"]


async def test_a_held_call_that_is_released_too_early_is_held_again() -> None:
    bench = Bench(OF_B, SaysWhatItWasTold())
    arriving(bench)
    serving = asyncio.ensure_future(bench.call())
    await turns_of_the_loop()
    bench.lane.arrivals.all_arrived()
    await turns_of_the_loop()
    assert bench.lane.arrivals.count == 1
    bench.lane.place(after(A))
    assert (await asyncio.wait_for(serving, BOUND_S)).code_now is grpc.StatusCode.OK


async def test_a_held_call_counts_for_its_key_as_any_other_call_and_once() -> None:
    bench = Bench(OF_B, SaysWhatItWasTold())
    bench.lane._admission.rates, bench.lane._has_rates = Rates(per_s=0.01, burst=1), True
    arriving(bench)
    calls = [asyncio.ensure_future(bench.call()) for _ in range(2)]
    await turns_of_the_loop()
    bench.lane.place(after(A))
    codes = {(await asyncio.wait_for(call, BOUND_S)).code_now for call in calls}
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert bench.lane.hot_keys.seen == ["k", "k"]


async def test_a_held_call_whose_deadline_passes_is_told_why_and_held_no_longer() -> None:
    bench = Bench(OF_B, SaysWhatItWasTold())
    arriving(bench)
    call = arrive(bench.lane)
    assert call.state is WAITING
    bench.lane.withdraw(call, late=True)
    assert (call.code_now, call.details_now) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "the deadline passed while the state of its key was on its way to shard a",
    )
    assert (call.state, bench.lane.arrivals.count, bench.lane.in_flight) == (DONE, 0, 0)


async def test_a_call_that_a_sibling_has_sent_by_a_newer_placement_waits_for_it() -> None:
    bench = Bench(OF_B, SaysWhatItWasTold())
    call = arrive(bench.lane, epoch=8)
    assert (call.state, bench.lane.arrivals.count) == (WAITING, 1)
    serving = asyncio.ensure_future(bench.call(forwarded=True, epoch=8))
    await turns_of_the_loop()
    bench.lane.place(after(A))
    assert (await asyncio.wait_for(serving, BOUND_S)).code_now is grpc.StatusCode.OK
    assert bench.forwarder.sent == []


async def test_what_waits_for_the_turn_of_a_key_that_leaves_goes_on_to_its_next_owner() -> None:
    bench = Bench(OF_A, SaysWhatItWasTold([(grpc.StatusCode.OK, ())]))
    turn = await bench.lane.queue.hold("k", "holder")
    call = arrive(bench.lane)
    assert call.state is WAITING
    leaving(bench)
    assert (call.state, call.code_now, bench.forwarder.sent, bench.forwarder.epochs) == (
        *(DONE, grpc.StatusCode.OK),
        *(["b"], [8]),
    )
    assert bench.lane.queue.turns.waiting == 0
    bench.lane.queue.leave(turn)


async def test_a_task_that_waits_for_the_turn_of_its_call_has_the_answer_of_the_next_owner() -> None:
    """Of a call from the shard to itself, or of grpcio's listener."""
    bench = Bench(OF_A, SaysWhatItWasTold([(grpc.StatusCode.OK, ())]))
    turn = await bench.lane.queue.hold("k", "holder")
    serving = asyncio.ensure_future(bench.call())
    await turns_of_the_loop()
    leaving(bench)
    assert (await asyncio.wait_for(serving, BOUND_S)).code_now is grpc.StatusCode.OK
    assert (bench.forwarder.sent, bench.lane.in_flight) == (["b"], 0)
    bench.lane.queue.leave(turn)


async def test_a_task_whose_call_has_been_sent_on_from_its_queue_cancels_that_where_it_is_cancelled() -> None:
    bench = Bench(OF_A, SaysWhatItWasTold())
    cancelled = asyncio.Event()
    bench.forwarder.begin = lambda owner, call, *_, **__: setattr(call, "cancel_forward", cancelled.set)  # type: ignore[method-assign]
    turn = await bench.lane.queue.hold("k", "holder")
    serving = asyncio.ensure_future(bench.call())
    await turns_of_the_loop()
    leaving(bench)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert cancelled.is_set()
    bench.lane.queue.leave(turn)


async def test_code_that_waits_for_the_turn_of_a_key_that_leaves_is_told_so() -> None:
    bench = Bench(OF_A, SaysWhatItWasTold())
    turn = await bench.lane.queue.hold("k", "holder")
    by_hand = asyncio.ensure_future(bench.lane.queue.hold("k", "by hand"))
    await asyncio.sleep(0)
    leaving(bench)
    with pytest.raises(ForeignKey, match="'k' belongs to shard b"):
        await by_hand
    bench.lane.queue.leave(turn)


async def test_a_new_call_of_a_key_that_leaves_is_sent_on_though_its_turn_is_free() -> None:
    bench = Bench(OF_A, SaysWhatItWasTold([(grpc.StatusCode.OK, ())]))
    leaving(bench)
    assert (await bench.call()).code_now is grpc.StatusCode.OK
    assert bench.forwarder.sent == ["b"]
    with pytest.raises(ForeignKey):
        await bench.lane.queue.hold("k", "by hand")


async def test_a_call_that_was_made_inside_the_running_turn_of_a_key_that_leaves_still_enters() -> None:
    """Sent on it would wait for the key, and the key for the turn in which it was made."""
    bench = Bench(OF_A, SaysWhatItWasTold())
    turn = await bench.lane.queue.hold("k", "holder")
    chain = turn.outgoing_chain("")
    leaving(bench)
    call = await asyncio.wait_for(bench.call(metadata=(("onelane-chain", chain),)), BOUND_S)
    assert (call.code_now, bench.forwarder.sent) == (grpc.StatusCode.OK, [])
    bench.lane.queue.leave(turn)


async def test_a_forwarded_call_goes_on_from_the_shard_that_knows_the_newer_placement() -> None:
    bench = Bench(OF_A, SaysWhatItWasTold([(grpc.StatusCode.OK, ())]))
    leaving(bench)
    assert (await bench.call(forwarded=True, epoch=7)).code_now is grpc.StatusCode.OK
    assert bench.forwarder.sent == ["b"]
    refused = await bench.call(forwarded=True, epoch=8)
    assert refused.code_now is grpc.StatusCode.UNAVAILABLE, "it would go round"


async def test_another_life_of_the_same_shard_is_another_owner() -> None:
    """In a rolling restart the next process of a shard has its name and address."""
    next_life = Member("a", A.address, "a.2.sock", life=3)
    bench = Bench(OF_A, SaysWhatItWasTold([(grpc.StatusCode.OK, ())]))
    bench.lane.change(Handoff(A, OF_A, after(next_life)))
    call = arrive(bench.lane)
    assert call.state in (FORWARDED, DONE)
    assert bench.forwarder.sent == ["a"]
