"""The output gate: what leaves when. Each row of decision 0024 is one test; the store is in the test's hands."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.lane.counting import READ, WRITE, Counted, counted_cluster, status_of


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    async with counted_cluster() as counted:
        yield counted


async def test_an_answer_leaves_when_its_change_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k")
        await counted.committing()
        assert not call.done()
    assert (await call).seen == 2


async def test_an_error_status_leaves_when_the_change_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k", "abort")
        await counted.committing()
        assert not call.done()
    assert await status_of(call) == "NOT_FOUND"
    assert await counted.write("k") == 3


async def test_the_answer_of_a_read_waits_for_the_change_that_it_has_seen(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        write = counted.call(WRITE, "k")
        await counted.committing()
        read = counted.call(READ, "k", text="read")
        # A read of another key rests on nothing, and overtakes it.
        await counted.call(READ, "other")
        assert [read.done(), write.done()] == [False, False]
    assert (await read).seen == 2


async def test_the_lane_runs_the_next_turn_of_the_key_while_the_commit_runs(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        calls = [counted.call(WRITE, "k", text=str(number)) for number in range(5)]
        await counted.began("0", "1", "2", "3", "4")
        await counted.committing()
        assert not any(call.done() for call in calls)
    assert [(await call).seen for call in calls] == [2, 3, 4, 5, 6]
    assert len(counted.store.commits) <= 2


async def test_a_turn_that_changes_nothing_is_answered_at_once(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        assert (await counted.call(READ, "k")).seen == 1
    assert counted.store.commits == []


async def test_what_a_turn_publishes_leaves_when_the_turn_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k", "publish news")
        await counted.committing()
        assert counted.service.heard == []
    await call
    assert counted.service.heard == ["news"]


async def test_what_a_failed_turn_publishes_never_leaves(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.fails("commit"):
        assert await status_of(counted.call(WRITE, "k", "publish news")) == "UNAVAILABLE"
    await counted.write("k", "publish later news")
    assert counted.service.heard == ["later news"]


@pytest.mark.parametrize("way", ["call", "stub"])
async def test_a_call_made_inside_a_turn_leaves_at_once(counted: Counted, way: str) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        call = counted.call(WRITE, "k", f"{way} other", text="outer")
        await counted.began("outer", "inner")
        await counted.committing()
        assert not call.done()
    await call


@pytest.mark.parametrize("way", ["call", "stub"])
async def test_a_call_made_inside_a_later_turn_waits_for_the_earlier_one(counted: Counted, way: str) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        first = counted.call(WRITE, "k", text="first")
        await counted.committing()
        later = counted.call(READ, "k", f"{way} other", text="later")
        await counted.began("first", "later")
        await counted.call(READ, "other", text="beside")
        await counted.began("beside")
    await asyncio.gather(first, later)
    assert counted.service.began == ["inner"]


@pytest.mark.parametrize("way", ["call", "stub"])
async def test_a_call_inside_a_later_turn_is_not_sent_where_the_earlier_one_fails(counted: Counted, way: str) -> None:
    await counted.fresh("k", "other")
    with counted.store.fails("commit"):
        with counted.store.held():
            first = counted.call(WRITE, "k", text="first")
            await counted.committing()
            later = counted.call(READ, "k", f"{way} other", text="later")
            await counted.began("first", "later")
        assert [await status_of(call) for call in (first, later)] == ["UNAVAILABLE"] * 2
    assert counted.service.began == []


async def test_a_call_in_a_circle_to_its_own_key_is_answered_inside_the_turn(counted: Counted) -> None:
    await counted.fresh("k")
    assert await counted.write("k", "call k") == 2


async def test_a_turn_by_hand_ends_when_it_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        answers = counted.stub.Download(EchoRequest(key="k"), timeout=BOUND_S)
        assert (await answers.read()).seen == 2
        after = asyncio.ensure_future(answers.read())
        await counted.committing()
        assert not after.done()
    assert (await after).text == "after"


async def test_a_turn_by_hand_begins_when_those_before_it_are_on_disk(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        write = counted.call(WRITE, "k", text="write")
        await counted.committing()
        answers = counted.stub.Download(EchoRequest(key="k", text="by hand"), timeout=BOUND_S)
        inside = asyncio.ensure_future(answers.read())
        await counted.call(READ, "other", text="beside")
        await counted.began("write", "beside")
        assert not inside.done()
    assert ((await inside).seen, (await write).seen) == (3, 2)


async def test_a_turn_by_hand_that_is_not_kept_raises(counted: Counted) -> None:
    await counted.fresh("k")
    answers = counted.stub.Download(EchoRequest(key="k"), timeout=BOUND_S)
    with counted.store.fails("commit"):
        await answers.read()
        with pytest.raises(grpc.aio.AioRpcError, match="not kept"):
            await answers.read()
    assert await counted.write("k") == 2


async def test_what_rests_on_a_failed_commit_is_unavailable_and_never_seen(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.fails("commit"):
        with counted.store.held():
            calls = [counted.call(WRITE, "k", "abort")]
            await counted.committing()
            calls += [counted.call(WRITE, "k"), counted.call(READ, "k", text="last")]
            await counted.call(READ, "other")
        assert [await status_of(call) for call in calls] == ["UNAVAILABLE"] * 3
    # The trailers that the first one's handler chose are not sent either.
    assert calls[0].exception().trailing_metadata() == ()  # type: ignore[union-attr]
    assert await counted.write("k") == 2


async def test_a_turn_that_runs_while_the_earlier_one_fails_fails_with_it(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.fails("commit"):
        with counted.store.held():
            first = counted.call(WRITE, "k", text="first")
            await counted.committing()
            running = counted.call(READ, "k", "wait", text="running")
            waiting = counted.call(WRITE, "k", text="waiting")
            await counted.began("first", "running")
        assert await status_of(first) == "UNAVAILABLE"
    counted.service.may_go["k"].set()
    assert await status_of(running) == "UNAVAILABLE"
    # It had the turn after them, and began with what is on disk.
    assert (await waiting).seen == 2


async def test_a_key_is_loaded_before_its_first_turn(counted: Counted) -> None:
    await counted.fresh("k")
    await counted.cluster.crash(0)
    assert await counted.write("k") == 2


async def test_a_store_that_fails_refuses_the_first_turn_and_the_next_one_tries_again(counted: Counted) -> None:
    await counted.fresh("k")
    await counted.cluster.crash(0)
    with counted.store.fails("load"):
        assert await status_of(counted.call(WRITE, "k")) == "UNAVAILABLE"
    assert await counted.write("k") == 2


async def test_a_value_that_cannot_be_encoded_fails_its_turn_and_names_it(counted: Counted) -> None:
    await counted.fresh("k")
    with pytest.raises(grpc.aio.AioRpcError, match="keyed 'counts', key 'k'"):
        await counted.write("k", "bad")
    assert await counted.write("k") == 2


async def test_a_client_that_goes_away_undoes_nothing(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k")
        await counted.committing()
        call.cancel()
    assert await counted.write("k") == 3


async def test_a_call_that_is_cancelled_while_its_key_is_loaded_leaves_the_turn(counted: Counted) -> None:
    calls = [counted.call(WRITE, "new") for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()
    assert await counted.write("new") >= 3


async def test_a_key_that_is_lost_between_two_turns_is_loaded_before_the_second(counted: Counted) -> None:
    """The next call has been given the turn already, and has not begun."""
    await counted.fresh("k")
    lane = counted.lane
    turn = await lane.queue.hold("k", "the test")
    waiting = counted.call(WRITE, "k", text="waiting")
    await counted.call(READ, "other", text="beside")
    await counted.began("beside")
    counted.service.counts["k"] = 100
    lane.queue.leave(turn)
    assert lane.kept is not None
    lane.kept.journal.lose("k")
    assert (await waiting).seen == 2


async def test_a_timers_turn_is_kept(counted: Counted) -> None:
    await counted.write("k", "later")
    await counted.cluster.advance(1)
    await counted.commits_of(2)
    await counted.cluster.crash(0)
    assert await counted.write("k") == 3


async def test_a_timers_turn_that_is_not_kept_counts_as_one_that_failed(counted: Counted) -> None:
    await counted.write("k", "later")
    with counted.store.fails("commit"):
        await counted.cluster.advance(1)
        await counted.commits_of(2)
        await counted.counts("onelane.timer.errors")
    assert await counted.write("k") == 2


async def test_a_timer_whose_key_cannot_be_loaded_runs_later(counted: Counted) -> None:
    await counted.write("k", "later")
    assert counted.lane.kept is not None
    counted.lane.kept.journal.drop("k")
    with counted.store.fails("load"):
        await counted.cluster.advance(1)
        await counted.counts("onelane.state.failures")
    for _ in range(30):
        await counted.cluster.advance(1)
    assert await counted.write("k") == 3


async def test_a_drain_waits_for_answers_that_wait(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.held():
        call = counted.call(WRITE, "k")
        await counted.committing()
        drain = asyncio.ensure_future(counted.lane.drain())
        await asyncio.sleep(0)
        assert not drain.done()
    await asyncio.wait_for(drain, BOUND_S)
    assert (await call).seen == 2


async def test_the_waits_for_the_store_are_spans_of_their_call(counted: Counted) -> None:
    await counted.write("k")
    await counted.cluster.stats("onelane.calls")
    spans = {span.name: span for span in counted.cluster.spans}
    assert {"load", "commit"} <= spans.keys()
    served = next(span for span in counted.cluster.spans if span.kind == "SERVER")
    assert spans["commit"].parent_id == served.span_id
