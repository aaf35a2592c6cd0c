"""Forwarded calls of many clients share one connection between two shards; what a client does holds up no other's."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from onelane.client.channel import dial
from onelane.wire.framing import frame

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.interop.raw import Exchange, request
from tests.running_app import RunningApp, echo, eventually, running

KEY = "k"
HOLD, RELEASE = EchoRequest(key=KEY, text="held"), EchoRequest(key=KEY)
MANY = 1100
"""More than one connection of a client may have: calls at once, and streams that are reset."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("echo"), echo(2)) as app:
        yield app


async def away_from(app: RunningApp) -> str:
    """The address of a shard that does not own the key."""
    where = Where(app)
    await where.close()
    return next(member.address for member in where.placement.members if member.name != where.owner_of(KEY))


@asynccontextmanager
async def clients(app: RunningApp, count: int) -> AsyncIterator[list[Any]]:
    """Stubs of so many clients, of a shard that does not own the key."""
    address = await away_from(app)
    channels = [dial(address) for _ in range(count)]
    yield [echo_pb2_grpc.EchoStub(channel) for channel in channels]
    for channel in channels:
        await channel.close()


async def test_calls_that_last_do_not_keep_others_from_being_forwarded(app: RunningApp) -> None:
    async with clients(app, 2) as (many, other):
        before = app.in_flight()
        lasting = [many.Hold(HOLD) for _ in range(MANY)]
        await eventually(lambda: app.in_flight() >= before + 2 * MANY)
        assert (await other.Unary(EchoRequest(key=KEY, text="hi"), timeout=BOUND_S)).text == "hi"
        await other.Release(RELEASE, timeout=BOUND_S)
        assert {(await call).text for call in lasting} == {"held"}


async def test_calls_that_are_cancelled_leave_those_of_others_alone(app: RunningApp) -> None:
    key = EchoRequest(key=KEY, text="other")
    async with clients(app, 4) as (other, *floods):
        await other.Unary(key, timeout=BOUND_S)
        before = app.in_flight()
        waiting = other.Download(EchoRequest(key=KEY, text="other", times=1, order="forever"))
        assert (await waiting.read()).text == "other"
        for flood in floods:
            calls = [flood.Download(EchoRequest(key=KEY, order="forever")) for _ in range(MANY // 2)]
            await eventually(lambda: app.in_flight() >= before + 2 + 2 * MANY // 2)
            for call in calls:
                call.cancel()
            await eventually(lambda: app.in_flight() <= before + 2)
        assert not waiting.done()
        waiting.cancel()


async def test_requests_that_a_handler_does_not_read_do_not_hold_up_those_of_others(app: RunningApp) -> None:
    where = Where(app)
    held = next(key for key in where.keys_of(where.owner_of(KEY)) if key != KEY)
    turn = where.home(held).Misbehave(EchoRequest(key=held, order=f"wait {held}"))
    await where.wait_begun(held)
    async with clients(app, 2) as (many, other):
        uploads = [many.Chat() for _ in range(8)]
        for upload in uploads:
            # Its handler waits for the turn, and reads no further.
            await upload.write(EchoRequest(key=held, order="turn"))
        floods = [asyncio.ensure_future(flood(upload, held)) for upload in uploads]
        for _ in range(20):
            assert (await other.Unary(EchoRequest(key=KEY, text="x" * 60_000), timeout=BOUND_S)).text
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
    await where.home(held).Release(EchoRequest(key=held))
    await turn
    await where.close()


async def flood(upload: Any, key: str) -> None:
    """Send until nothing more is taken."""
    for _ in range(50):
        await upload.write(EchoRequest(key=key, text="x" * 60_000))


async def test_a_client_that_breaks_the_rules_writes_no_failure_of_ours_to_the_log(app: RunningApp) -> None:
    """It could fill the log of a shard, which has only sent its messages on."""

    def break_off(address: str, idle: float) -> Any:
        with Exchange(address) as call:
            call.open(request(b"/echo.v1.Echo/Chat", (b"onelane-key", KEY.encode())))
            call.put(frame(HOLD.SerializeToString()))
            call.wait_headers()
            call.put(b"\1" + frame(b"x")[1:])
            answer = call.wait_answered()
            while app.in_flight() > idle:
                pass
            return answer

    idle = app.in_flight()
    answer = await asyncio.to_thread(break_off, await away_from(app), idle)
    assert answer.seen == "200/13"
    assert "client.requests_failed" not in app.log.read_text()


async def test_a_call_to_an_owner_that_has_stopped_ends_with_its_deadline(app: RunningApp) -> None:
    where = Where(app)
    owner = where.owner_of(KEY)
    pid = next(shard["pid"] for shard in app.shards() if shard["name"] == owner)
    async with clients(app, 1) as (client,):
        await client.Unary(EchoRequest(key=KEY), timeout=BOUND_S)
        os.kill(pid, signal.SIGSTOP)
        try:
            call = client.Unary(EchoRequest(key=KEY), timeout=0.2)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            given_up = client.Unary(EchoRequest(key=KEY))
            given_up.cancel()
            assert given_up.cancelled()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (await client.Unary(EchoRequest(key=KEY, text="hi"), timeout=BOUND_S)).text == "hi"
    await where.close()


async def test_answers_that_are_not_read_do_not_hold_up_those_of_others(app: RunningApp) -> None:
    large = EchoRequest(key=KEY, text="x" * 60_000, times=100)
    async with clients(app, 2) as (slow, other):
        unread = [slow.Download(large) for _ in range(8)]
        for call in unread:
            await call.read()
        for _ in range(20):
            assert (await other.Unary(EchoRequest(key=KEY, text="hi"), timeout=BOUND_S)).text == "hi"
        for call in unread:
            call.cancel()
