"""A call is the same call whether END_STREAM comes with its message or in a DATA frame of its own.

Stock tonic and gRPC-Web proxies always send it on its own, grpc-java often.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import Where
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.interop.malformed import frame
from tests.interop.raw import Answer, Exchange, request
from tests.running_app import RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow
MOST_CONNECTIONS = 64
"""Of these, one at least is accepted by the shard that does not own the key: but for one run in 2^64."""
METHODS = pytest.mark.parametrize("method", ["Unary", "Plain", "Download"])
"""Those that take one message: an `async def`, a plain `def`, and one that answers by a stream."""
PLACES = pytest.mark.parametrize("place", ["home", "away", "steered"])
WAITS = pytest.mark.parametrize("waits", [False, True], ids=["running", "waiting for its turn"])
KEY_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("native"), echo(2)) as cluster:
        yield cluster


@dataclass
class Counts:
    """What has been counted of one method at the owner of a key, and of forwards and steered connections anywhere."""

    calls: float
    ok: float
    forwards: float
    steered: float

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.calls - other.calls,
            self.ok - other.ok,
            self.forwards - other.forwards,
            self.steered - other.steered,
        )


class Place:
    """Connections that reach the owner of a key directly, by a forward, or because a sibling handed them over."""

    def __init__(self, cluster: RunningApp, where: Where, name: str) -> None:
        self.cluster = cluster
        self.where = where
        self.name = name
        self.key = f"{name}-{next(KEY_NUMBERS)}"

    @property
    def address(self) -> str:
        if self.name == "steered":
            return self.cluster.listen["echo"]
        addresses = {member.name: member.address for member in self.where.placement.members}
        owner = self.where.owner_of(self.key)
        return next(address for name, address in addresses.items() if (name == owner) == (self.name == "home"))

    def counts(self, method: str) -> Counts:
        labels = {"rpc_method": f"echo.v1.Echo/{method}", "onelane_shard": self.where.owner_of(self.key)}
        return Counts(
            self.cluster.metric("onelane_calls_total", **labels),
            self.cluster.metric("onelane_calls_total", rpc_response_status_code="OK", **labels),
            self.cluster.metric("onelane_forwards_total"),
            self.cluster.metric("onelane_connections_total", onelane_connection_steered="true"),
        )

    async def each(self, method: str, attempt: Callable[["Place"], Any]) -> AsyncIterator[tuple[Any, Counts]]:
        """What `attempt` returns, and what was counted meanwhile; on new connections until one has been steered."""
        for _ in range(MOST_CONNECTIONS):
            before = self.counts(method)
            result = await attempt(self)
            counts = self.counts(method) - before
            yield result, counts
            if self.name != "steered" or counts.steered:
                return
            self.key = f"{self.name}-{next(KEY_NUMBERS)}"
        pytest.fail("no connection was steered")

    @property
    def forwards(self) -> int:
        """How often one call is forwarded."""
        return 1 if self.name == "away" else 0


@pytest.fixture
async def where(native: RunningApp) -> AsyncIterator[Where]:
    stubs = Where(native)
    yield stubs
    await stubs.close()


@pytest.fixture
def at(native: RunningApp, where: Where, place: str) -> Place:
    return Place(native, where, place)


def message(key: str, **more: Any) -> bytes:
    return frame(EchoRequest(key=key, **more).SerializeToString())


def headers(method: str) -> Any:
    return request(b"/echo.v1.Echo/" + method.encode())


def reply_of(answer: Answer) -> EchoReply:
    assert answer.seen == "200/0", (answer.seen, answer.trailers, answer.headers)
    ((_, body),) = answer.messages
    return EchoReply.FromString(body)


TOGETHER, APART, HANDLED = "in one write", "in a write of its own", "after the message was handled"


def end_alone(address: str, key: str, method: str, how: str) -> Answer:
    with Exchange(address) as exchange:
        exchange.open(headers(method))
        exchange.put(message(key, text="hi", times=1))
        if how == APART:
            exchange.write()
        elif how == HANDLED:
            exchange.wait_handled()
        exchange.put(b"", end=True)
        return exchange.wait_answered()


@PLACES
@METHODS
@pytest.mark.parametrize("how", [TOGETHER, APART, HANDLED])
async def test_a_call_whose_end_comes_in_a_frame_of_its_own_is_answered(at: Place, method: str, how: str) -> None:
    def attempt(at: Place) -> Any:
        return asyncio.to_thread(end_alone, at.address, at.key, method, how)

    async for answer, counts in at.each(method, attempt):
        reply = reply_of(answer)
        assert (reply.text, reply.shard, reply.seen) == ("hi", at.where.owner_of(at.key), 1)
        assert (counts.calls, counts.ok, counts.forwards) == (1, 1, at.forwards)


async def release(at: Place) -> None:
    """Let every call of the key end that runs until then."""
    await at.where.home(at.key).Release(EchoRequest(key=at.key))


@asynccontextmanager
async def under_way(at: Place, *, waits: bool) -> AsyncIterator[Exchange]:
    """A call that has sent its message and not its end: it runs until `release`, or waits for the turn of its key,
    which another client's call holds."""

    def in_flight() -> float:
        return at.cluster.metric("onelane_calls_in_flight", onelane_shard=at.where.owner_of(at.key))

    order = f"wait {at.key}"
    holding = None
    # What earlier tests have left is over, and nobody watches health or topology here.
    await eventually(lambda: in_flight() == 0)
    try:
        if waits:
            holding = asyncio.ensure_future(at.where.home(at.key).Misbehave(EchoRequest(key=at.key, order=order)))
            await eventually(lambda: in_flight() == 1)
        with Exchange(at.address) as exchange:
            exchange.open(headers("Misbehave"))
            exchange.put(message(at.key, order=order))
            await asyncio.to_thread(exchange.wait_handled)
            await eventually(lambda: in_flight() == (2 if waits else 1))
            yield exchange
    finally:
        await release(at)
        if holding is not None:
            await holding


@PLACES
@WAITS
async def test_the_end_may_come_while_the_call_is_under_way(at: Place, waits: bool) -> None:
    async def attempt(at: Place) -> Answer:
        async with under_way(at, waits=waits) as exchange:
            exchange.put(b"", end=True)
            await asyncio.to_thread(exchange.wait_handled)
            assert not exchange.answer.is_over
            await release(at)
            return await asyncio.to_thread(exchange.wait_answered)

    async for answer, counts in at.each("Misbehave", attempt):
        assert reply_of(answer).shard == at.where.owner_of(at.key)
        calls = 2 if waits else 1
        assert (counts.calls, counts.ok, counts.forwards) == (calls, calls, at.forwards)


def refused(answer: Answer) -> bool:
    text = {**answer.headers, **answer.trailers}.get(b"grpc-message", b"")
    return (answer.seen, text, answer.body) == ("200/12", b"expected one message, received 2", b"")


@PLACES
@METHODS
async def test_two_messages_for_one_are_refused_before_anything_runs(at: Place, method: str) -> None:
    """Three frames in one write: what a server reads in one piece, it sees as one."""

    def both(address: str, key: str) -> Answer:
        with Exchange(address) as exchange:
            exchange.open(headers(method))
            exchange.put(message(key))
            exchange.put(message(key))
            exchange.put(b"", end=True)
            return exchange.wait_answered()

    def attempt(at: Place) -> Any:
        return asyncio.to_thread(both, at.address, at.key)

    async for answer, counts in at.each(method, attempt):
        assert refused(answer)
        assert (counts.calls, counts.forwards) == (0, 0)


@PLACES
@WAITS
async def test_a_second_message_ends_a_call_that_is_under_way_and_runs_nothing_twice(at: Place, waits: bool) -> None:
    async def attempt(at: Place) -> Answer:
        async with under_way(at, waits=waits) as exchange:
            exchange.put(message(at.key, order=f"wait {at.key}"))
            answer = await asyncio.to_thread(exchange.wait_answered)
            # The connection is as good as before.
            exchange.put(b"", end=True)
            await asyncio.to_thread(exchange.wait_handled)
        # The turn is free: the next call of the key is not held up.
        await at.where.home(at.key).Misbehave(EchoRequest(key=at.key, order="add 0"), timeout=10)
        return answer

    async for answer, counts in at.each("Misbehave", attempt):
        assert refused(answer)
        others = 2 if waits else 1
        assert (counts.calls, counts.ok, counts.forwards) == (others + 1, others, at.forwards)
