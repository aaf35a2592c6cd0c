"""The outcome of a call does not depend on where its frames are cut: neither the frames themselves, nor the reads.

Hypothesis cuts the same calls at every byte and frame border, merges and delays the pieces, pads them, and puts
END_STREAM on the last message, on an empty DATA frame or on trailers. What comes back is compared with the outcome of
the same calls as libnghttp2 frames them, sent in one piece to the owner of their keys.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onelane.testing import Cluster
from onelane.wire.http2 import Http2, Limits

from tests.bounds import BOUND_S
from tests.echo.service import Echo
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.frames import PREFACE, number
from tests.interop.raw import Answer, request, take_answers
from tests.reframing import Piece, pieces
from tests.running_app import echo, running
from tests.shard.shards import Shards

ROUNDS = settings(
    max_examples=60,
    deadline=None,
    # A failure is printed as it was first seen: shrinking one takes minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KEYS = itertools.count()
OWNER = 1
MAX_MESSAGE = 20_000
"""Less than the first flow-control window: a client must not send more before it has read the SETTINGS."""


@dataclass(frozen=True)
class Script:
    """One call: its method, and each of its messages, or `None` for one that is over the limit."""

    method: str
    messages: tuple[dict[str, Any] | None, ...]


ONE = ({"text": "hi", "times": 2},)
WELL_FORMED = (
    Script("Unary", ONE),
    Script("Unary", ({"text": "large" * 3000},)),
    Script("Plain", ONE),
    Script("Download", ONE),
    Script("Upload", ONE * 3),
    Script("Chat", ({"text": "a"}, {"text": "b" * 300}, {"text": "c"})),
    Script("PlainUpload", ONE * 2),
    Script("PlainChat", ONE * 2),
    Script("Misbehave", ({"order": "abort"},)),
    Script("Misbehave", ({"order": "metadata"},)),
    Script("NoSuchMethod", ONE),
)
SCRIPTS = (
    *WELL_FORMED,
    # Refused in the same way, however they are cut, and before anything has run.
    Script("Unary", ONE * 2),
    Script("Plain", ONE * 5),
    Script("Plain", ()),
    Script("Download", ONE * 2),
    Script("Unary", (None,)),
    Script("Upload", (None,)),
)


# A client that sends pieces


class Client:
    """One connection, on which all calls are sent at once."""

    def __init__(self, scripts: Sequence[Script], keys: Sequence[str]) -> None:
        self._http2 = Http2(server=False, limits=Limits(max_metadata=64 * 1024))
        self._answers = {self._begin(*call): Answer() for call in zip(scripts, keys, strict=True)}
        self.sent = self._http2.take()
        """What the client sends, as libnghttp2 frames it."""

    def _begin(self, script: Script, key: str) -> int:
        stream = self._http2.send_request(request(b"/echo.v1.Echo/" + script.method.encode()))
        bodies = [
            bytes(MAX_MESSAGE + 1) if fields is None else EchoRequest(key=key, **fields).SerializeToString()
            for fields in script.messages
        ]
        data = b"".join(b"\0" + number(len(body)) + body for body in bodies)
        self._http2.send_data(stream, data, end_stream=True)
        return stream

    async def outcomes(self, address: str, parts: Iterable[Piece], sent: Callable[[], Awaitable[None]]) -> list[Any]:
        """Send each piece, wait some turns of the loop, and go on. No wait is for a condition: that the server reads
        pieces at once is one of the cases."""
        reader, writer = await opened(address)
        try:
            for piece in parts:
                writer.write(piece.data)
                for _ in range(piece.turns):
                    await asyncio.sleep(0)
            await sent()
            while not all(answer.is_over for answer in self._answers.values()):
                take_answers(self._http2, await asyncio.wait_for(reader.read(65_536), BOUND_S), self._answers)
                writer.write(self._http2.take())
        finally:
            writer.close()
        return [outcome(answer) for answer in self._answers.values()]


async def opened(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """address: the path of a Unix socket, or host:port."""
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address)
    return await asyncio.open_connection(*address.split(":"))


def outcome(answer: Answer) -> Any:
    # Not whether the server has asked the client to stop sending: that depends on what has been sent by then.
    replies = [EchoReply.FromString(body) for _, body in answer.messages]
    return answer.seen, answer.headers, answer.trailers, [(reply.text, reply.seen) for reply in replies]


# Where they are sent


class Place:
    """Where a client connects, and the keys of its calls, which are new and have one owner."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        # Where both shards listen, the one whose loop looks first accepts, and hands over what the other owns.
        self._owner = next(KEYS) % 2 if name == "steered" else OWNER
        shards = cluster._shards(None)
        accepts = 1 - OWNER if name in ("away", "away, waiting for a turn") else OWNER
        self.address: str = shards[accepts].sockets[0 if name == "steered" else 1].getsockname()

    def keys(self, count: int) -> list[str]:
        keys = (f"key-{key:06}" for key in KEYS)
        return list(itertools.islice((key for key in keys if self._cluster.owner_of(key) == self._owner), count))

    async def outcomes(self, scripts: Sequence[Script], cut: Callable[[bytes], Iterable[Piece]]) -> list[Any]:
        """The outcomes of the calls, sent in these pieces. The turn of each key may be another call's meanwhile."""
        keys = self.keys(len(scripts))
        client = Client(scripts, keys)
        if "waiting" not in self._name:
            return await client.outcomes(self.address, cut(client.sent), nothing)
        stub: Any = self._cluster.stub(echo_pb2_grpc.EchoStub)
        (gate,) = self.keys(1)
        holding = [stub.Misbehave(EchoRequest(key=key, order=f"wait {gate}")) for key in keys]

        async def release() -> None:
            await stub.Release(EchoRequest(key=gate))

        owner = self._cluster.service(Echo, shard=self._owner)
        while owner.began.count(gate) < len(keys):  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        try:
            return await client.outcomes(self.address, cut(client.sent), release)
        finally:
            await asyncio.gather(*holding)


async def nothing() -> None:
    pass


@pytest.fixture(scope="module", params=[(), ("tests.interceptors:Stamping",)], ids=["", "interceptors"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    settings = {"max_message_bytes": MAX_MESSAGE, "interceptors": request.param}
    async with Cluster(Echo, shards=2, settings=settings) as cluster:
        yield cluster


# `Random(seed)` and not a strategy: what is drawn inside a coroutine ends the loop where hypothesis stops an example.
def otherwise(rng: Random, sent: bytes, *, pads: bool = True) -> list[Piece]:
    first, *rest = pieces(rng, sent[len(PREFACE) :], pads=pads)
    return [Piece(PREFACE + first.data, first.turns), *rest]


@pytest.mark.parametrize("name", ["home", "away", "steered", "home, waiting for a turn", "away, waiting for a turn"])
@ROUNDS
@given(scripts=st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=3), seed=st.integers(0, 2**32))
async def test_a_call_has_one_outcome_however_its_frames_are_cut(
    cluster: Cluster, name: str, scripts: list[Script], seed: int
) -> None:
    expected = await Place(cluster, "home").outcomes(scripts, lambda sent: [Piece(sent, 0)])
    assert await Place(cluster, name).outcomes(scripts, partial(otherwise, Random(seed))) == expected


@pytest.fixture(scope="module")
def grpcio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shards]:
    toml = echo(2, 'listener = "grpcio"', f"max_message_bytes = {MAX_MESSAGE}")
    with running(tmp_path_factory.mktemp("grpcio"), toml) as app:
        yield Shards(app)


@pytest.mark.parametrize("place", ["home", "away"])
@ROUNDS
@given(scripts=st.lists(st.sampled_from(WELL_FORMED), min_size=1, max_size=3), seed=st.integers(0, 2**32))
async def test_a_call_has_one_outcome_behind_grpcio_s_listener_as_well(
    grpcio: Shards, place: str, scripts: list[Script], seed: int
) -> None:
    member = grpcio.members[0 if place == "home" else 1]

    async def outcomes(cut: Callable[[bytes], Iterable[Piece]]) -> list[Any]:
        keys = (f"key-{key:06}" for key in KEYS)
        owned = itertools.islice((key for key in keys if grpcio.owner_of(key) == "echo-0"), len(scripts))
        client = Client(scripts, list(owned))
        return await client.outcomes(member.address, cut(client.sent), nothing)

    # gRPC's core refuses frames with padding.
    cut = partial(otherwise, Random(seed), pads=False)
    assert await outcomes(cut) == await outcomes(lambda sent: [Piece(sent, 0)])


@pytest.mark.parametrize("name", ["home", "away", "steered"])
async def test_a_call_has_one_outcome_when_every_byte_comes_alone(cluster: Cluster, name: str) -> None:
    for script in WELL_FORMED[:1] + WELL_FORMED[2:]:
        expected = await Place(cluster, "home").outcomes([script], lambda sent: [Piece(sent, 0)])

        def each_byte(sent: bytes) -> list[Piece]:
            return [Piece(sent[n : n + 1], 3) for n in range(len(sent))]

        assert await Place(cluster, name).outcomes([script], each_byte) == expected, script
