"""Sending one call on, unread, to the shard that owns its key: once, over the sibling's Unix socket.

Metadata, deadline, cancellation, status, details and trailers pass both ways unchanged. The metadata that siblings
exchange (`onelane-hop`, `onelane-served`) never reach a client.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio

from onelane.client.call import ClientCall
from onelane.client.channel import NativeChannel
from onelane.client.options import Dialling
from onelane.client.propagation import forwarded
from onelane.core.placement import Member
from onelane.core.trace_context import TraceContext
from onelane.errors import OnelaneError
from onelane.server.call import Call

SERVED = "onelane-served"
"""Trailer by which the owner says that it has counted the call."""
NOT_HOME = "onelane-not-home"
"""Trailer by which a shard says that it does not own the key, with its epoch."""

SIBLING_DIALLING = Dialling(
    initial_backoff_s=0.1, max_backoff_s=0.5, connect_s=5.0, max_message_bytes=2**31 - 1, max_connections=1
)


Done = Callable[[bytes], None]


class Forwarder(Protocol):
    """Carries calls to siblings. Promised: the outcome stands in `call` when a method returns, or calls `done`.

    Not promised: that the sibling is alive; a dead one is UNAVAILABLE with its name.
    """

    def begin(self, owner: Member, call: Call, request: bytes, trace: TraceContext | None, done: Done) -> None:
        """Forward a call of one message and one answer. Sets `call.cancel_forward`, and then calls `done` with the
        answer, once, maybe before this returns."""

    async def stream(
        self,
        owner: Member,
        call: Call,
        request: bytes | None,
        trace: TraceContext | None,
        *,
        streams_response: bool,
    ) -> bytes:
        """Forward a call with a stream in it; `request` is None where the client streams."""

    async def aclose(self) -> None:
        """End every connection."""


class NativeForwarder:
    """Forwards over one native channel to each sibling, made at the first call."""

    def __init__(self) -> None:
        self._channels: dict[str, NativeChannel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unary: dict[tuple[str, str], Any] = {}

    def begin(self, owner: Member, call: Call, request: bytes, trace: TraceContext | None, done: Done) -> None:
        send = self._unary.get((owner.socket, call.method))
        if send is None:
            send = self._channel(owner).unary_unary(call.method)
            self._unary[owner.socket, call.method] = send
        sent: ClientCall = send(request, metadata=forwarded(call.metadata, trace), timeout=call.time_remaining())
        call.cancel_forward = sent.cancel
        sent.when_ended(partial(self._answered, owner, call, done))

    def _answered(self, owner: Member, call: Call, done: Done, sent: ClientCall) -> None:
        reply = b""
        if sent.status is grpc.StatusCode.OK and len(sent.messages) == 1:
            reply = sent.messages[0]
            call.trailers = sent.trailers
        elif sent.status is grpc.StatusCode.OK:
            call.fail(grpc.StatusCode.UNIMPLEMENTED, f"expected one message, {owner.name} sent {len(sent.messages)}")
        else:
            _fail(call, owner, sent)
        if call.initial_sent or not sent.initial:
            done(reply)
            return
        task = asyncio.get_running_loop().create_task(_pass_initial_then(call, sent, done, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stream(
        self,
        owner: Member,
        call: Call,
        request: bytes | None,
        trace: TraceContext | None,
        *,
        streams_response: bool,
    ) -> bytes:
        sent = self._open(owner, call, request, trace, streams_response=streams_response)
        reply = b""
        try:
            if streams_response:
                await sent.initial_metadata()
                await _pass_initial(call, sent)
                async for answer in sent:
                    await call.send(answer)
            else:
                reply = await sent
                await _pass_initial(call, sent)
            call.trailers = sent.trailers
            call.fail(sent.status, sent.status_details)
        except grpc.aio.AioRpcError:
            _fail(call, owner, sent)
        finally:
            sent.cancel()
        return reply

    async def aclose(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        self._unary.clear()

    def _open(
        self, owner: Member, call: Call, request: bytes | None, trace: TraceContext | None, *, streams_response: bool
    ) -> Any:
        channel = self._channel(owner)
        shapes: dict[tuple[bool, bool], Callable[[str], Any]] = {
            (True, True): channel.stream_stream,
            (True, False): channel.stream_unary,
            (False, True): channel.unary_stream,
        }
        send = shapes[request is None, streams_response](call.method)
        body = _rest(call) if request is None else request
        return send(body, metadata=forwarded(call.metadata, trace), timeout=call.time_remaining())

    def _channel(self, owner: Member) -> NativeChannel:
        if owner.socket not in self._channels:
            self._channels[owner.socket] = NativeChannel(f"unix:{owner.socket}", SIBLING_DIALLING)
        return self._channels[owner.socket]


async def _rest(call: Call) -> AsyncIterator[bytes]:
    while (message := await call.next_bytes()) is not None:
        yield message


async def _pass_initial_then(call: Call, sent: ClientCall, done: Done, reply: bytes) -> None:
    try:
        await _pass_initial(call, sent)
    except OnelaneError as error:
        # The client takes less metadata than a sibling.
        call.fail(grpc.StatusCode[error.status], str(error))
        reply = b""
    finally:
        done(reply)


async def _pass_initial(call: Call, sent: ClientCall) -> None:
    if not call.initial_sent and (initial := sent.initial):
        await call.send_initial_metadata(initial)


def _fail(call: Call, owner: Member, sent: ClientCall) -> None:
    assert sent.status is not None
    call.trailers = sent.trailers
    details = sent.status_details
    if sent.status is grpc.StatusCode.UNAVAILABLE and not any(name == SERVED for name, _ in call.trailers):
        details = f"shard {owner.name} does not answer: {details}"
    call.fail(sent.status, details)


def take_marker(call: Call, name: str) -> str | None:
    """Take a sibling's marker out of the trailers, so that no client sees it."""
    marker = next((value for key, value in call.trailers if key == name), None)
    if marker is not None:
        call.trailers = tuple(pair for pair in call.trailers if pair[0] != name)
    return marker.decode() if isinstance(marker, bytes) else marker
