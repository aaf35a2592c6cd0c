"""One call of any shape to a method that is known by its descriptor alone."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from onelane.cli.message_json import MessagesAsJson, fill_key, message_of
from onelane.cli.methods_of_server import key_paths, path_of
from onelane.errors import Invalid

RICH_DETAILS = "grpc-status-details-bin"
MetadataItems = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """How a call has ended."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: MetadataItems
    rich: list[Any] = field(default_factory=list)
    """The details of a `google.rpc.Status`, as JSON."""


class AnswerPrinter(Protocol):
    """Takes what a call brings, in order."""

    def headers(self, metadata: MetadataItems) -> None: ...

    def response(self, document: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class RemoteMethod:
    """One method of one server."""

    channel: grpc.aio.Channel
    method: Any
    """Its descriptor."""
    pool: Any
    """Of the server's descriptors."""

    def multi_callable(self) -> Any:
        method = self.method
        shape = "_".join("stream" if s else "unary" for s in (method.client_streaming, method.server_streaming))
        return getattr(self.channel, shape)(
            path_of(method),
            lambda message: message.SerializeToString(),
            message_factory.GetMessageClass(method.output_type).FromString,
        )


async def call(
    remote: RemoteMethod,
    texts: AsyncIterator[str],
    *,
    key: Sequence[str],
    metadata: MetadataItems,
    timeout_s: float | None,
    as_json: MessagesAsJson,
    printer: AnswerPrinter,
) -> CallOutcome:
    """Send the requests, whose JSON `texts` has, and print what comes back.

    key: the parts of the key, to be set in each request; none to leave them as they are.

    Raises:
        Invalid: a text is no JSON of a request, or there is another number of them than the method takes.
    """
    requests = _requests(remote, texts, key)
    if not remote.method.client_streaming:
        running = remote.multi_callable()(await _only(requests), timeout=timeout_s, metadata=metadata)
        return await _read(remote, running, as_json, printer)
    running = remote.multi_callable()(timeout=timeout_s, metadata=metadata)
    return await _exchange(running, requests, _read(remote, running, as_json, printer))


async def _exchange(
    running: Any, requests: AsyncIterator[Message], answers: Coroutine[Any, Any, CallOutcome]
) -> CallOutcome:
    """Send the requests of a stream while its answers are read, until the server has ended the call.

    Raises:
        Invalid: a request is none; the call is cancelled.
    """
    sending = asyncio.ensure_future(_send(running, requests))
    reading = asyncio.ensure_future(answers)
    try:
        await asyncio.wait([sending, reading], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            # A request that is none ends the call.
            await sending
        return await reading
    finally:
        running.cancel()
        for task in (sending, reading):
            task.cancel()
        await asyncio.gather(sending, reading, return_exceptions=True)


async def _requests(remote: RemoteMethod, texts: AsyncIterator[str], key: Sequence[str]) -> AsyncIterator[Message]:
    paths = key_paths(remote.method)
    if key and not paths:
        raise Invalid(
            f"the proto of {path_of(remote.method)[1:]} names no key, so --key sets nothing: set the field in the JSON"
        )
    async for text in texts:
        message = message_of(text, remote.method.input_type, remote.pool)
        if key:
            fill_key(message, paths, key)
        yield message


async def _only(requests: AsyncIterator[Message]) -> Message:
    messages = [message async for message in requests]
    if len(messages) != 1:
        raise Invalid(f"the method takes one request, and the JSON has {len(messages)}")
    return messages[0]


async def _send(running: Any, requests: AsyncIterator[Message]) -> None:
    # Where the server has ended the call, its status says why.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        async for request in requests:
            await running.write(request)
        await running.done_writing()


async def _read(remote: RemoteMethod, running: Any, as_json: MessagesAsJson, printer: AnswerPrinter) -> CallOutcome:
    with suppress(grpc.aio.AioRpcError):
        printer.headers(_items(await running.initial_metadata()))
        if remote.method.server_streaming:
            while (response := await running.read()) is not grpc.aio.EOF:
                printer.response(await as_json.json_of(response))
        else:
            printer.response(await as_json.json_of(await running))
    trailers = _items(await running.trailing_metadata())
    return CallOutcome(
        await running.code(), await running.details() or "", trailers, await _rich_details(trailers, as_json)
    )


def _items(metadata: Any) -> MetadataItems:
    return tuple(metadata or ())


async def _rich_details(trailers: MetadataItems, as_json: MessagesAsJson) -> list[Any]:
    packed = next((value for name, value in trailers if name == RICH_DETAILS and isinstance(value, bytes)), b"")
    try:
        details = Status.FromString(packed).details
    except DecodeError:
        return []
    documents: list[Any] = []
    for detail in details:
        try:
            documents.append(await as_json.json_of(detail))
        except Invalid:
            documents.append({"@type": detail.type_url})
    return documents
