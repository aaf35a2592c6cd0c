"""Code of the shard that takes a turn by hand, and calls that wait for one, in one queue."""

import asyncio
from typing import Any

import pytest
from onelane.core.placement import Member, Placement
from onelane.core.turns import Turn, Turns
from onelane.errors import ForeignKey, Overloaded
from onelane.lane.lane import Waiting
from onelane.lane.routing import Router
from onelane.lane.turn_queue import AT_ONCE, HeldTurn, TurnQueue
from onelane.testing.listener import MemoryCall

from tests.function_calls import function_calls

A = Member("a", "127.0.0.1:1001", "a.sock")


def a_queue(*, owner: Member = A, per_key: int = 500) -> TurnQueue:
    router = Router("a", Placement(7, (owner,)))
    return TurnQueue(Turns("a", draw=iter(range(1, 99)).__next__, per_key=per_key, in_all=1000), router)


async def test_waiters_get_the_turn_one_after_another_in_the_order_they_came() -> None:
    queue = a_queue()
    first = await queue.hold("k", "first")
    waiting = [asyncio.ensure_future(queue.hold("k", str(number))) for number in range(3)]
    await asyncio.sleep(0)
    turn = first
    for task in waiting:
        queue.leave(turn)
        turn = await task
        assert [other.done() for other in waiting].count(True) == waiting.index(task) + 1
    queue.leave(turn)
    assert queue.turns.held == {}


async def test_the_turn_of_a_key_that_another_shard_owns_is_refused() -> None:
    with pytest.raises(ForeignKey):
        await a_queue(owner=Member("b", "127.0.0.1:1002", "b.sock")).hold("k", "timer")


async def test_a_waiter_beyond_the_bound_is_refused_at_once() -> None:
    queue = a_queue(per_key=1)
    await queue.hold("k", "holder")
    waiting = asyncio.ensure_future(queue.hold("k", "waiter"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await queue.hold("k", "one too many")
    waiting.cancel()


async def test_a_waiter_that_is_closed_leaves_the_queue() -> None:
    """As a coroutine is whose task nobody keeps: no turn may be given to it, or the key is locked for good."""
    queue = a_queue()
    turn = await queue.hold("k", "holder")
    waiting = queue.hold("k", "waiter")
    waiting.send(None)
    waiting.close()
    queue.leave(turn)
    await asyncio.sleep(0)
    assert (queue.turns.held, queue.turns.waiting) == ({}, 0)


async def test_a_waiter_that_is_closed_when_its_turn_has_come_passes_it_on() -> None:
    queue = a_queue()
    turn = await queue.hold("k", "holder")
    waiting = queue.hold("k", "waiter")
    waiting.send(None)
    queue.leave(turn)
    await asyncio.sleep(0)
    waiting.close()
    assert queue.turns.held == {}


async def test_a_turn_that_is_left_in_another_context_is_free() -> None:
    """As in a generator that is closed by the garbage collector, or whose steps run in a task each."""
    queue = a_queue()
    held = HeldTurn(queue, "k")
    await asyncio.create_task(held.__aenter__())
    assert list(queue.turns.held) == ["k"]
    await asyncio.create_task(held.__aexit__())
    assert queue.turns.held == {}


async def test_a_turn_is_entered_once_and_left_once() -> None:
    queue = a_queue()
    held = HeldTurn(queue, "k")
    async with held:
        with pytest.raises(RuntimeError, match="'k' is entered already"):
            await held.__aenter__()
    await held.__aexit__()
    assert queue.turns.held == {}


async def test_a_waiter_that_is_cancelled_leaves_the_queue() -> None:
    queue = a_queue()
    turn = await queue.hold("k", "holder")
    waiting = asyncio.ensure_future(queue.hold("k", "waiter"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    queue.leave(turn)
    assert (queue.turns.held, queue.turns.waiting) == ({}, 0)


async def test_a_waiter_that_is_cancelled_in_the_turn_in_which_its_turn_comes_passes_it_on() -> None:
    queue = a_queue()
    turn = await queue.hold("k", "holder")
    waiting = asyncio.ensure_future(queue.hold("k", "cancelled"))
    last = asyncio.ensure_future(queue.hold("k", "last"))
    await asyncio.sleep(0)
    queue.leave(turn)
    await asyncio.sleep(0)  # It has been given the turn, and has not run yet.
    waiting.cancel()
    turn = await last
    assert (queue.turns.holder("k"), waiting.cancelled()) == ("last", True)
    queue.leave(turn)


async def test_a_long_queue_is_no_deep_stack_and_lets_the_loop_turn_in_between() -> None:
    queue = a_queue()
    turn = await queue.hold("k", "holder")
    served: list[int] = []

    async def waiter(number: int) -> None:
        mine: Turn = await queue.hold("k", str(number))
        served.append(number)
        queue.leave(mine)

    tasks = [asyncio.ensure_future(waiter(number)) for number in range(4 * AT_ONCE)]
    await asyncio.sleep(0)
    queue.leave(turn)
    await asyncio.gather(*tasks)
    assert served == list(range(4 * AT_ONCE))


async def test_a_late_call_is_told_the_holder_and_its_own_callers() -> None:
    queue = a_queue()
    turn = await queue.hold("k", "t.T/Slow")
    chain = turn.outgoing_chain("")
    text = queue.why_late("t.T/M", "k", chain)
    assert "t.T/M on shard a waited for the turn of its key, held by t.T/Slow" in text
    assert text.endswith("its own callers hold a/t.T/Slow")


async def test_a_call_that_cannot_be_started_does_not_stop_the_queue() -> None:
    class Faulty(MemoryCall):
        def proceed(self) -> None:
            raise ValueError("cannot be started")

    loop, errors = asyncio.get_running_loop(), list[Any]()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    queue = a_queue()
    first, other = await queue.hold("k", "holder"), await queue.hold("l", "holder of another key")
    call = Faulty("/t.T/M", (), trusted=False, deadline_s=None)
    call.state = call.state.wait
    assert queue.turns.enter("k", "t.T/M", "", call) is None
    waiting = asyncio.ensure_future(queue.hold("l", "waiter"))
    await asyncio.sleep(0)
    queue.leave(first)
    queue.leave(other)
    queue.leave(await waiting)
    loop.set_exception_handler(before)
    assert [str(error) for error in errors] == ["cannot be started"]


async def test_a_call_takes_few_steps_through_the_queue() -> None:
    """Each call of a busy key pays for them."""

    class InLine(MemoryCall):
        def proceed(self) -> None:
            assert self.turn is not None
            queue.leave(self.turn)

    queue = a_queue()
    turn = await queue.hold("k", "holder")
    calls = [InLine("/t.T/M", (), trusted=False, deadline_s=None) for _ in range(AT_ONCE)]
    for call in calls:
        call.state = call.state.wait
    nothing: Any = None
    with function_calls() as steps:
        for call in calls:
            assert queue.turns.enter("k", "t.T/M", "", call) is None
            call.waiting = Waiting(nothing, "k", nothing, b"", nothing)
        queue.leave(turn)
        await asyncio.sleep(0)
    assert not queue.turns.held
    assert steps.count / AT_ONCE <= 18
