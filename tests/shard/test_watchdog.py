"""A lane whose event loop does not iterate is noticed from outside, with the place and the cause."""

import asyncio
import contextlib
import ctypes
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
from onelane.core import keys
from onelane.core.clock import SystemClock
from onelane.core.placement import Member, Placement
from onelane.core.turns import Turns
from onelane.lane.admission import Admission
from onelane.lane.lane import Lane
from onelane.lane.routing import Router
from onelane.lane.turn_queue import TurnQueue
from onelane.server.methods import Method
from onelane.shard.lane_thread import LaneThread
from onelane.shard.timers import Timers
from onelane.shard.watchdog import Watchdog, WatchedShard, tell_starved
from onelane.telemetry.sampling import Sampler
from onelane.telemetry.stalls import BLOCKED, COMPUTING, INTERPRETER, MAX_LOGGED, STARVED, Sample, Stall
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer
from onelane.testing.listener import MemoryCall

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.lane.test_lane import SaysWhatItWasTold

STALL_S = 0.05
A = Member("a", "127.0.0.1:1001", "a.sock")


def block(seconds: float) -> None:
    time.sleep(seconds)


def compute(cpu_s: float) -> None:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        pass


class UndisturbedThread(LaneThread):
    """On a machine that does nothing else: time is what this process has computed."""

    def now(self) -> float:
        return time.process_time()

    def delay_s(self) -> float:
        return 0.0


class DelayedThread(LaneThread):
    """Waits for a CPU all the time until `until`, and never after."""

    until = float("inf")

    def delay_s(self) -> float:
        return min(self.now(), self.until)


class StarvedThread(LaneThread):
    """Is ready to run all the time, and has a CPU for a tenth of it."""

    def sample(self) -> Sample:
        now = self.now()
        return Sample(now, cpu_s=0.1 * now, delay_s=0.9 * now, others_s=0.0)

    def delay_s(self) -> float:
        return 0.9 * self.now()

    def state(self) -> str:
        return "R"


class Bench:
    """A lane named `a` with a watchdog; `stalls` gets each stall once it is over."""

    def __init__(self, measure: Callable[[], LaneThread] = LaneThread) -> None:
        self.watchdog = Watchdog(may_exit=False, measure=measure)
        self.stalls: asyncio.Queue[Stall] = asyncio.Queue()
        self.tracer = Tracer(
            shard="a", sampler=Sampler(parent_based=False, ratio=1.0), clock=SystemClock(), rng=Random(1)
        )
        router = Router("a", Placement(1, (A,)))
        turns = Turns("a", draw=iter(range(1, 99)).__next__, per_key=1, in_all=9)
        self.lane = Lane(
            router=router,
            queue=TurnQueue(turns, router),
            admission=Admission("a", max_in_flight=9, max_late_s=0.05),
            forwarder=SaysWhatItWasTold(),
            stats=Stats(),
            tracer=self.tracer,
        )

    def watch(self, shard: str = "a", on_stall: Callable[[Stall], None] | None = None) -> None:
        take = on_stall or self.stalls.put_nowait
        packages = frozenset({"tests"})
        watched = WatchedShard(shard, STALL_S, None, packages, lambda: self.lane.received, lambda stall, _: take(stall))
        self.watchdog.attend(watched)

    async def call(self, handler: Any) -> None:
        rule = keys.field_key(EchoRequest.DESCRIPTOR, ["key"])
        is_async = asyncio.iscoroutinefunction(handler)
        self.lane.add(
            Method("/t.T/M", handler, is_async, False, False, EchoRequest.FromString, EchoReply.SerializeToString, rule)
        )
        call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
        method = self.lane.entries["/t.T/M"].method
        await self.lane.serve(method, call, EchoRequest(key="k").SerializeToString())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    watched = Bench()
    watched.watch()
    yield watched
    watched.watchdog.leave("a")


@pytest.fixture
async def undisturbed() -> AsyncIterator[Bench]:
    """What a thread computes is all that happens, however little the machine gives it."""
    watched = Bench(UndisturbedThread)
    watched.watch()
    yield watched
    watched.watchdog.leave("a")


async def stall_in(function: str, bench: Bench) -> Stall:
    """The stall of this function. On a busy machine others may come before, in which the lane had no CPU."""
    while True:
        stall = await bench.stalls.get()
        if stall.function == function:
            return stall
        assert stall.kind == STARVED, stall


def block_a_moment() -> None:
    block(0.08)


async def stall_until_seen(bench: Bench, stall: Callable[[], Any] = block_a_moment) -> Stall:
    """Stall for a moment, and again where the machine kept the watchdog from looking; the stall that it saw."""
    while True:
        stall()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STALL_S):
                return await bench.stalls.get()


async def until_kind(kind: str, bench: Bench, stall: Callable[[], Any]) -> Stall:
    """Stall until the watchdog sees that kind: on a busy machine it may see other kinds first, or not look in time."""
    while True:
        stall()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STALL_S):
                while (latest := await bench.stalls.get()).kind != kind:
                    pass
                return latest


async def test_a_blocked_lane_is_logged_with_file_line_function_method_and_trace(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: EchoRequest, context: Any) -> EchoReply:
        block(0.3)
        return EchoReply()

    began_ns = time.time_ns()
    await bench.call(handler)
    stall = await stall_in("block", bench)
    (span,) = bench.tracer.take()
    assert (stall.kind, stall.method, stall.trace_id) == (BLOCKED, "t.T/M", span.context.trace_id)
    line = block.__code__.co_firstlineno + 1
    assert (stall.where, stall.function) == (f"{__file__}:{line}", "block")
    events = [(name, attributes) for name, attributes, _ in span.events or ()]
    assert events == [("onelane.stall", {"onelane.stall.at": f"{__file__}:{line} block"})]
    # From a look on that came half a STALL_S after one that saw nothing, and by two of these later than it should.
    assert stall.seconds > 0.3 - 1.5 * STALL_S
    # At least a part of it was in this call.
    assert began_ns - stall.seconds * 1e9 <= stall.at_ns <= time.time_ns()
    at = re.escape(stall.where)
    assert len(re.findall(rf"lane\.stalled shard=a kind=blocked for_ms=\d+ at={at}", caplog.text)) == 1
    assert f"lane.turns_again shard=a kind=blocked after_ms={int(stall.seconds * 1000)} at=" in caplog.text


async def test_a_stall_is_logged_while_it_lasts(bench: Bench) -> None:
    """And not only once it is over: a lane may never iterate again."""
    logged = threading.Event()

    class SetsEvent(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "kind=blocked" in record.getMessage():
                logged.set()

    handler = SetsEvent()
    logging.getLogger("onelane.watchdog").addHandler(handler)
    try:
        assert logged.wait(BOUND_S), "this blocks the loop until the stall is logged"
    finally:
        logging.getLogger("onelane.watchdog").removeHandler(handler)
    stall = await stall_in("test_a_stall_is_logged_while_it_lasts", bench)
    assert stall.kind == BLOCKED
    assert "threading.py" in stall.innermost


async def test_what_began_without_a_cpu_is_told_as_what_it_is_while_it_lasts() -> None:
    """A lane that hangs is not hidden by a moment in which the machine, or a stop of the process, held it up."""
    logged = threading.Event()

    class SetsEvent(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "lane.stalled" in record.getMessage() and "kind=blocked" in record.getMessage():
                logged.set()

    bench, handler = Bench(DelayedThread), SetsEvent()
    bench.watch()
    logging.getLogger("onelane.watchdog").addHandler(handler)
    try:
        DelayedThread.until = time.monotonic() + 4 * STALL_S
        assert logged.wait(BOUND_S), "this blocks the loop until the stall is logged"
    finally:
        logging.getLogger("onelane.watchdog").removeHandler(handler)
        DelayedThread.until = float("inf")
        bench.watchdog.leave("a")


async def test_a_lane_that_waits_for_a_cpu_is_starved_also_where_the_watchdog_comes_late() -> None:
    """What the lane had waited until the late look counts as well: else it has computed, for all that is known."""
    bench = Bench(StarvedThread)
    bench.watch()
    # C code that keeps the interpreter, so that the watchdog comes late.
    keep = ctypes.PyDLL(None).usleep
    try:
        for _ in range(3):
            assert (await stall_until_seen(bench, lambda: keep(200_000))).kind == STARVED
    finally:
        bench.watchdog.leave("a")


async def test_code_that_computes_is_distinguished_from_code_that_waits(undisturbed: Bench) -> None:
    stall = await until_kind(COMPUTING, undisturbed, lambda: compute(0.2))
    assert stall.function == "compute"


async def test_c_code_that_holds_the_interpreter_is_reported_once_it_releases_it(undisturbed: Bench) -> None:
    stall = await until_kind(COMPUTING, undisturbed, lambda: sum(range(20_000_000)))
    while not stall.function:
        # On a busy machine the lane may be idle again before the watchdog has the interpreter.
        stall = await until_kind(COMPUTING, undisturbed, lambda: sum(range(20_000_000)))
    assert stall.function.endswith("<lambda>")
    assert stall.seconds > STALL_S


async def test_a_thread_that_holds_the_interpreter_is_the_cause_and_is_named(undisturbed: Bench) -> None:
    over = threading.Event()

    def compute_in_c() -> None:
        while not over.is_set():
            sum(range(10_000_000))

    helper = threading.Thread(target=compute_in_c, name="helper-1")
    helper.start()
    try:
        while (stall := await undisturbed.stalls.get()).kind != INTERPRETER:
            pass
    finally:
        over.set()
        helper.join()
    assert any(other.startswith("helper-1 at") and "compute_in_c" in other for other in stall.others), stall


async def test_a_lane_that_waits_for_a_busy_thread_is_blocked(bench: Bench) -> None:
    def start() -> None:
        helper = threading.Thread(target=compute, args=(0.3,))
        helper.start()
        helper.join()

    stall = await until_kind(BLOCKED, bench, start)
    assert stall.function.endswith("start")


async def test_a_timer_that_stalls_is_named(bench: Bench) -> None:
    stats = Stats()
    timers = Timers("a", limit=9, stats=stats, turn=lambda key: asyncio.Lock())
    timers.every(0.001, lambda: block(0.2))
    stall = await stall_in("block", bench)
    await timers.aclose()
    assert stall.method == "timer test_a_timer_that_stalls_is_named.<locals>.<lambda>"


async def test_at_most_five_stalls_are_logged_and_all_are_counted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kinds = [(await stall_until_seen(bench)).kind for _ in range(MAX_LOGGED + 3)]
    starved = kinds.count(STARVED)
    assert caplog.text.count("lane.stalled") == min(MAX_LOGGED, len(kinds) - starved)
    assert bool(caplog.text.count("lane.starved")) == bool(starved)


def test_a_starved_lane_is_told_once_a_minute_as_info_without_empty_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shard = WatchedShard("a", STALL_S, None, frozenset(), lambda: 0, lambda *_: None)
    stall = Stall(STARVED, seconds=0.25, at_ns=0, method="echo.v1.Echo/Unary")
    assert [tell_starved(shard, stall, now) for now in (0.0, 1.0, 59.0, 60.0)] == [True, False, False, True]
    line = "lane.starved shard=a kind=starved for_ms=250 method=echo.v1.Echo/Unary"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", line),
        ("INFO", f"{line} times_untold=2"),
    ]


async def test_a_lane_that_iterates_is_no_stall(bench: Bench) -> None:
    """Neither busy in small steps, nor idle."""
    pauses = 0
    began = turned = time.monotonic()
    while turned - began < 0.3:
        await asyncio.sleep(0)
        pauses += time.monotonic() - turned > STALL_S / 2
        turned = time.monotonic()
    await asyncio.sleep(0.2)
    seen: list[Stall] = []
    while not seen or seen[-1].function != "block":
        seen.append(await stall_until_seen(bench))
    # Only where the machine gave the lane no CPU for a while may another have come before.
    assert len([stall for stall in seen[:-1] if stall.kind != STARVED]) <= pauses


async def test_one_thread_watches_for_all_shards_of_a_loop_and_ends_with_the_last(bench: Bench) -> None:
    def threads() -> int:
        return sum(thread.name == "onelane-watchdog" for thread in threading.enumerate())

    others: list[Stall] = []
    bench.watch("b", others.append)
    assert threads() == 1

    async def handler(request: EchoRequest, context: Any) -> EchoReply:
        block(0.2)
        return EchoReply()

    await bench.call(handler)
    assert (await stall_in("block", bench)).method == "t.T/M"
    assert [stall for stall in others if stall.kind != STARVED] == [], "the call was one of a's"
    bench.watchdog.leave("b")
    bench.watchdog.leave("a")
    assert threads() == 0
