"""Running the calls of a lane: from the first step of a handler to its end.

These functions are not compiled, whatever the rest of the lane is: their frames are what the watchdog
(`shard/lane_stack`) and the list of held turns (`shard/held_turns`) read to say which call runs, and where it stands.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from onelane.core.context import current_call_var
from onelane.core.keys import FieldKey
from onelane.core.placement import Member
from onelane.core.turns import patience_s
from onelane.errors import BadKey, LongKey
from onelane.lane.arrivals import Arrivals
from onelane.lane.forwarding import Forwarding
from onelane.lane.method_entry import Entry
from onelane.lane.refusals import Refusals
from onelane.lane.routing import ARRIVING, Router
from onelane.server import handler, status
from onelane.server.call import Call
from onelane.server.call_state import FORWARDED, RUNNING, WAITING
from onelane.server.listener import Work
from onelane.server.methods import Method
from onelane.server.payloads import bytes_of
from onelane.server.plain_context import PlainContext
from onelane.telemetry.tracer import Tracer


class RunningLane(Protocol):
    """A lane as the functions below see it."""

    name: str
    tracer: Tracer
    draining: bool
    endless: dict[asyncio.Task[Any], Call]
    arrivals: Arrivals
    forwarding: Forwarding
    refusals: Refusals

    @property
    def router(self) -> Router:
        """Which shard owns a key."""

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        """Take one call; see `Lane.arrive`."""

    def resume(self, call: Call) -> Work:
        """Go on with a call whose turn has come."""

    def withdraw(self, call: Call, *, late: bool) -> None:
        """End a call that waits for its turn."""

    def cancel_forward(self, call: Call) -> None:
        """Cancel a call that is forwarded."""

    def check_serves(self, owner: Member, call: Call) -> None:
        """Refuse a call whose owner does not serve now."""

    def count_watch(self, entry: Entry, number: int) -> None:
        """Count a call among the watches instead of among the calls in flight, or the other way round."""

    def end(self, entry: Entry, call: Call, reply: bytes) -> None:
        """Count a call that has ended, and answer it."""


async def serve(lane: RunningLane, method: Method, call: Call, request: bytes | None) -> bytes:
    """`arrive`, and all that follows, for listeners that have a task for each call."""
    work = lane.arrive(method, call, request)
    while call.state is WAITING:
        work = await _wait_turn(lane, call)
    if work is not None:
        await work
    elif call.state is FORWARDED:
        await _wait_forward(lane, call)
    if call.state is RUNNING:
        # Its answer waits until it is on disk.
        await call.turned()
    return call.reply


async def _wait_forward(lane: RunningLane, call: Call) -> None:
    try:
        await call.turned()
    except asyncio.CancelledError:
        lane.cancel_forward(call)
        raise


async def _wait_turn(lane: RunningLane, call: Call) -> Work:
    remaining = call.time_remaining()
    try:
        async with asyncio.timeout(None if remaining is None else patience_s(remaining)):
            await call.turned()
    except TimeoutError:
        if call.state is WAITING:
            lane.withdraw(call, late=True)
    except asyncio.CancelledError:
        if call.state is WAITING:
            lane.withdraw(call, late=False)
        lane.cancel_forward(call)
        raise
    # Its key may have left meanwhile, and the call with it.
    return lane.resume(call) if call.state is WAITING else None


async def run(
    lane: RunningLane, entry: Entry, call: Call, message: Any, work: Coroutine[Any, Any, bytes] | None
) -> None:
    """Run a call to its end. work: None for the `async def` handler of one message and one answer, which nearly
    every call is."""
    # The watchdog finds `lane` and `call` in this frame (shard/lane_stack).
    reply = b""
    try:
        if work is not None:
            reply = await work
            if call.early_status is not None:
                # Its handler has caught the cancellation, and returned.
                call.fail(*call.early_status)
        else:
            method = entry.method
            if call.span is None:
                call.span = lane.tracer.start(method.name, "SERVER", call.parent, remote=True)
            current_call_var.set(call)
            reply = bytes_of(method, call, await method.handler(message, call))
    except BaseException as error:
        if status.settle(call, error, method=entry.method, shard=lane.name, draining=lane.draining):
            raise
    finally:
        lane.end(entry, call, reply)


def run_now(lane: RunningLane, entry: Entry, call: Call, message: Any) -> None:
    """Run a plain `def` handler in one go."""
    # The watchdog finds `lane` and `call` in this frame (shard/lane_stack).
    reply = b""
    method = entry.method
    if call.span is None:
        call.span = lane.tracer.start(method.name, "SERVER", call.parent, remote=True)
    token = current_call_var.set(call)
    try:
        reply = bytes_of(method, call, method.handler(message, PlainContext(call)))
    except BaseException as error:
        status.failed(call, error, method=method, shard=lane.name)
    finally:
        current_call_var.reset(token)
        lane.end(entry, call, reply)


async def handle(lane: RunningLane, entry: Entry, call: Call, message: Any) -> bytes:
    """Run the handler of a stream, or one that interceptors choose."""
    method = entry.method
    if call.span is None:
        call.span = lane.tracer.start(method.name, "SERVER", call.parent, remote=True)
    current_call_var.set(call)
    task = asyncio.current_task() if entry.may_be_endless else None
    if task is not None:
        lane.endless[task] = call
    try:
        if method.choose is not None:
            method = await method.choose(call)
        return await handler.run(method, call, message)
    finally:
        # Also where an interceptor refuses the call.
        if entry.is_watch:
            # Back, because `end` counts down the calls in flight.
            lane.count_watch(entry, -1)
        if task is not None:
            lane.endless.pop(task, None)


async def hold_stream(
    lane: RunningLane, entry: Entry, call: Call, key: str, epoch: int, request: bytes | None
) -> bytes:
    await lane.arrivals.wait(key=key, epoch=epoch)
    return await route_stream(lane, entry, call, request)


async def route_stream(lane: RunningLane, entry: Entry, call: Call, request: bytes | None) -> bytes:
    """Serve a stream whose first message is known where that has the key, or have its owner serve it."""
    while True:
        owner, key, message = lane.router.route(entry, call, request)
        if owner is None:
            if key is not None:
                call.key = key
            return await handle(lane, entry, call, message)
        is_ahead = lane.router.is_ahead(call)
        if owner is not ARRIVING and not is_ahead:
            lane.router.check_hop(call)
            lane.check_serves(owner, call)
            return await lane.forwarding.stream(owner, entry, call, request)
        await lane.arrivals.wait(key=key or "", epoch=call.epoch if is_ahead else 0)


async def peek(lane: RunningLane, entry: Entry, call: Call) -> bytes:
    """Read the first message of a stream, which has the key, and go on from there."""
    rule = entry.method.rule
    assert isinstance(rule, FieldKey)
    first = await call.next_bytes()
    if first is None:
        raise BadKey(f"the stream ended before its first message, which carries the key {rule.paths[0]}")
    call.push_back(first)
    try:
        return await route_stream(lane, entry, call, None)
    except LongKey as error:
        lane.refusals.add(call, error.reason)
        raise
