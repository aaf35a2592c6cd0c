"""OpenTelemetry's own gRPC interceptors (opentelemetry-instrumentation-grpc) record the same spans as with grpcio.

On the client's side, around grpc.aio's channel, `dial` and `connect`; on the server's, around grpc.aio's server and a
lane behind both listeners.
"""

import asyncio
import importlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import echo, running
from tests.servers import lane_behind, stock

instrumentation: Any = importlib.import_module("opentelemetry.instrumentation.grpc")
"""Without types."""
TIMEOUT_S = 20.0
KINDS = {"Unary": "unary_unary", "Down": "unary_stream", "Up": "stream_unary", "Chat": "stream_stream"}
ENDS = [b"answers", b"aborts", b"sets a code", b"raises"]
METADATA = (("x-user", "ann"), ("packed-bin", b"\x00"))


class Recorded:
    """The spans of one provider."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def spans(self) -> list[Any]:
        """Each span, without what differs from run to run, and with the name of its parent."""
        finished = self.exporter.get_finished_spans()
        names = {span.context.span_id: (span.name, span.kind.name) for span in finished}
        return sorted((described(span, names) for span in finished), key=repr)


def described(span: ReadableSpan, names: dict[int, Any]) -> Any:
    assert span.attributes is not None
    attributes = {name: value for name, value in span.attributes.items() if name != "net.peer.port"}
    if "onelane" in str(attributes.get("rpc.user_agent")):
        attributes["rpc.user_agent"] = "own"
    parent = None if span.parent is None else names.get(span.parent.span_id, "lost")
    # The error of `context.abort` has another name.
    kinds = [str((event.attributes or {}).get("exception.type")).rpartition(".")[2] for event in span.events]
    kinds = ["AbortError" if kind == "Aborted" else kind for kind in kinds]
    text = re.sub(r"\n\tdebug_error_string.*", "", span.status.description or "", flags=re.DOTALL)
    return span.name, span.kind.name, parent, sorted(attributes.items()), span.status.status_code.name, text, kinds


# The service: each request says how its call ends


async def end(request: bytes, context: Any) -> bytes:
    trace.get_current_span().set_attribute("seen by the handler", request)
    assert ("x-user", "ann") in context.invocation_metadata()
    context.set_trailing_metadata((("x-peer", context.peer().partition(":")[0]),))
    if request == b"aborts":
        await context.abort(grpc.StatusCode.NOT_FOUND, "not here", (("x-why", "aborted"),))
    if request == b"sets a code":
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("later")
    if request == b"raises":
        raise ValueError("broken")
    return request


async def unary(request: bytes, context: Any) -> bytes:
    return await end(request, context)


async def down(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    await end(request, context)
    yield b"second"


async def up(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return await end([request async for request in requests][-1], context)


async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        await end(request, context)
        yield request


HANDLERS: dict[str, Any] = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Down": grpc.unary_stream_rpc_method_handler(down),
    "Up": grpc.stream_unary_rpc_method_handler(up),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}


async def call(channel: Any, method: str, request: bytes) -> Any:
    """The outcome of one call; its trailing metadata, too."""
    body: Any = iter([request]) if method in ("Up", "Chat") else request
    started = getattr(channel, KINDS[method])(f"/t.T/{method}")(body, timeout=TIMEOUT_S, metadata=METADATA)
    answers: list[Any] = []
    try:
        if hasattr(started, "__aiter__"):
            async for answer in started:
                answers.append(answer)  # noqa: PERF401 - they are kept where it ends with an error
        else:
            answers.append(await started)
    except grpc.aio.AioRpcError as error:
        answers.append(error.code())
    trailers = tuple(pair for pair in await started.trailing_metadata() if pair[0].startswith("x-"))
    return method, request, answers, await started.code(), trailers


async def calls(server: AbstractAsyncContextManager[Any], open_channel: Any, chain: Sequence[Any], method: str) -> Any:
    async with server as served:
        channel = open_channel(served if isinstance(served, str) else served[0], interceptors=chain)
        try:
            return [await call(channel, method, request) for request in ENDS]
        finally:
            await channel.close()


def server_chain(recorded: Recorded) -> list[Any]:
    interceptor: Any = instrumentation.aio_server_interceptor(tracer_provider=recorded.provider)
    return [interceptor]


def client_chain(recorded: Recorded) -> list[Any]:
    interceptors: list[Any] = instrumentation.aio_client_interceptors(tracer_provider=recorded.provider)
    return interceptors


CHANNELS = {"grpc.aio": grpc.aio.insecure_channel, "dial": onelane.dial, "connect": onelane.connect}


@pytest.mark.parametrize("method", KINDS)
async def test_client_interceptors_record_what_they_do_around_grpcios_channel(method: str) -> None:
    outcomes = {}
    for name, open_channel in CHANNELS.items():
        recorded = Recorded()
        chain = client_chain(recorded)
        server = stock(chain=server_chain(recorded), **HANDLERS)
        ended = await calls(server, open_channel, chain, method)
        spans = [span for span in recorded.spans() if span[1] == "CLIENT"]
        # A server's span whose parent is a client's: its `traceparent` has arrived.
        children = [span for span in recorded.spans() if span[2] == (f"/t.T/{method}", "CLIENT")]
        outcomes[name] = ended, spans, len(children)
    assert outcomes["grpc.aio"][2] == len(ENDS)
    assert outcomes["dial"] == outcomes["connect"] == outcomes["grpc.aio"]


@pytest.mark.parametrize("listener", ["native", "grpcio"])
@pytest.mark.parametrize("method", KINDS)
async def test_a_server_interceptor_records_what_it_does_around_grpcios_server(listener: str, method: str) -> None:
    outcomes = []
    for serve in (stock, None):
        recorded = Recorded()
        chain = server_chain(recorded)
        server = stock(chain=chain, **HANDLERS) if serve else lane_behind(listener, chain, **HANDLERS)
        ended = await calls(server, onelane.dial, client_chain(recorded), method)
        # An error that a handler does not catch is UNKNOWN with grpcio, INTERNAL here.
        ended = [outcome for outcome in ended if outcome[1] != b"raises"]
        outcomes.append((ended, [span for span in recorded.spans() if span[1] == "SERVER"]))
    assert outcomes[1] == outcomes[0]


async def test_a_call_that_is_cancelled_ends_at_the_server_behind_the_interceptors() -> None:
    """Around grpc.aio's channel it goes on: opentelemetry-python-contrib#3271."""
    has_begun, is_gone = asyncio.Event(), asyncio.Event()

    async def hold(request: bytes, context: Any) -> bytes:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            is_gone.set()
        return request

    recorded = Recorded()
    handlers: dict[str, Any] = {"Hold": grpc.unary_unary_rpc_method_handler(hold)}
    async with (
        stock(**handlers) as (address, _),
        onelane.dial(address, interceptors=client_chain(recorded)) as channel,
    ):
        waiting = asyncio.ensure_future(asyncio.wait_for(channel.unary_unary("/t.T/Hold")(b"x"), TIMEOUT_S))
        await has_begun.wait()
        waiting.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            await is_gone.wait()


@pytest.mark.slow
@pytest.mark.parametrize("listener", ["native", "grpcio"])
async def test_an_app_runs_behind_the_interceptor_that_its_settings_name(tmp_path: Any, listener: str) -> None:
    plug = 'interceptors = ["opentelemetry.instrumentation.grpc:aio_server_interceptor"]'
    with running(tmp_path, echo(2, plug, f'listener = "{listener}"')) as app:
        async with grpc.aio.insecure_channel(app.listen["echo"], interceptors=client_chain(Recorded())) as channel:
            stub: Any = echo_pb2_grpc.EchoStub(channel)
            for key in ("a", "b", "c", "d"):
                requests = [EchoRequest(key=key, text=text) for text in ("1", "2")]
                assert (await stub.Unary(requests[0], metadata=METADATA, timeout=TIMEOUT_S)).text == "1"
                download = stub.Download(EchoRequest(key=key, times=2), metadata=METADATA, timeout=TIMEOUT_S)
                assert len([reply async for reply in download]) == 2
                upload = stub.Upload(iter(requests), metadata=METADATA, timeout=TIMEOUT_S)
                assert (await upload).text == "1,2"
                chat = stub.Chat(iter(requests), metadata=METADATA, timeout=TIMEOUT_S)
                assert [reply.text async for reply in chat] == ["1", "2"]
                order = EchoRequest(key=key, order="abort")
                failed = stub.Misbehave(order, metadata=METADATA, timeout=TIMEOUT_S)
                assert await failed.code() is grpc.StatusCode.NOT_FOUND
        assert " ERROR " not in app.log.read_text()
