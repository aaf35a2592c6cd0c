"""The server of gRPC's interoperability tests, as grpc/doc/interop-test-descriptions.md has it.

Not here: CompressedRequest, because no Python server can see whether a message was compressed (tests/interop/raw.py
sends both kinds), and what asks for credentials or a proxy. Beyond it: `x-interop-rich` asks for a rich status.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.interop.v1 import messages_pb2 as m
from tests.interop.v1 import test_pb2_grpc
from tests.interop.v1.empty_pb2 import Empty

Context = grpc.aio.ServicerContext[Any, Any]
INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
RICH = "x-interop-rich"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class Interop(test_pb2_grpc.TestServiceServicer):
    async def EmptyCall(self, request: Empty, context: Context) -> Empty:
        return Empty()

    async def UnaryCall(self, request: m.SimpleRequest, context: Context) -> m.SimpleResponse:
        if request.HasField("response_compressed"):
            context.set_compression(gzip(request.response_compressed))
        await echo_metadata(context)
        if request.HasField("response_status"):
            await echo_status(request.response_status, context)
        return m.SimpleResponse(payload=payload(request.response_size))

    async def StreamingOutputCall(
        self, request: m.StreamingOutputCallRequest, context: Context
    ) -> AsyncIterator[m.StreamingOutputCallResponse]:
        if any(parameters.compressed.value for parameters in request.response_parameters):
            context.set_compression(grpc.Compression.Gzip)
        await echo_metadata(context)
        async for response in self.answers(request, context):
            yield response

    async def StreamingInputCall(
        self, request_iterator: AsyncIterator[m.StreamingInputCallRequest], context: Context
    ) -> m.StreamingInputCallResponse:
        size = 0
        async for request in request_iterator:
            size += len(request.payload.body)
        return m.StreamingInputCallResponse(aggregated_payload_size=size)

    async def FullDuplexCall(
        self, request_iterator: AsyncIterator[m.StreamingOutputCallRequest], context: Context
    ) -> AsyncIterator[m.StreamingOutputCallResponse]:
        await echo_metadata(context)
        async for request in request_iterator:
            async for response in self.answers(request, context):
                yield response

    async def HalfDuplexCall(
        self, request_iterator: AsyncIterator[m.StreamingOutputCallRequest], context: Context
    ) -> AsyncIterator[m.StreamingOutputCallResponse]:
        for request in [request async for request in request_iterator]:
            async for response in self.answers(request, context):
                yield response

    async def answers(
        self, request: m.StreamingOutputCallRequest, context: Context
    ) -> AsyncIterator[m.StreamingOutputCallResponse]:
        if request.HasField("response_status"):
            await echo_status(request.response_status, context)
        for parameters in request.response_parameters:
            if parameters.interval_us:
                await asyncio.sleep(parameters.interval_us / 1_000_000)
            if parameters.HasField("compressed") and not parameters.compressed.value:
                context.disable_next_message_compression()
            yield m.StreamingOutputCallResponse(payload=payload(parameters.size))


def payload(size: int) -> m.Payload:
    return m.Payload(body=bytes(size))


def gzip(wanted: m.BoolValue) -> grpc.Compression:
    return grpc.Compression.Gzip if wanted.value else grpc.Compression.NoCompression


async def echo_metadata(context: Context) -> None:
    sent = dict(context.invocation_metadata() or ())
    if TRAILING in sent:
        context.set_trailing_metadata(((TRAILING, sent[TRAILING]),))
    if INITIAL in sent:
        await context.send_initial_metadata(((INITIAL, sent[INITIAL]),))


async def echo_status(wanted: m.EchoStatus, context: Context) -> None:
    """End the call with the status that the client has asked for."""
    if RICH in dict(context.invocation_metadata() or ()):
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="BECAUSE", domain="interop"))
        status = status_pb2.Status(code=wanted.code, message=wanted.message, details=[detail])
        await context.abort_with_status(rpc_status.to_status(status))
    if wanted.code:
        await context.abort(CODES[wanted.code], wanted.message)
