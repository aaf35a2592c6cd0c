"""Every keyed call runs at its owner, whichever shard its connection landed on, and arrives whole."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, eventually

pytestmark = pytest.mark.slow
DEBUG = (("onelane-debug", "1"),)
SIDES = pytest.mark.parametrize("side", ["home", "away"])


def stub(where: Where, side: str, key: str) -> Any:
    return getattr(where, side)(key)


async def stream(*requests: EchoRequest) -> AsyncIterator[EchoRequest]:
    for request in requests:
        yield request


async def raw(channel: grpc.aio.Channel, path: str, message: bytes) -> Any:
    send: Any = channel.unary_unary(path)
    return await send(message)


@pytest.mark.parametrize(("which", "code"), [("text", "OK"), ("value", "INTERNAL"), ("name", "INTERNAL")])
async def test_trailing_metadata_that_cannot_be_sent_fail_their_call_with_a_word(
    where: Where, which: str, code: str
) -> None:
    call: Any = where.home("k").Misbehave(EchoRequest(key="k", order=f"odd {which}"), timeout=BOUND_S)
    assert (await call.code()).name == code
    if code == "OK":
        assert dict(await call.trailing_metadata())["x-odd-bin"] == b"text"
    else:
        assert "Invalid metadata" in await call.details()


async def test_a_call_runs_at_its_owner_wherever_it_lands(where: Where) -> None:
    for key in [f"room-{n}" for n in range(40)]:
        for side in ("home", "away"):
            reply = await stub(where, side, key).Unary(EchoRequest(key=key))
            assert reply.shard == where.owner_of(key)


@SIDES
async def test_the_trailers_tell_the_way_when_asked(where: Where, side: str) -> None:
    call = stub(where, side, "k").Unary(EchoRequest(key="k"), metadata=DEBUG)
    await call
    trailers = dict(await call.trailing_metadata())
    hop = "direct" if side == "home" else "forwarded"
    assert trailers == {
        "onelane-shard": where.owner_of("k"),
        "onelane-epoch": str(where.placement.epoch),
        "onelane-hop": hop,
    }


@SIDES
async def test_nothing_of_ours_is_in_the_trailers_unasked(where: Where, side: str) -> None:
    call = stub(where, side, "k").Unary(EchoRequest(key="k"))
    await call
    assert tuple(await call.trailing_metadata()) == ()


@SIDES
@pytest.mark.parametrize("routed_by", ["message", "metadata"])
async def test_all_four_call_types_reach_the_owner(where: Where, side: str, routed_by: str) -> None:
    key = "four"
    metadata = (("onelane-key", key),) if routed_by == "metadata" else ()
    first, second = EchoRequest(key=key, text="1", times=2), EchoRequest(key=key, text="2")
    calls = stub(where, side, key)
    unary = await calls.Unary(first, metadata=metadata)
    download = [r async for r in calls.Download(first, metadata=metadata)]
    upload = await calls.Upload(stream(first, second), metadata=metadata)
    chat = [r async for r in calls.Chat(stream(first, second), metadata=metadata)]
    assert [unary.text, upload.text, [r.text for r in chat]] == ["1", "1,2", ["1", "2"]]
    assert {r.shard for r in [unary, upload, *download, *chat]} == {where.owner_of(key)}


@SIDES
async def test_plain_def_handlers_of_every_type_run(where: Where, side: str) -> None:
    key = "plain"
    first, second = EchoRequest(key=key, text="1"), EchoRequest(key=key, text="2")
    calls = stub(where, side, key)
    assert (await calls.Plain(first)).text == "1"
    assert (await calls.PlainUpload(stream(first, second))).text == "1,2"
    assert [r.text async for r in calls.PlainChat(stream(first, second))] == ["1", "2"]
    with pytest.raises(grpc.aio.AioRpcError, match="plain abort"):
        await calls.Plain(EchoRequest(key=key, order="abort"))


@SIDES
async def test_a_chat_goes_back_and_forth(where: Where, side: str) -> None:
    """Each answer is awaited before the next request is sent, so nothing may be held back."""
    call = stub(where, side, "talk").Chat()
    for text in ("a", "b", "c"):
        await call.write(EchoRequest(key="talk", text=text))
        assert (await call.read()).text == text
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


@SIDES
async def test_metadata_passes_both_ways(where: Where, side: str) -> None:
    request = EchoRequest(key="m", order="metadata")
    call = stub(where, side, "m").Misbehave(request, metadata=(("x-there", "ping"),))
    await call
    assert ("x-initial", "first") in tuple(await call.initial_metadata())
    assert tuple(await call.trailing_metadata()) == (("x-back", "ping"), ("x-back-bin", b"\x00\xff"))


@SIDES
async def test_status_details_and_trailers_pass(where: Where, side: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(where, side, "s").Misbehave(EchoRequest(key="s", order="abort"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no such thing: ünïcode"
    assert ("x-why", "aborted") in tuple(caught.value.trailing_metadata() or ())


@SIDES
async def test_rich_status_details_pass(where: Where, side: str) -> None:
    call = stub(where, side, "s").Misbehave(EchoRequest(key="s", order="rich"))
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    status = await rpc_status.aio.from_call(call)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "BECAUSE"


@SIDES
async def test_the_deadline_passes_and_never_grows(where: Where, side: str) -> None:
    call = stub(where, side, "d").Misbehave(EchoRequest(key="d", order="remaining"), timeout=20)
    await call
    remaining = float(dict(await call.trailing_metadata())["x-remaining"])
    # gRPC writes a timeout with few digits and rounds it up: by less than 1 %.
    assert 0 < remaining <= 20 * 1.01


@SIDES
async def test_a_deadline_ends_the_call_on_both_sides(where: Where, side: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(where, side, "d").Misbehave(EchoRequest(key="d", order="sleep 60"), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@SIDES
async def test_cancelling_reaches_the_handler(cluster: RunningApp, where: Where, side: str) -> None:
    key = f"cancel-{side}"

    def cancelled() -> float:
        labels = {"rpc_method": "echo.v1.Echo/Misbehave", "rpc_response_status_code": "CANCELLED"}
        return cluster.metric("onelane_calls_total", onelane_shard=where.owner_of(key), **labels)

    before = cancelled()
    call = stub(where, side, key).Misbehave(EchoRequest(key=key, order=f"wait {key}"))
    await where.wait_begun(key)
    call.cancel()
    await eventually(lambda: cancelled() > before)


async def test_a_strangers_hop_mark_is_dropped(where: Where) -> None:
    """Or anybody could have a call refused, or skip a rule, by naming our metadata."""
    call = where.away("k").Unary(EchoRequest(key="k"), metadata=(("onelane-hop", "1"), *DEBUG))
    await call
    assert dict(await call.trailing_metadata())["onelane-hop"] == "forwarded"


@SIDES
async def test_metadata_that_contradicts_the_field_is_refused(where: Where, side: str) -> None:
    metadata = (("onelane-key", "other"),)
    with pytest.raises(grpc.aio.AioRpcError, match="onelane-key is 'other', but key makes the key 'k'") as caught:
        await stub(where, side, "k").Unary(EchoRequest(key="k"), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError, match="onelane-key is 'other'"):
        await stub(where, side, "k").Upload(stream(EchoRequest(key="k")), metadata=metadata)


async def test_a_missing_key_is_refused_by_its_name(where: Where) -> None:
    for call in (where.shared.Unary(EchoRequest()), where.shared.Upload(stream(EchoRequest()))):
        with pytest.raises(grpc.aio.AioRpcError, match=r"echo\.v1\.EchoRequest\.key is empty") as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError, match="ended before its first message"):
        await where.shared.Upload(stream())


async def test_a_call_is_counted_once_by_the_shard_that_answered(cluster: RunningApp, where: Where) -> None:
    """Forwarded or not: what clients saw answered is the exported sum, as of the moment they saw it."""
    labels = {"rpc_method": "echo.v1.Echo/Plain", "rpc_response_status_code": "OK"}
    before = cluster.metric("onelane_calls_total", **labels)
    forwards = cluster.metric("onelane_forwards_total")
    await asyncio.gather(*(where.home(f"{n}").Plain(EchoRequest(key=f"{n}")) for n in range(100)))
    await asyncio.gather(*(where.away(f"{n}").Plain(EchoRequest(key=f"{n}")) for n in range(50)))
    assert cluster.metric("onelane_calls_total", **labels) - before == 150
    assert cluster.metric("onelane_forwards_total") - forwards == 50
    assert cluster.metric("rpc_server_call_duration_seconds_count", **labels) == before + 150


async def test_an_unknown_method_is_unimplemented(where: Where) -> None:
    for path in ("/echo.v1.Echo/Nope", "/nope.v1.Nope/Nope"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(where.shared_channel, path, b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@SIDES
async def test_bytes_that_are_no_message_are_internal(where: Where, side: str) -> None:
    channel = where.channels[where.owner_of("k")] if side == "home" else where.shared_channel
    with pytest.raises(grpc.aio.AioRpcError, match="not the message it should be") as caught:
        await raw(channel, "/echo.v1.Echo/Unary", b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@SIDES
async def test_a_message_over_the_limit_is_refused(where: Where, side: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(where, side, "k").Unary(EchoRequest(key="k", text="x" * 5_000_000))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
