"""The frames of onelane below user code hold the objects that the watchdog looks for: see `onelane.shard.lane_stack`.

Each handler and timer here reads its own stack, as the watchdog would if it stalled there.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

import grpc.aio
import onelane
import pytest
from onelane.lane.lane import Lane
from onelane.server.call import Call
from onelane.server.plain_context import PlainContext
from onelane.server.user_code import PACKAGE
from onelane.shard.lane_stack import WorkInProgress, work_in_progress
from onelane.shard.timers import Timer
from onelane.testing import Cluster

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

Held = dict[str, set[str]]
"""Function of onelane → the classes of the objects that its frame holds."""


def held(frame: FrameType | None) -> Held:
    """The objects of the contract that the frames of onelane below `frame` hold."""
    holders: Held = {}
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            kinds = [cls for value in frame.f_locals.values() for cls in type(value).__mro__]
            named = {cls.__name__ for cls in kinds if cls in (Call, PlainContext, Timer, Lane)}
            holders.setdefault(frame.f_code.co_qualname, set()).update(named)
        frame = frame.f_back
    return holders


class Probe(echo_pb2_grpc.EchoServicer):
    """Reads the stack of each of its handlers and timers."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.work = WorkInProgress()
        self.holders: Held = {}

    def read_stack(self) -> None:
        self.work, self.holders = work_in_progress(sys._getframe()), held(sys._getframe())

    async def read_stack_later(self) -> None:
        await asyncio.sleep(0)
        self.read_stack()


class AsyncProbe(Probe):
    """With `async def` handlers."""

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        if request.order == "every":
            self.shard.every(1.0, self.read_stack)
        elif request.order == "every, async":
            self.shard.every(1.0, self.read_stack_later)
        elif request.order == "later":
            self.shard.later(request.key, 1.0, self.read_stack)
        elif request.order == "later, async":
            self.shard.later(request.key, 1.0, self.read_stack_later)
        else:
            self.read_stack()
        return EchoReply()

    async def Misbehave(self, request: EchoRequest, context: Any) -> EchoReply:
        await self.read_stack_later()
        return EchoReply()

    async def Download(self, request: EchoRequest, context: Any) -> AsyncIterator[EchoReply]:
        yield EchoReply()
        self.read_stack()

    async def Upload(self, requests: AsyncIterator[EchoRequest], context: Any) -> EchoReply:
        async for _ in requests:
            self.read_stack()
        return EchoReply()

    async def Chat(self, requests: AsyncIterator[EchoRequest], context: Any) -> AsyncIterator[EchoReply]:
        async for _ in requests:
            self.read_stack()
            yield EchoReply()


class PlainProbe(Probe):
    """With plain `def` handlers."""

    def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        self.read_stack()
        return EchoReply()

    def Download(self, request: EchoRequest, context: Any) -> Iterator[EchoReply]:
        yield EchoReply()
        self.read_stack()

    def Upload(self, requests: Iterator[EchoRequest], context: Any) -> EchoReply:
        for _ in requests:
            self.read_stack()
        return EchoReply()

    def Chat(self, requests: Iterator[EchoRequest], context: Any) -> Iterator[EchoReply]:
        for _ in requests:
            self.read_stack()
            yield EchoReply()


class Interceptor(grpc.aio.ServerInterceptor):
    """Changes nothing."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return await continuation(handler_call_details)


async def probed(service: Any, method: str, order: str = "", **settings: Any) -> Probe:
    """The second shard's service, after a call of a method, and two seconds of its timers."""
    async with Cluster(service, shards=2, settings=settings) as cluster:
        key = next(key for key in map(str, range(200)) if cluster.owner_of(key) == 1)
        request = EchoRequest(key=key, order=order)
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        streams_request, streams_response = method in ("Upload", "Chat"), method in ("Download", "Chat")
        call = getattr(stub, method)(iter([request]) if streams_request else request)
        if streams_response:
            assert len([reply async for reply in call]) == 1
        else:
            await call
        if order:
            await cluster.advance(2.0)
        probe: Probe = cluster.service(service, shard=1)
        return probe


def check(probe: Probe, kind: str, function: str, *classes: type) -> None:
    """function: of onelane, whose frame shall hold an object of one of the classes."""
    names = [cls.__name__ for cls in classes]
    assert probe.holders.get(function, set()) & set(names), (
        f"{function} must hold its {' or '.join(names)} in a local variable while a {kind} runs: the watchdog finds it "
        f"there when the lane stalls (onelane/shard/lane_stack.py). What the frames hold: {probe.holders}"
    )


METHODS = ["Unary", "Download", "Upload", "Chat"]


@pytest.mark.parametrize("method", [*METHODS, "Misbehave"])
async def test_the_frames_of_an_async_handler_hold_call_and_lane(method: str) -> None:
    probe = await probed(AsyncProbe, method)
    check(probe, f"async {method} handler", "run", Call)
    check(probe, f"async {method} handler", "run", Lane)
    assert probe.work.call is not None
    assert (probe.work.call.method, probe.work.shard) == (f"/echo.v1.Echo/{method}", "app-1")


@pytest.mark.parametrize("method", METHODS)
async def test_so_do_those_behind_interceptors(method: str) -> None:
    probe = await probed(AsyncProbe, method, interceptors=[f"{__name__}:Interceptor"])
    check(probe, f"{method} handler behind an interceptor", "run", Call)
    check(probe, f"{method} handler behind an interceptor", "run", Lane)
    assert (probe.work.call is not None, probe.work.shard) == (True, "app-1")


async def test_the_frames_of_a_plain_handler_hold_call_and_lane() -> None:
    probe = await probed(PlainProbe, "Unary")
    check(probe, "plain unary handler", "run_now", Call)
    check(probe, "plain unary handler", "run_now", Lane)
    assert probe.work.call is not None
    assert (probe.work.call.method, probe.work.shard) == ("/echo.v1.Echo/Unary", "app-1")


@pytest.mark.parametrize(
    ("method", "function"),
    [
        ("Download", "stream.<locals>.produce"),
        ("Upload", "_plain_stream.<locals>.<lambda>"),
        ("Chat", "stream.<locals>.produce"),
    ],
)
async def test_the_frames_of_a_plain_streaming_handler_hold_the_call_in_its_greenlet(
    method: str, function: str
) -> None:
    probe = await probed(PlainProbe, method)
    check(probe, f"plain {method} handler", function, Call, PlainContext)
    assert probe.work.call is not None
    assert probe.work.call.method == f"/echo.v1.Echo/{method}"


@pytest.mark.parametrize(
    ("order", "function"),
    [
        ("every", "Timers._run_every"),
        ("every, async", "Timers._finish_every"),
        ("later", "Timers._run_in_turn"),
        ("later, async", "Timers._run_in_turn"),
    ],
)
async def test_the_frames_of_a_timer_hold_it(order: str, function: str) -> None:
    probe = await probed(AsyncProbe, "Unary", order)
    check(probe, f"timer ({order})", function, Timer)
    assert probe.work.timer is not None
    assert probe.work.timer.name.startswith("Probe.read_stack")


async def test_outside_of_a_call_there_is_no_work() -> None:
    assert work_in_progress(sys._getframe()) == WorkInProgress()


def test_a_lane_that_waits_has_no_frame_and_no_work() -> None:
    assert work_in_progress(None) == WorkInProgress()
