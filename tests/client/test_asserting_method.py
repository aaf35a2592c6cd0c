"""A call carries one assertion, written when it is made; a token of its own takes its place."""

from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.client.ring_channel import Channel
from onelane.core.identity import ASSERTION

from tests.follow.scripted import HOLD, Ends, scripted_streams
from tests.follow.v1.follow_pb2 import FollowRequest
from tests.follow.v1.follow_pb2_grpc import FollowStub
from tests.servers import stock

CLIENT = ContextVar("CLIENT", default="nobody")


async def names(request: bytes, context: Any) -> bytes:
    pairs = [f"{name}={value}" for name, value in context.invocation_metadata() if name in (ASSERTION, "authorization")]
    return " ".join(pairs).encode()


HANDLERS: dict[str, Any] = {"Names": grpc.unary_unary_rpc_method_handler(names)}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, f"{ASSERTION}=a"),
        ((("x", "y"),), f"{ASSERTION}=a"),
        # Of the client of the service, which passes on what it has got.
        (((ASSERTION, "stale"),), f"{ASSERTION}=a"),
        ((("authorization", "Bearer t"),), "authorization=Bearer t"),
        (grpc.aio.Metadata(("authorization", "Bearer t"), (ASSERTION, "stale")), "authorization=Bearer t"),
    ],
)
async def test_a_call_says_once_for_whom_it_is_made(metadata: Any, expected: str) -> None:
    async with stock(**HANDLERS) as (address, _):
        channel = Channel(address, deadline_s=5, name="t", assert_identity=lambda: "a")
        reply = await channel.unary_unary("/t.T/Names")(b"", metadata=metadata)
        assert reply.decode() == expected
        await channel.close()


async def test_a_channel_that_asserts_nothing_sends_nothing() -> None:
    async with stock(**HANDLERS) as (address, _):
        channel = Channel(address, deadline_s=5, name="t")
        assert await channel.unary_unary("/t.T/Names")(b"") == b""
        await channel.close()


async def test_a_stream_that_is_opened_again_has_a_new_assertion_of_the_same_client() -> None:
    """One holds for a minute, a stream for days."""
    written: list[str] = []

    def assert_identity() -> str:
        written.append(f"{CLIENT.get()} {len(written)}")
        return written[-1]

    async with scripted_streams() as (scripted, address):
        scripted.scripts = [["a", Ends(7)], ["b", HOLD]]
        channel = Channel(address, deadline_s=5, name="t", assert_identity=assert_identity)
        token = CLIENT.set("ann")
        call: Any = FollowStub(channel).Watch(FollowRequest(key="k"), metadata=(("x-mine", "1"),))
        CLIENT.reset(token)
        assert [(await call.read()).text for _ in range(2)] == ["a", "b"]
        assert [(seen[ASSERTION], seen["x-mine"]) for seen in scripted.seen] == [("ann 0", "1"), ("ann 1", "1")]
        await channel.close()
