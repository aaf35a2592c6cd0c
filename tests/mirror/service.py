"""The echo service's methods of each shape, each of which tells what it sees of its call, and answers to order.

The order is JSON, in the first message's `text`; what was seen comes back as JSON in the trailer `x-seen`.
"""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class Mirror(echo_pb2_grpc.EchoServicer):
    def __init__(self) -> None:
        self.held: dict[str, asyncio.Event] = {}

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        return await last(self._answers([request], context))

    async def Download(self, request: EchoRequest, context: Any) -> AsyncIterator[EchoReply]:
        async for answer in self._answers([request], context):
            yield answer

    async def Upload(self, request_iterator: AsyncIterator[EchoRequest], context: Any) -> EchoReply:
        return await last(self._answers([request async for request in request_iterator], context))

    async def Chat(self, request_iterator: AsyncIterator[EchoRequest], context: Any) -> AsyncIterator[EchoReply]:
        async for answer in self._answers([request async for request in request_iterator], context):
            yield answer

    async def Hold(self, request: EchoRequest, context: Any) -> EchoReply:
        """Sends its initial metadata, and answers once `Release` has come for the same key."""
        order = json.loads(request.text)
        await context.send_initial_metadata(pairs(order["initial"]))
        await self.held.setdefault(request.key, asyncio.Event()).wait()
        del self.held[request.key]
        return EchoReply()

    async def Release(self, request: EchoRequest, context: Any) -> EchoReply:
        self.held.setdefault(request.key, asyncio.Event()).set()
        return EchoReply()

    async def _answers(self, requests: list[EchoRequest], context: Any) -> AsyncIterator[EchoReply]:
        order = json.loads(requests[0].text.partition("\n")[0])
        context.set_trailing_metadata((*pairs(order.get("trailers", ())), ("x-seen", seen(requests, context))))
        if order.get("compress"):
            context.set_compression(grpc.Compression[order["compress"]])
        if "initial" in order:
            await context.send_initial_metadata(pairs(order["initial"]))
        if order.get("sleeps"):
            await asyncio.Event().wait()
        for number in range(order.get("answers", 1)):
            if number in order.get("plain", ()):
                context.disable_next_message_compression()
            yield EchoReply(text="x" * order.get("size", 10))
        await end(order, context)


async def last(answers: AsyncIterator[EchoReply]) -> EchoReply:
    reply = EchoReply()
    async for answer in answers:
        reply = answer
    return reply


async def end(order: dict[str, Any], context: Any) -> None:
    if "code" in order:
        context.set_code(grpc.StatusCode[order["code"]])
        context.set_details(order["details"])
    if "abort" in order:
        await context.abort(grpc.StatusCode[order["abort"]], order.get("details", ""))
    if "raise" in order:
        raise LookupError(order["raise"])


def pairs(listed: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata from JSON: a value under a `-bin` name is hexadecimal."""
    return tuple((name, bytes.fromhex(value) if name.endswith("-bin") else value) for name, value in listed)


def seen(requests: list[EchoRequest], context: Any) -> str:
    """What a handler can see of its call, in ASCII."""
    remaining = context.time_remaining()
    identities = context.peer_identities()
    return json.dumps(
        {
            "metadata": sorted((name, shortened(value)) for name, value in context.invocation_metadata()),
            "peer": context.peer(),
            "auth": {name: [repr(value) for value in values] for name, values in context.auth_context().items()},
            "identities": identities and [repr(identity) for identity in identities],
            "identity key": context.peer_identity_key(),
            "remaining": remaining and round(remaining),
            "requests": [len(request.text) for request in requests],
            "code": context.code() is grpc.StatusCode.OK,
            "cancelled": context.cancelled(),
        }
    )


def shortened(value: str | bytes) -> str:
    text = ascii(value)
    return text if len(text) < 200 else f"{len(text)} of {text[:10]} {zlib.crc32(text.encode())}"
