"""Forwarded calls of many clients share one connection between two shards; what a client does holds up no other's."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from onelane.client.channel import dial

from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, running

KEY = "k"
HOLD, RELEASE = EchoRequest(key=KEY, text="held"), EchoRequest(key=KEY)
MANY = 1100
"""More than one connection of a client may have: calls at once, and streams that are reset."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("echo"), echo(2)) as app:
        yield app


@asynccontextmanager
async def clients(app: RunningApp, count: int) -> AsyncIterator[list[Any]]:
    """Stubs of so many clients, of a shard that does not own the key."""
    where = Where(app)
    address = next(member.address for member in where.placement.members if member.name != where.owner_of(KEY))
    await where.close()
    channels = [dial(address) for _ in range(count)]
    yield [echo_pb2_grpc.EchoStub(channel) for channel in channels]
    for channel in channels:
        await channel.close()


async def test_calls_that_last_do_not_keep_others_from_being_forwarded(app: RunningApp) -> None:
    async with clients(app, 2) as (many, other):
        before = app.in_flight()
        lasting = [many.Hold(HOLD) for _ in range(MANY)]
        await eventually(lambda: app.in_flight() >= before + 2 * MANY)
        assert (await other.Unary(EchoRequest(key=KEY, text="hi"), timeout=10)).text == "hi"
        await other.Release(RELEASE, timeout=10)
        assert {(await call).text for call in lasting} == {"held"}


async def test_calls_that_are_cancelled_leave_those_of_others_alone(app: RunningApp) -> None:
    key = EchoRequest(key=KEY, text="other")
    async with clients(app, 4) as (other, *floods):
        await other.Unary(key, timeout=10)
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


async def test_answers_that_are_not_read_do_not_hold_up_those_of_others(app: RunningApp) -> None:
    large = EchoRequest(key=KEY, text="x" * 60_000, times=100)
    async with clients(app, 2) as (slow, other):
        unread = [slow.Download(large) for _ in range(8)]
        for call in unread:
            await call.read()
        for _ in range(20):
            assert (await other.Unary(EchoRequest(key=KEY, text="hi"), timeout=10)).text == "hi"
        for call in unread:
            call.cancel()
