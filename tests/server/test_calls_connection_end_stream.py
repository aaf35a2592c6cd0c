"""A call is the same call whether END_STREAM comes with its message or in a DATA frame of its own.

Stock tonic and gRPC-Web proxies always send it on its own, grpc-java often.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import Where
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.interop.malformed import frame
from tests.interop.raw import Answer, Exchange, request
from tests.running_app import RunningApp, Scrape, echo, running

pytestmark = pytest.mark.slow
MOST_CONNECTIONS = 64
"""Of these, one at least is accepted by the shard that does not own the key: but for one run in 2^64."""
METHODS = pytest.mark.parametrize("method", ["Unary", "Plain", "Download"])
"""Those that take one message: an `async def`, a plain `def`, and one that answers by a stream."""
PLACES = pytest.mark.parametrize("place", ["home", "away", "steered"])
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

    def counts(self, scrape: Scrape, method: str) -> Counts:
        labels = {"rpc_method": f"echo.v1.Echo/{method}", "onelane_shard": self.where.owner_of(self.key)}
        return Counts(
            scrape.metric("onelane_calls_total", **labels),
            scrape.metric("onelane_calls_total", rpc_response_status_code="OK", **labels),
            scrape.metric("onelane_forwards_total"),
            scrape.metric("onelane_connections_total", onelane_connection_steered="true"),
        )

    async def each(self, method: str, attempt: Callable[["Place"], Any]) -> AsyncIterator[tuple[Any, Counts]]:
        """What `attempt` returns, and what was counted meanwhile; on new connections until one has been steered."""
        before = self.cluster.scrape()
        for _ in range(MOST_CONNECTIONS):
            result = await attempt(self)
            after = self.cluster.scrape()
            counts = self.counts(after, method) - self.counts(before, method)
            before = after
            yield result, counts
            if self.name != "steered" or counts.steered:
                return
            self.key = f"{self.name}-{next(KEY_NUMBERS)}"
        pytest.fail("no connection was steered")

    @property
    def forwards(self) -> int:
        """How often one call is forwarded."""
        return 1 if self.name == "away" else 0


@pytest.fixture(scope="module")
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


@PLACES
@METHODS
async def test_a_call_begins_once_its_request_is_whole(at: Place, method: str) -> None:
    """A message alone is not all: another may follow, and refuse the call."""

    def never_ended(address: str, key: str) -> Answer:
        with Exchange(address) as exchange:
            exchange.open([*headers(method), (b"grpc-timeout", b"50m")])
            exchange.put(message(key, times=1))
            return exchange.wait_answered()

    def attempt(at: Place) -> Any:
        return asyncio.to_thread(never_ended, at.address, at.key)

    async for answer, counts in at.each(method, attempt):
        assert (answer.seen, answer.body) == ("200/4", b"")
        assert (counts.calls, counts.forwards) == (0, 0)


def refused(answer: Answer) -> bool:
    text = {**answer.headers, **answer.trailers}.get(b"grpc-message", b"")
    return (answer.seen, text, answer.body) == ("200/12", b"expected one message, received more", b"")


@PLACES
@METHODS
@pytest.mark.parametrize("how", [TOGETHER, HANDLED])
async def test_two_messages_for_one_are_refused_before_anything_runs(at: Place, method: str, how: str) -> None:
    def both(address: str, key: str) -> Answer:
        with Exchange(address) as exchange:
            exchange.open(headers(method))
            exchange.put(message(key))
            if how == HANDLED:
                exchange.wait_handled()
            exchange.put(message(key))
            answer = exchange.wait_answered()
            # The connection is as good as before.
            exchange.put(b"", end=True)
            exchange.wait_handled()
            return answer

    def attempt(at: Place) -> Any:
        return asyncio.to_thread(both, at.address, at.key)

    async for answer, counts in at.each(method, attempt):
        assert refused(answer)
        assert (counts.calls, counts.forwards) == (0, 0)
