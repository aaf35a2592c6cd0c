"""Timers neither drift nor pile up, and a key's timers run in its turn and go with it. Time is a manual clock."""

import asyncio
import functools
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

import grpc
import grpc.aio
import pytest
from onelane.errors import ForeignKey, Overloaded
from onelane.shard.timers import RETRY_TURN_S, LoopAlarms, Timers
from onelane.telemetry.stats import Stats
from onelane.testing.clock import ManualClock

from tests.conftest import Where, late_words
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import echo, running


class Turns:
    """The turns of the keys, as far as timers use them: a lock for each, and orders to refuse."""

    def __init__(self) -> None:
        self.locks: dict[str, asyncio.Lock] = {}
        self.refuses: list[Exception] = []

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        if self.refuses:
            raise self.refuses.pop()
        async with self.locks.setdefault(key, asyncio.Lock()):
            yield


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1000.0)


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
async def timers(clock: ManualClock, turns: Turns, stats: Stats) -> AsyncIterator[Timers]:
    timers = Timers("s-0", limit=5, stats=stats, turn=turns.turn, alarms=clock)
    yield timers
    await timers.aclose()


def counts(stats: Stats) -> dict[str, object]:
    return {point.instrument.name: point.value for point in stats.take()}


async def test_every_runs_at_start_plus_n_periods_however_late_each_run_is(timers: Timers, clock: ManualClock) -> None:
    ran: list[float] = []
    timers.every(2.0, lambda: ran.append(clock.now()))
    for _ in range(3):
        clock.jump(2.5)
    assert ran == [1002.5, 1005.0, 1007.5]
    clock.advance(0.5)
    assert ran[3:] == [1008.0], "the grid is where it was"


async def test_what_is_late_runs_once_and_says_how_often_it_was_skipped(
    timers: Timers, clock: ManualClock, stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[float] = []

    def beat() -> None:
        ran.append(clock.now())

    timer = timers.every(1.0, beat)
    clock.jump(7.5)
    assert (ran, timer.skipped, timer.due_at) == ([1007.5], 6, 1008.0)
    assert counts(stats)["onelane.timer.skips"] == 6
    assert "skipped=6 in_all=6" in caplog.text
    clock.jump(3.0)
    assert (timer.skipped, caplog.text.count("timer.late")) == (8, 1), "said at most once a minute"


async def test_every_never_overlaps_itself(timers: Timers, clock: ManualClock) -> None:
    running, ran = 0, 0
    gate = asyncio.Event()

    async def slow() -> None:
        nonlocal running, ran
        running, ran = running + 1, ran + 1
        assert running == 1
        await gate.wait()
        running -= 1

    timer = timers.every(1.0, slow)
    clock.advance(4.5)
    await settle()
    assert ran == 1
    gate.set()
    await settle()
    assert (timer.skipped, timer.due_at) == (3, 1005.0)
    clock.advance(1.0)
    await settle()
    assert ran == 2


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("error", [ValueError("bad beat"), asyncio.CancelledError()])
async def test_an_exception_is_logged_and_counted_and_the_timer_goes_on(
    timers: Timers,
    clock: ManualClock,
    stats: Stats,
    caplog: pytest.LogCaptureFixture,
    *,
    is_async: bool,
    error: BaseException,
) -> None:
    ran = 0

    def plain() -> None:
        nonlocal ran
        ran += 1
        raise error

    async def waiting() -> None:
        plain()

    timers.every(1.0, waiting if is_async else plain)
    for _ in range(3):
        clock.advance(1.0)
        await settle()
    assert (ran, counts(stats)["onelane.timer.errors"]) == (3, 3)
    assert repr(error)[:10] in caplog.text


async def test_a_cancelled_timer_runs_no_more_and_what_runs_goes_on_to_its_end(
    timers: Timers, clock: ManualClock
) -> None:
    steps: list[str] = []

    async def once() -> None:
        steps.append("begun")
        assert timer.cancel()
        await asyncio.sleep(0)
        steps.append("ended")

    timer = timers.every(1.0, once)
    clock.advance(1.0)
    await settle()
    clock.advance(10.0)
    await settle()
    assert (steps, timer.cancel(), timer.is_on) == (["begun", "ended"], False, False)


async def test_later_runs_once_as_a_turn_of_its_key(timers: Timers, clock: ManualClock, turns: Turns) -> None:
    ran: list[str] = []

    async def close_room() -> None:
        assert turns.locks["room"].locked()
        ran.append("closed")

    timer = timers.later("room", 5.0, close_room)
    async with turns.turn("room"):
        clock.advance(5.0)
        await settle()
        assert ran == []
        assert timers.of("room") == (timer,), "it has not begun"
    await settle()
    assert (ran, timers.of("room"), timer.is_on) == (["closed"], (), False)
    assert not turns.locks["room"].locked()


async def test_the_timers_of_a_key_are_listed_and_cancelled(timers: Timers, clock: ManualClock) -> None:
    ran: list[str] = []
    first = timers.later("a b", 5.0, functools.partial(ran.append, "first"))
    second = timers.later("a b", 1.0, functools.partial(ran.append, "second"))
    timers.later("other", 1.0, lambda: None)
    assert timers.of("a b") == (first, second)
    assert first.cancel()
    assert timers.of("a b") == (second,)
    clock.advance(10.0)
    await settle()
    assert (ran, timers.of("a b"), second.cancel()) == (["second"], (), False)


async def test_one_that_is_cancelled_while_it_waits_for_its_turn_leaves_the_queue(
    timers: Timers, clock: ManualClock, turns: Turns
) -> None:
    ran: list[int] = []
    timer = timers.later("k", 1.0, lambda: ran.append(1))
    async with turns.turn("k"):
        clock.advance(1.0)
        await settle()
        assert timer.cancel()
        await settle()
    await settle()
    assert ran == []
    async with turns.turn("k"):
        pass


async def test_timers_are_gone_with_their_key(timers: Timers, clock: ManualClock) -> None:
    ran: list[int] = []
    for _ in range(3):
        timers.later("a/b", 1.0, lambda: ran.append(1))
    timers.drop_foreign(lambda key: key != "a%2Fb")
    clock.advance(2.0)
    await settle()
    assert (ran, timers.of("a/b")) == ([], ())


async def test_a_timer_asks_again_where_too_many_wait_for_its_key(
    timers: Timers, clock: ManualClock, turns: Turns
) -> None:
    ran: list[float] = []
    turns.refuses = [Overloaded("the queue of one key", waiting=3)]
    timer = timers.later("k", 1.0, lambda: ran.append(clock.now()))
    clock.advance(1.0)
    await settle()
    assert timers.of("k") == (timer,)
    clock.advance(RETRY_TURN_S)
    await settle()
    assert ran == [1001.0 + RETRY_TURN_S]


async def test_a_timer_whose_key_lives_elsewhere_by_then_does_not_run(
    timers: Timers, clock: ManualClock, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    turns.refuses = [ForeignKey("k", shard="echo-0", owner="echo-1")]
    timers.later("k", 1.0, lambda: ran.append(1))
    clock.advance(5.0)
    await settle()
    assert (ran, timers.of("k")) == ([], ())
    assert "timer.not_home" in caplog.text


async def test_a_function_of_a_key_that_raises_is_logged_and_gives_its_turn_back(
    timers: Timers, clock: ManualClock, turns: Turns, stats: Stats
) -> None:
    async def broken() -> None:
        raise Overloaded("something of its own", waiting=1)

    timers.later("k", 1.0, broken)
    clock.advance(1.0)
    await settle()
    assert counts(stats)["onelane.timer.errors"] == 1
    assert (timers.of("k"), turns.locks["k"].locked()) == ((), False)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, BaseException, asyncio.CancelledError])
@pytest.mark.parametrize("waits", [False, True], ids=["plain", "async"])
async def test_an_exception_of_any_class_ends_one_run_and_the_timer_goes_on(
    timers: Timers, clock: ManualClock, turns: Turns, stats: Stats, error: type[BaseException], waits: bool
) -> None:
    """As an extension in Rust raises a BaseException, and `sys.exit` SystemExit."""

    def broken() -> None:
        raise error

    async def broken_later() -> None:
        await asyncio.sleep(0)
        raise error

    timers.every(1.0, broken_later if waits else broken)
    timers.later("k", 1.0, broken_later if waits else broken)
    for _ in range(2):
        clock.advance(1.0)
        await settle()
    assert counts(stats)["onelane.timer.errors"] == 3
    assert not turns.locks["k"].locked()


async def test_one_more_than_the_bound_is_refused_and_a_place_is_free_again_once_one_ends(
    timers: Timers, clock: ManualClock, stats: Stats
) -> None:
    every = timers.every(100.0, lambda: None)
    for number in range(4):
        timers.later(number, 1.0, lambda: None)
    assert counts(stats)["onelane.timers"] == 5
    with pytest.raises(Overloaded, match="shard s-0, timers is full: 5 waiting already"):
        timers.every(1.0, lambda: None)
    clock.advance(1.0)
    await settle()
    for number in range(4):
        timers.later(number, 1.0, lambda: None)
    every.cancel()
    timers.every(1.0, lambda: None)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
async def test_impossible_times_are_refused(timers: Timers, seconds: float) -> None:
    with pytest.raises(ValueError, match="expected seconds"):
        timers.every(seconds, lambda: None)
    if seconds:
        with pytest.raises(ValueError, match="expected seconds"):
            timers.later("k", seconds, lambda: None)


async def test_the_shards_end_stops_what_runs_and_drops_the_rest(timers: Timers, clock: ManualClock) -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("stopped")

    timers.every(1.0, endless)
    timers.later("k", 1.0, endless)
    timers.later("k", 9.0, endless)
    clock.advance(1.0)
    await settle()
    await timers.aclose()
    clock.advance(20.0)
    await settle()
    assert (ended, timers.of("k")) == (["stopped"] * 2, ())
    with pytest.raises(Overloaded):
        timers.every(1.0, lambda: None)


async def test_on_the_loops_own_clock_a_timer_is_never_early_and_is_no_part_of_the_call_that_set_it(
    turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="none")
    alarms = LoopAlarms()
    timers = Timers("s-0", limit=5, stats=Stats(), turn=turns.turn)
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    seen: list[str] = []

    async def ring() -> None:
        seen.append(variable.get())
        if len(seen) == 3:
            done.set_result(alarms.now())

    variable.set("of the call")
    with caplog.at_level(logging.WARNING):
        timer = timers.every(0.0155, ring)
        assert await done >= timer.set_at + 3 * 0.0155
    assert set(seen) == {"none"}
    await timers.aclose()


@pytest.mark.slow
async def test_a_timer_of_a_key_holds_its_turn_and_the_shard_refuses_one_of_a_key_that_lives_elsewhere(
    tmp_path: Path,
) -> None:
    with running(tmp_path, echo(2)) as cluster:
        where = Where(cluster)
        own_key, other_key = where.key_of("echo-0"), where.key_of("echo-1")
        await where.home(own_key).Misbehave(EchoRequest(key=own_key, order=f"later {own_key}"))
        await where.wait_begun(own_key)
        code, details = await late_words(lambda: where.home(own_key).Unary(EchoRequest(key=own_key), timeout=0.5))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "held by timer Echo._wait" in details
        await where.home(own_key).Release(EchoRequest(key=own_key))
        await where.home(own_key).Unary(EchoRequest(key=own_key))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await where.home(own_key).Misbehave(EchoRequest(key=own_key, order=f"later {other_key}"))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert f"ForeignKey: the key '{other_key}' belongs to shard echo-1" in cluster.log.read_text()
        await where.close()
