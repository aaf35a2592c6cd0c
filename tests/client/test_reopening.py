"""A server stream whose key has moved is opened again, and its reader goes on; within bounds, and nothing else is."""

import asyncio
import gc
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.client import reopening
from onelane.client.retry import SAFE_RETRY
from onelane.core.context import TaskContext, current_call_var
from onelane.core.moved import MOVED

from tests.bounds import BOUND_S
from tests.follow.scripted import HOLD, UNAVAILABLE, ChangingTopology, Ends, ScriptedStreams, scripted_streams
from tests.follow.v1 import follow_pb2_grpc
from tests.follow.v1.follow_pb2 import FollowRequest


class CountingStreams(grpc.aio.UnaryStreamClientInterceptor):
    """Counts the calls that pass."""

    def __init__(self) -> None:
        self.calls = 0

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self.calls += 1
        return await continuation(client_call_details, request)


K = FollowRequest(key="k", text="hello")


@pytest.fixture
async def server() -> AsyncIterator[tuple[ScriptedStreams, str]]:
    async with scripted_streams() as serving:
        yield serving


def watch(channel: Any, **arguments: Any) -> Any:
    return follow_pb2_grpc.FollowStub(channel).Watch(K, **arguments)


async def texts(call: Any, count: int) -> list[str]:
    """The next so many; by the iterator."""
    stream = aiter(call)
    async with asyncio.timeout(BOUND_S):
        return [(await anext(stream)).text for _ in range(count)]


async def end_of(call: Any) -> grpc.aio.AioRpcError:
    """The error that a stream ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(_read_all(call), BOUND_S)
    return caught.value


async def _read_all(call: Any) -> None:
    async for _ in call:
        pass


async def until_between(channel: Any) -> None:
    while not channel.router.between_attempts:  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)


async def test_a_reader_goes_on_without_noticing_with_the_same_request_metadata_and_trace(
    server: tuple[ScriptedStreams, str],
) -> None:
    scripted, address = server
    scripted.scripts = [["a", "b", Ends(7)], ["c", HOLD]]
    async with onelane.connect(address) as channel:
        call = watch(channel, metadata=(("x-mine", "1"), ("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01")))
        assert await texts(call, 3) == ["a", "b", "c"]
        assert not call.done()
    assert scripted.requests == [K, K]
    assert scripted.seen[0] == scripted.seen[1]
    assert scripted.seen[1]["x-mine"] == "1"


async def test_a_reader_by_read_goes_on_as_well(server: tuple[ScriptedStreams, str]) -> None:
    scripted, address = server
    scripted.scripts = [["a", Ends(7)], ["b"]]
    async with onelane.connect(address) as channel:
        call = watch(channel)
        async with asyncio.timeout(BOUND_S):
            assert [(await call.read()).text for _ in range(2)] == ["a", "b"]
            assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("method", "options", "is_reopened"),
    [
        ("Watch", {}, True),
        ("Watch", {"reopen": False}, False),
        ("Listen", {}, False),
        ("Listen", {"reopen": True}, True),
    ],
)
async def test_methods_without_side_effects_are_opened_again_and_others_where_the_channel_says_so(
    server: tuple[ScriptedStreams, str], method: str, options: dict[str, Any], is_reopened: bool
) -> None:
    scripted, address = server
    scripted.scripts = [[Ends(7)], ["a", Ends(code=grpc.StatusCode.NOT_FOUND)]]
    async with onelane.connect(address, **options) as channel:
        error = await end_of(getattr(follow_pb2_grpc.FollowStub(channel), method)(K))
    assert len(scripted.seen) == 1 + is_reopened
    assert (error.code(), dict(error.trailing_metadata())) == (
        (grpc.StatusCode.NOT_FOUND, {}) if is_reopened else (UNAVAILABLE, {MOVED: "7"})
    )


async def test_only_a_reader_that_asks_for_marks_gets_them_before_what_comes_next(
    server: tuple[ScriptedStreams, str],
) -> None:
    scripted, address = server
    scripted.scripts = [["a", Ends(7)], [Ends(8)], ["b", HOLD]] * 2
    async with onelane.connect(address) as channel:
        stream = aiter(watch(channel.with_streams(marks=True)))
        async with asyncio.timeout(BOUND_S):
            assert (await anext(stream)).text == "a"
            assert [await anext(stream), await anext(stream)] == [onelane.Moved(7), onelane.Moved(8)]
            assert (await anext(stream)).text == "b"
        assert await texts(watch(channel), 2) == ["a", "b"]


async def test_a_stream_that_ends_in_any_other_way_ends_for_its_reader(server: tuple[ScriptedStreams, str]) -> None:
    """Also where its shard shuts down, UNAVAILABLE without the trailer; and the trailer alone moves nothing."""
    scripted, address = server
    async with onelane.connect(address) as channel:
        for end in (Ends(), Ends(7, code=grpc.StatusCode.ABORTED)):
            scripted.scripts = [["a", end]]
            assert (await end_of(watch(channel))).code() is end.code
    assert len(scripted.seen) == 2


async def test_the_deadline_is_that_of_the_first_stream(server: tuple[ScriptedStreams, str]) -> None:
    scripted, address = server
    async with onelane.connect(address) as channel:
        # On a machine that stands still for a while the deadline may come before the second stream: then a later one.
        for timeout in (0.5, 2.0, 8.0):
            scripted.scripts, scripted.remaining = [["a", 0.1, Ends(7)]], []
            call, began = watch(channel, timeout=timeout), monotonic()
            assert (await end_of(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert monotonic() - began >= timeout - 0.05
            if len(scripted.remaining) == 2:
                break
    first, second = scripted.remaining
    assert first is not None
    assert second is not None
    assert 0 < second <= first - 0.09


async def test_a_stream_that_is_ended_again_and_again_waits_longer_each_time_and_ends_with_the_budget(
    server: tuple[ScriptedStreams, str],
) -> None:
    scripted, address = server
    scripted.then = [Ends(7)]
    async with onelane.connect(address, service_config={"retryThrottling": {"maxTokens": 8}}) as channel:
        began = monotonic()
        error = await end_of(watch(channel))
    assert error.code() is UNAVAILABLE
    assert dict(error.trailing_metadata()) == {MOVED: "7"}
    # Two for nothing, three of the budget; the last one may not be followed by another.
    assert len(scripted.seen) == 2 + 3 + 1
    assert monotonic() - began >= 0.5 * (0.05 + 0.1 + 0.2 + 0.4)


async def test_a_move_of_many_streams_costs_nothing_of_the_budget(server: tuple[ScriptedStreams, str]) -> None:
    scripted, address = server
    scripted.scripts, scripted.then = [[Ends(7)]] * 30, ["a", HOLD]
    async with onelane.connect(address, service_config={"retryThrottling": {"maxTokens": 2}}) as channel:
        calls = [watch(channel) for _ in range(30)]
        assert await asyncio.gather(*(texts(call, 1) for call in calls)) == [["a"]] * 30
        assert channel.peer.budget.tokens == 2


async def test_a_server_that_names_ever_newer_epochs_makes_no_client_spin(server: tuple[ScriptedStreams, str]) -> None:
    scripted, address = server
    scripted.scripts = [[Ends(epoch)] for epoch in range(1, 1000)]
    async with onelane.connect(address) as channel:
        assert (await end_of(watch(channel, timeout=1.0))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(scripted.seen) <= 7


@pytest.mark.parametrize("epoch", ["", "-1", "nonsense", "1" * 5000])
async def test_an_epoch_that_is_no_number_is_taken_as_none(server: tuple[ScriptedStreams, str], epoch: str) -> None:
    scripted, address = server
    scripted.scripts = [["a", Ends(epoch)], ["b", HOLD]]
    async with onelane.connect(address, marks=True) as channel:
        stream = aiter(watch(channel))
        async with asyncio.timeout(BOUND_S):
            assert (await anext(stream)).text == "a"
            assert await anext(stream) == onelane.Moved(-1)
            assert (await anext(stream)).text == "b"


async def test_an_opening_that_fails_is_tried_again_a_few_times(server: tuple[ScriptedStreams, str]) -> None:
    """The shard that has the key by now may be gone as well."""
    scripted, address = server
    scripted.scripts = [["a", Ends(7)], [Ends()], ["b", Ends(8)]]
    scripted.then = [Ends()]
    async with onelane.connect(address) as channel:
        call = watch(channel)
        assert await texts(call, 2) == ["a", "b"]
        assert (await end_of(call)).code() is UNAVAILABLE
    assert len(scripted.seen) == 3 + SAFE_RETRY.attempts


async def test_a_reader_that_lags_behind_reads_what_came_before_another_stream_is_opened(
    server: tuple[ScriptedStreams, str],
) -> None:
    scripted, address = server
    scripted.scripts = [["a", "b", Ends(7)], ["another reader's", HOLD], ["c", HOLD]]
    async with onelane.connect(address) as channel:
        call = watch(channel)
        await until_between(channel)
        assert await texts(watch(channel), 1) == ["another reader's"]
        assert await texts(call, 3) == ["a", "b", "c"]


async def test_a_new_placement_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    topology = ChangingTopology()
    monkeypatch.setattr(reopening, "AWAIT_PLACEMENT_S", 60.0)
    async with scripted_streams(topology) as (scripted, address):
        scripted.scripts = [["a", Ends(8)], ["b", Ends(9)], ["c", HOLD]]
        topology.epochs.put_nowait(7)
        async with onelane.connect(address) as channel:
            stream = aiter(watch(channel))
            async with asyncio.timeout(BOUND_S):
                assert (await anext(stream)).text == "a"
                await until_between(channel)
                topology.epochs.put_nowait(8)
                # Long before the minute is over.
                assert (await anext(stream)).text == "b"
                monkeypatch.setattr(reopening, "AWAIT_PLACEMENT_S", 0.25)
                began = monotonic()
                # This one does not come: the way leads over another shard.
                assert (await anext(stream)).text == "c"
                assert monotonic() - began >= 0.25


@pytest.mark.parametrize("by", ["cancel", "task"])
async def test_a_stream_that_is_cancelled_between_two_is_opened_no_more(by: str) -> None:
    topology = ChangingTopology()
    async with scripted_streams(topology) as (scripted, address):
        scripted.scripts = [[Ends(8)]]
        topology.epochs.put_nowait(7)
        async with onelane.connect(address) as channel:
            call = watch(channel)
            reader = asyncio.ensure_future(call.read())
            await until_between(channel)
            (call if by == "cancel" else reader).cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            assert await call.code() is grpc.StatusCode.CANCELLED
            assert not channel.router.between_attempts
            assert channel.peer.in_flight == 0
            topology.epochs.put_nowait(8)
            assert await texts(watch(channel), 0) == []
        assert len(scripted.seen) <= 2


async def test_a_deadline_between_two_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    topology = ChangingTopology()
    monkeypatch.setattr(reopening, "AWAIT_PLACEMENT_S", 60.0)
    async with scripted_streams(topology) as (scripted, address):
        scripted.scripts = [[Ends(8)]]
        topology.epochs.put_nowait(7)
        async with onelane.connect(address) as channel:
            # The first may not have come on a machine that stands still for a while: then with more time.
            for timeout in (0.1, 1.0, 8.0):
                error = await end_of(watch(channel, timeout=timeout))
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert not channel.router.between_attempts
                if scripted.seen:
                    break
        assert len(scripted.seen) == 1


@pytest.mark.parametrize("grace", [None, 0.01])
async def test_a_channel_that_closes_between_two_ends_the_stream(grace: float | None) -> None:
    topology = ChangingTopology()
    async with scripted_streams(topology) as (scripted, address):
        scripted.scripts = [[Ends(8)]]
        topology.epochs.put_nowait(7)
        channel = onelane.connect(address)
        await channel.channel_ready()
        call = watch(channel)
        reader = asyncio.ensure_future(call.read())
        await until_between(channel)
        await channel.close(grace)
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert len(scripted.seen) == 1


async def test_a_stream_that_is_dropped_between_two_is_opened_no_more(server: tuple[ScriptedStreams, str]) -> None:
    """It has messages that nobody has read."""
    scripted, address = server
    scripted.scripts = [["a", Ends(7)]]
    async with onelane.connect(address) as channel:
        call = watch(channel)
        await until_between(channel)
        del call
        async with asyncio.timeout(BOUND_S):
            while channel.router.between_attempts or channel.peer.in_flight:
                # Again, as what is in the midst of its turn may hold the call for one more.
                gc.collect()
                await asyncio.sleep(0)
    assert len(scripted.seen) == 1


async def test_interceptors_see_one_call(server: tuple[ScriptedStreams, str]) -> None:
    scripted, address = server
    scripted.scripts = [["a", Ends(7)], ["b", HOLD]]
    counting = CountingStreams()
    async with onelane.connect(address, interceptors=[counting], marks=True) as channel:
        stream = aiter(watch(channel))
        async with asyncio.timeout(BOUND_S):
            assert (await anext(stream)).text == "a"
            assert await anext(stream) == onelane.Moved(7)
            assert (await anext(stream)).text == "b"
    assert counting.calls == 1


async def test_moves_are_no_failures_of_an_endpoint_also_of_streams_that_end() -> None:
    """Else all keys of a shard would take another way, because one has moved."""
    topology = ChangingTopology()
    async with scripted_streams(topology) as (scripted, address):
        scripted.then = [Ends(7)]
        topology.epochs.put_nowait(7)
        async with onelane.connect(address, reopen=False) as channel:
            for _ in range(30):
                assert (await end_of(watch(channel))).code() is UNAVAILABLE
            (endpoint,) = channel.router.endpoints.values()
            assert not endpoint.health.is_ejected


async def test_what_is_left_of_the_deadline_of_the_call_in_progress_holds(server: tuple[ScriptedStreams, str]) -> None:
    scripted, address = server
    scripted.scripts = [["a", Ends(7)]]
    current_call_var.set(TaskContext("a timer", monotonic() + 0.3))
    async with onelane.connect(address) as channel:
        assert (await end_of(watch(channel))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(scripted.seen) == 2
