"""A shard calls the owner of a key, or every shard of its app; the answers are those of any call."""

import math
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.core.context import TaskContext, current_call_var
from onelane.core.placement import Member, Placement
from onelane.core.trace_context import TraceContext
from onelane.errors import BadService, Misuse
from onelane.lane.routing import DRAINED, UNRESPONSIVE
from onelane.shard.wiring import ShardParts

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.shard.parts import wired
from tests.shard.shards import SHARDS, Shards

Echo = echo_pb2_grpc.EchoServicer


@pytest.fixture
async def parts() -> AsyncIterator[ShardParts]:
    """The only shard of its app: what it calls, it calls in itself."""
    shard_parts, _ = wired()
    shard_parts.services.load()
    yield shard_parts
    await shard_parts.sibling_channels.aclose()
    await shard_parts.shard.aclose()


@pytest.mark.parametrize("method", [Echo.Unary, "echo.v1.Echo/Unary", "/echo.v1.Echo/Unary"])
async def test_a_method_is_named_by_its_servicer_or_by_its_path(parts: ShardParts, method: Any) -> None:
    reply: EchoReply = await parts.shard.call("k", method, EchoRequest(key="k", text="hello"))
    assert (reply.text, reply.shard) == ("hello", "echo-0")


async def test_what_cannot_be_called_so_is_said(parts: ShardParts) -> None:
    with pytest.raises(BadService, match=r"no service of this app has the method 'echo\.v1\.Echo/Nope'"):
        await parts.shard.call("k", "echo.v1.Echo/Nope", EchoRequest(key="k"))
    with pytest.raises(BadService, match="Upload is a streaming method; expected one message and one answer"):
        await parts.shard.call("k", "echo.v1.Echo/Upload", EchoRequest(key="k"))
    with pytest.raises(BadService, match="Unary has a key, so one shard owns it; expected a method that is ANY"):
        await parts.shard.call_each(Echo.Unary, EchoRequest(key="k"))
    wrong_message: Any = EchoReply()
    with pytest.raises(Misuse, match=r"Unary takes a message echo\.v1\.EchoRequest, not EchoReply"):
        await parts.shard.call("k", Echo.Unary, wrong_message)
    with pytest.raises(Misuse, match=r"Who takes a message echo\.v1\.EchoRequest, not bytes"):
        await parts.shard.call_each(Echo.Who, wrong_message.SerializeToString())
    with pytest.raises(Misuse, match=r"the key for echo\.v1\.Echo/Unary is empty"):
        await parts.shard.call("", Echo.Unary, EchoRequest())
    with pytest.raises(Misuse, match=r"is 'j': metadata onelane-key is 'j', but .*key makes the key 'k'"):
        await parts.shard.call("j", Echo.Unary, EchoRequest(key="k"))


async def test_a_call_to_itself_ends_with_its_timeout(parts: ShardParts) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await parts.shard.call("k", Echo.Hold, EchoRequest(key="k"), timeout=0.01)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("timeout_s", [0, -1, math.inf, math.nan])
async def test_a_call_to_itself_whose_timeout_has_passed_already_does_not_begin(
    parts: ShardParts, timeout_s: float
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await parts.shard.call("k", Echo.Unary, EchoRequest(key="k"), timeout=timeout_s)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await parts.shard.call("k", Echo.Unary, EchoRequest(key="k"))).seen == 1


@pytest.mark.parametrize("why", [UNRESPONSIVE, DRAINED])
async def test_a_sibling_that_serves_no_calls_is_not_called(parts: ShardParts, why: str) -> None:
    """Calls of a service to a stopped shard waited for all of their deadline, where those of clients are refused."""
    (own,) = parts.lane.placement.members
    placement = Placement(2, (own, Member("echo-1", "127.0.0.1:50062", "/nowhere/echo-1")))
    parts.lane.place(placement)
    parts.lane.avoid({"echo-1": why})
    key = next(key for key in map(str, range(1000)) if placement.owner_of(key).name == "echo-1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await parts.shard.call(key, Echo.Unary, EchoRequest(key=key))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, f"shard echo-1 is {why}")
    here, away = await parts.shard.call_each(Echo.Who, EchoRequest())
    assert (here.error, away.error and away.error.details()) == (None, f"shard echo-1 is {why}")


async def test_its_deadline_is_no_later_than_that_of_the_call_in_progress(parts: ShardParts) -> None:
    token = current_call_var.set(TaskContext("/a.B/C", deadline_at=monotonic() + 0.01))
    (answer,) = await parts.shard.call_each(Echo.Who, EchoRequest(order="sleep 0"), timeout=60)
    current_call_var.reset(token)
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_it_belongs_to_the_trace_and_has_the_baggage_and_the_chain_of_the_call_in_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received: list[Any] = []

    async def unary(self: Any, request: EchoRequest, call: Any) -> EchoReply:
        received.append((call.parent.trace_id, call.baggage, call.chain, call.peer()))
        return EchoReply()

    monkeypatch.setattr("tests.echo.service.Echo.Unary", unary)
    parts, _ = wired()
    parts.services.load()
    trace = TraceContext("a" * 32, "b" * 16, True)
    token = current_call_var.set(TaskContext("/a.B/C", trace=trace, baggage="k=v", outgoing_chain="0001@s-9/a.B/C"))
    await parts.shard.call("k", Echo.Unary, EchoRequest(key="k"))
    current_call_var.reset(token)
    assert received == [("a" * 32, "k=v", "0001@s-9/a.B/C", "lane")]
    await parts.shard.aclose()


# Real shards


@pytest.mark.slow
async def test_a_call_reaches_the_owner_of_the_key_wherever_it_is_made(shards: Shards) -> None:
    for index in range(SHARDS):
        for to in range(SHARDS):
            order = f"call {shards.keys[to]} began" if to != index else f"by_name k-{index}"
            expected = f"echo-{to}" if to != index else shards.owner_of(f"k-{index}")
            assert await shards.ask(index, order) == expected


@pytest.mark.slow
async def test_a_call_of_a_call_to_its_own_key_enters(shards: Shards) -> None:
    assert await shards.ask(0, f"call {shards.keys[0]} add 3") == "echo-0"


@pytest.mark.slow
async def test_a_status_of_another_lane_comes_back_as_it_is(shards: Shards) -> None:
    for to in range(SHARDS):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await shards.ask(0, f"call {shards.keys[to]} abort")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no such thing: ünïcode"


async def failure_of(shards: Shards, order: str) -> tuple[grpc.StatusCode, str]:
    """The status of an order that a service cannot carry out, and the record of it in its shard's log."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shards.ask(0, order)
    error_id = str(caught.value.details()).rpartition(" ")[2]
    record = shards.app.log.read_text().partition(f"call.failed id={error_id}")[2].partition("call.failed")[0]
    return caught.value.code(), record


@pytest.mark.slow
async def test_the_turn_of_a_key_that_lives_elsewhere_is_internal_and_logged_with_key_and_owner(shards: Shards) -> None:
    assert await shards.ask(0, f"turn {shards.keys[0]}") == "echo-0"
    code, record = await failure_of(shards, f"turn {shards.keys[1]}")
    assert code is grpc.StatusCode.INTERNAL
    assert f"ForeignKey: the key '{shards.keys[1]}' belongs to shard echo-1, not to echo-0" in record
    assert "Traceback" in record


MISUSES = {
    "unknown": "BadService: no service of this app has the method 'echo.v1.Echo/Nope'",
    "streaming": "BadService: echo.v1.Echo/Upload is a streaming method",
    "empty": "Misuse: call: the key for echo.v1.Echo/Unary is empty",
    "other_key": "Misuse: call: the key for echo.v1.Echo/Unary is 'b'",
    "message": "Misuse: echo.v1.Echo/Unary takes a message echo.v1.EchoRequest, not EchoReply",
    "keyed_each": "BadService: call_each: echo.v1.Echo/Unary has a key",
    "message_each": "Misuse: echo.v1.Echo/Who takes a message echo.v1.EchoRequest, not EchoReply",
}
"""What a service asks for, and the error in the log of its shard."""


@pytest.mark.slow
@pytest.mark.parametrize("which", MISUSES)
async def test_a_service_that_calls_its_siblings_wrongly_is_internal_and_logged(shards: Shards, which: str) -> None:
    """Neither INVALID_ARGUMENT nor UNAVAILABLE: its client has done nothing wrong, and another call would not help."""
    code, record = await failure_of(shards, f"misuse {which}")
    assert code is grpc.StatusCode.INTERNAL
    assert f"onelane.errors.{MISUSES[which]}" in record
    assert "Traceback" in record


@pytest.mark.slow
async def test_every_shard_answers_and_a_failure_stands_beside_the_answers(shards: Shards) -> None:
    assert await shards.ask(0, "each") == "echo-0=echo-0 echo-1=echo-1 echo-2=echo-2"
    assert await shards.ask(1, "each fail 2") == "echo-0=echo-0 echo-1=echo-1 echo-2=DATA_LOSS"
    assert await shards.ask(1, "each fail 1") == "echo-0=echo-0 echo-1=DATA_LOSS echo-2=echo-2"


@pytest.mark.slow
@pytest.mark.parametrize("index", [2, 0])
async def test_a_shard_that_answers_too_late_stands_beside_the_answers(shards: Shards, index: int) -> None:
    answers, timeout_s = "", 0.1
    # On a busy machine the others may be too late as well; then they are asked again with more time.
    while answers.count("DEADLINE_EXCEEDED") != 1:
        answers = await shards.ask(index, f"each_within {timeout_s} sleep 0")
        assert "echo-0=DEADLINE_EXCEEDED" in answers
        timeout_s *= 3
    assert answers == "echo-0=DEADLINE_EXCEEDED echo-1=echo-1 echo-2=echo-2"
