"""The service that connectconformance calls: it answers as its requests say, and with what it has seen of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2

from tests.conformance.headers import to_headers, to_metadata
from tests.conformance.v1 import service_pb2 as m
from tests.conformance.v1 import service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Definition = m.UnaryResponseDefinition | m.StreamResponseDefinition
RequestInfo = m.ConformancePayload.RequestInfo
COMPRESSIONS = {"COMPRESSION_GZIP": grpc.Compression.Gzip, "COMPRESSION_DEFLATE": grpc.Compression.Deflate}
CODES = {code.value[0]: code for code in grpc.StatusCode}


class Conformance(service_pb2_grpc.ConformanceServiceServicer):
    async def Unary(self, request: m.UnaryRequest, context: Context) -> m.UnaryResponse:
        return m.UnaryResponse(payload=await answer(request.response_definition, [request], context))

    async def IdempotentUnary(self, request: m.IdempotentUnaryRequest, context: Context) -> m.IdempotentUnaryResponse:
        return m.IdempotentUnaryResponse(payload=await answer(request.response_definition, [request], context))

    async def ClientStream(
        self, request_iterator: AsyncIterator[m.ClientStreamRequest], context: Context
    ) -> m.ClientStreamResponse:
        requests = [request async for request in request_iterator]
        definition = requests[0].response_definition if requests else m.UnaryResponseDefinition()
        return m.ClientStreamResponse(payload=await answer(definition, requests, context))

    async def ServerStream(
        self, request: m.ServerStreamRequest, context: Context
    ) -> AsyncIterator[m.ServerStreamResponse]:
        definition = request.response_definition
        if not request.HasField("response_definition"):
            return
        await begin(definition, context)
        info = seen(context, [request])
        for number, data in enumerate(definition.response_data):
            await asyncio.sleep(definition.response_delay_ms / 1000)
            first = info if number == 0 else None
            yield m.ServerStreamResponse(payload=m.ConformancePayload(data=data, request_info=first))
        if definition.HasField("error"):
            await fail(definition.error, () if definition.response_data else [info], definition, context)

    async def BidiStream(
        self, request_iterator: AsyncIterator[m.BidiStreamRequest], context: Context
    ) -> AsyncIterator[m.BidiStreamResponse]:
        definition = m.StreamResponseDefinition()
        requests: list[m.BidiStreamRequest] = []
        answered = -1
        async for request in request_iterator:
            requests.append(request)
            if answered < 0:
                definition, answered = request.response_definition, 0
                await begin(definition, context)
                full_duplex = request.full_duplex
            if full_duplex and answered >= len(definition.response_data):
                break
            if full_duplex:
                yield await self._next(definition, answered, requests, context)
                answered, requests = answered + 1, []
        answered = max(answered, 0)
        for number in range(answered, len(definition.response_data)):
            yield await self._next(definition, number, requests if number == 0 else [], context)
        if definition.HasField("error"):
            details = () if definition.response_data else [seen(context, requests)]
            await fail(definition.error, details, definition, context)

    async def _next(
        self,
        definition: m.StreamResponseDefinition,
        number: int,
        requests: Sequence[m.BidiStreamRequest],
        context: Context,
    ) -> m.BidiStreamResponse:
        await asyncio.sleep(definition.response_delay_ms / 1000)
        info = seen(context, requests) if number == 0 else RequestInfo(requests=packed(requests))
        payload = m.ConformancePayload(data=definition.response_data[number], request_info=info)
        return m.BidiStreamResponse(payload=payload)


async def answer(
    definition: m.UnaryResponseDefinition, requests: Sequence[Message], context: Context
) -> m.ConformancePayload:
    await begin(definition, context)
    await asyncio.sleep(definition.response_delay_ms / 1000)
    info = seen(context, requests)
    if definition.WhichOneof("response") == "error":
        await fail(definition.error, [info], definition, context)
    return m.ConformancePayload(data=definition.response_data, request_info=info)


async def begin(definition: Definition, context: Context) -> None:
    """Send the initial metadata of an answer, whose messages are compressed as those of its request."""
    case = "".join(str(value) for name, value in context.invocation_metadata() or () if name == "x-test-case-name")
    for name, compression in COMPRESSIONS.items():
        if name in case:
            context.set_compression(compression)
    await context.send_initial_metadata(to_metadata(definition.response_headers))
    context.set_trailing_metadata(to_metadata(definition.response_trailers))


async def fail(
    error: m.Error,
    more_details: Iterable[Message],
    definition: Definition,
    context: Context,
) -> None:
    """End the call with this error. more_details: beside its own."""
    status = status_pb2.Status(code=error.code, message=error.message)
    status.details.extend([*error.details, *packed(more_details)])
    trailers = (*to_metadata(definition.response_trailers), ("grpc-status-details-bin", status.SerializeToString()))
    await context.abort(CODES[error.code], error.message, trailers)


def seen(context: Context, requests: Iterable[Message]) -> RequestInfo:
    """What has come with a call."""
    headers = to_headers(context.invocation_metadata() or ())
    info = RequestInfo(request_headers=headers, requests=packed(requests))
    remaining_s = context.time_remaining()
    if remaining_s is not None:
        info.timeout_ms = max(int(remaining_s * 1000), 0)
    return info


def packed(messages: Iterable[Message]) -> list[AnyMessage]:
    envelopes = []
    for message in messages:
        envelope = AnyMessage()
        envelope.Pack(message)
        envelopes.append(envelope)
    return envelopes
