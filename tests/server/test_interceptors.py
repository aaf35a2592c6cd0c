"""Server interceptors around a lane's methods: what is ours beyond grpc.aio.

What is as in grpc.aio: test_interceptors_like_grpcio.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.core.keys import FieldKey
from onelane.errors import BadService
from onelane.server import chosen_handler, interceptors
from onelane.server.methods import Method
from onelane.testing import Cluster

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.interceptors import Denying
from tests.server.test_interceptors_like_grpcio import SERVICE, choosing
from tests.servers import lane_behind

each_listener = pytest.mark.parametrize("listener", ["native", "grpcio"])


def denying() -> grpc.aio.ServerInterceptor:
    return Denying()


def number() -> int:
    return 5


class Redirecting(grpc.aio.ServerInterceptor):
    """Sends the calls of a method to another one. grpc.aio takes no details but its own."""

    def __init__(self, **methods: str) -> None:
        self.methods = methods

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        class Details(grpc.HandlerCallDetails):
            method = f"/t.T/{self.methods.get(handler_call_details.method.rpartition('/')[2], 'Nowhere')}"
            invocation_metadata = handler_call_details.invocation_metadata

        return await continuation(Details())


class Plain(grpc.aio.ServerInterceptor):
    """With a plain `def`, as the first ones for grpcio's threads are written."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return continuation(handler_call_details)


def test_an_interceptor_is_an_object_of_a_class_or_made_by_a_function() -> None:
    plugs = ["tests.interceptors:Denying", "tests.server.test_interceptors:denying"]
    assert [type(interceptor) for interceptor in interceptors.load(plugs)] == [Denying, Denying]


@pytest.mark.parametrize("name", ["Nothing", "missing"])
def test_what_is_no_interceptor_is_refused(name: str) -> None:
    with pytest.raises(BadService, match=r"expected a class of grpc\.aio\.ServerInterceptor"):
        interceptors.load([f"tests.interceptors:{name}"])
    with pytest.raises(BadService, match="has made 5"):
        interceptors.load(["tests.server.test_interceptors:number"])


@each_listener
async def test_an_interceptor_sends_a_call_to_another_method(listener: str) -> None:
    chain = [Plain(), Redirecting(Echo="Up", Down="Chat", Up="Down", Chat="Echo")]
    async with lane_behind(listener, chain, **SERVICE) as address, onelane.dial(address) as channel:
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        assert [each async for each in channel.unary_stream("/t.T/Down")(b"x", timeout=BOUND_S)] == [b"x"]
        assert [each async for each in channel.stream_stream("/t.T/Chat")(iter([b"x"]), timeout=BOUND_S)] == [b"x"]
        call = channel.stream_unary("/t.T/Up")(iter([b"x"]), timeout=BOUND_S)
        # `Down` answers twice; in grpc.aio the client would wait for ever.
        assert (await call.code(), "has answered several messages" in await call.details()) == (
            grpc.StatusCode.INTERNAL,
            True,
        )


async def answer(request: bytes, context: Any) -> bytes:
    return b"hello"


def answer_plainly(request: bytes, context: Any) -> bytes:
    return b"hello"


async def answer_nothing(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for text in b"":
        yield bytes(text)


HANDLERS: dict[str, Any] = {
    "async": grpc.unary_unary_rpc_method_handler(answer),
    "plain": grpc.unary_unary_rpc_method_handler(answer_plainly),
}


@each_listener
@pytest.mark.parametrize("kind", HANDLERS)
async def test_a_unary_handler_of_a_stream_without_a_message_is_not_run(listener: str, kind: str) -> None:
    """In grpc.aio the client would wait for ever."""
    chain = choosing(HANDLERS[kind])
    async with lane_behind(listener, chain, **SERVICE) as address, onelane.dial(address) as channel:
        for call in (channel.stream_unary("/t.T/Up"), channel.stream_stream("/t.T/Chat")):
            started = call(iter(()), timeout=BOUND_S)
            code, details = await started.code(), await started.details()
            assert (code, details) == (grpc.StatusCode.UNIMPLEMENTED, "expected one message, received 0")


@each_listener
async def test_a_stream_without_an_answer_does_not_answer_a_unary_call(listener: str) -> None:
    """In grpc.aio the call would be OK, with None for its answer."""
    chain = choosing(grpc.unary_stream_rpc_method_handler(answer_nothing))
    async with lane_behind(listener, chain, **SERVICE) as address, onelane.dial(address) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
        assert (await call.code(), "has answered no message" in await call.details()) == (
            grpc.StatusCode.INTERNAL,
            True,
        )


def test_a_key_is_read_of_a_request_whose_handler_is_not_chosen_yet() -> None:
    rule = FieldKey(("key",), lambda message: str(message.key))
    types: tuple[Callable[[bytes], Any], Any] = (EchoRequest.FromString, EchoReply.SerializeToString)
    method = Method("/t.T/Echo", answer, True, False, False, *types, rule)
    intercepted = chosen_handler.keeping_bytes(method)
    assert isinstance(intercepted.rule, FieldKey)
    assert intercepted.deserialize is not None
    request = EchoRequest(key="k")
    received = intercepted.deserialize(request.SerializeToString())
    assert received.raw == request.SerializeToString()
    # A service that calls another lane of its app has the message alone.
    assert [intercepted.rule.read(received), intercepted.rule.read(request)] == ["k", "k"]


async def test_a_lane_calls_another_one_behind_interceptors_by_the_key_of_the_request() -> None:
    settings = {"interceptors": ["tests.interceptors:Stamping"]}
    async with Cluster("tests.echo.service:Echo", settings=settings) as cluster:
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        owners = {key: (await stub.Unary(EchoRequest(key=key), timeout=BOUND_S)).shard for key in "abcdefgh"}
        assert len(set(owners.values())) == 2
        for key, owner in owners.items():
            for order in (f"by_name {key}", f"call {key} sleep 0"):
                assert (await stub.Across(EchoRequest(key="a", order=order), timeout=BOUND_S)).text == owner
