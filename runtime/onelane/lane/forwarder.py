"""Sending one call on, unread, to the shard that owns its key: once, over the sibling's Unix socket, or over a link to
its machine.

The client's headers pass unchanged, with its identity and its deadline beside them (`core/hop`); so do the messages of
the answer, compressed as the owner has sent them, the metadata as they come, status, details and trailers. The metadata
that siblings exchange (`onelane-served`, `onelane-not-home`) never reach a client.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import grpc
import grpc.aio

from onelane.client.call import ClientCall
from onelane.client.call_types import StreamStreamCall, UnaryStreamCall
from onelane.client.connection import Connection
from onelane.client.options import Dialling
from onelane.client.propagation import forwarded
from onelane.client.retired_channels import RetiredChannels
from onelane.client.subchannel import Subchannel
from onelane.core.placement import Member
from onelane.core.trace_context import TraceContext
from onelane.lane.unary_forward import Done, UnaryForward, fail, status_if_cancelled, status_of
from onelane.server.call import Call
from onelane.wire import framing
from onelane.wire.framing import Headers
from onelane.wire.http2 import SIBLING_LIMITS

SIBLING_DIALLING = Dialling(
    initial_backoff_s=0.1,
    max_backoff_s=0.5,
    # The supervisor holds the socket of a shard that restarts: a call waits for it as long as its client does.
    connect_s=None,
    max_message_bytes=2**31 - 1,
    max_connections=1,
    own_user_only=True,
    # A sibling may close while this shard gets no CPU: it writes then before it reads.
    reads_to_end=True,
    limits=SIBLING_LIMITS,
    offers_link=True,
)


Reach = Callable[[Member], tuple[str, Dialling]]
"""The target of a shard of another machine, and how it is dialled."""


class Forwarder(Protocol):
    """Carries calls to siblings. Promised: the outcome stands in `call` when a method returns, or calls `done`.

    Not promised: that the sibling is alive; a dead one is UNAVAILABLE with its name.
    """

    def begin(
        self, owner: Member, call: Call, request: bytes, trace: TraceContext | None, done: Done, *, epoch: int = 0
    ) -> None:
        """Forward a call of one message and one answer. Sets `call.cancel_forward`, and then calls `done` with the
        answer, once, maybe before this returns. epoch: of the placement by which it is sent on."""

    async def stream(
        self,
        owner: Member,
        call: Call,
        request: bytes | None,
        trace: TraceContext | None,
        *,
        streams_response: bool,
        epoch: int = 0,
    ) -> bytes:
        """Forward a call with a stream in it; `request` is None where the client streams. epoch: see `begin`."""

    def give_up(self, owner: Member) -> None:
        """End the calls that were sent to a shard, with UNAVAILABLE, and its connections: its lane does not tick."""

    def keep(self, sockets: Collection[str]) -> None:
        """The siblings of now are at these sockets: have the connections to others end with their calls."""

    async def aclose(self) -> None:
        """End every connection. A call that is forwarded from now on ends with UNAVAILABLE."""


class _Forward(ClientCall):
    """A call with a stream in it to the owner, in place of the client's. It has no deadline of its own: the client's
    call ends it."""

    of_client: Call
    """The call that it forwards."""
    single_response = False
    """Not even of a unary answer: its headers are to be seen at once, also where they hold no metadata."""
    streams_requests = False
    has_reached_owner = False
    """It was cancelled once the owner had it, which therefore counts it."""

    def begin(self, connection: Connection) -> None:
        super().begin(connection)
        if self.stream is not None:
            self.stream.keep_frames()

    def time_remaining(self) -> float | None:
        return self.of_client.time_remaining()

    def cancel(self) -> bool:
        if self.status is None and self.stream is not None:
            assert self.connection is not None
            wire = self.connection.wire
            is_queued = not self.streams_requests and wire.http2.queued(self.stream.id)
            # Everything was sent that the owner needs to begin the call.
            self.has_reached_owner = not wire.is_unsent(self.stream) and not is_queued
        return super().cancel()

    def reset_error(self) -> int:
        """The owner counts the call with the status that its client is told."""
        code, _ = status_if_cancelled(self.of_client)
        return framing.reset_of_status(code.value[0])

    def refuse(self, error: Exception) -> None:
        """End it: what the owner has answered cannot be passed on."""
        self.of_client.end_early(status_of(error), str(error))
        self.cancel()

    @property
    def encoding(self) -> bytes:
        """Of the compressed messages in the answer; b"" for none."""
        return self.stream.encoding if self.stream is not None else b""


class _DownloadForward(_Forward, UnaryStreamCall):
    """Of one message and a stream of answers."""


class _StreamForward(_Forward, StreamStreamCall):
    """Of a stream of messages, with one answer or many."""

    streams_requests = True


class NativeForwarder:
    """Forwards over one native connection to each sibling, made at the first call."""

    def __init__(self, *, max_waiting: int = SIBLING_DIALLING.max_waiting, reach_remote: Reach | None = None) -> None:
        """max_waiting: calls that wait until they can connect to one sibling; a further one is RESOURCE_EXHAUSTED.
        reach_remote: None where all siblings are on this machine."""
        self._reach_remote = reach_remote
        self._dialling = replace(SIBLING_DIALLING, max_waiting=max_waiting)
        self._siblings: dict[str, Subchannel] = {}
        self._retired = RetiredChannels()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def begin(
        self, owner: Member, call: Call, request: bytes, trace: TraceContext | None, done: Done, *, epoch: int = 0
    ) -> None:
        UnaryForward(self._sibling(owner), owner, call, trace, epoch, request, self._answering, done).start()

    def _answering(self, sent: UnaryForward) -> None:
        """The headers of the answer have come: pass them on, if the answer itself is still to come."""
        call = sent.of_client
        if sent.status is None and not call.initial_sent:
            sent.passing = asyncio.get_running_loop().create_task(_pass_early_headers(call, sent))
            self._tasks.add(sent.passing)
            sent.passing.add_done_callback(self._tasks.discard)

    async def stream(
        self,
        owner: Member,
        call: Call,
        request: bytes | None,
        trace: TraceContext | None,
        *,
        streams_response: bool,
        epoch: int = 0,
    ) -> bytes:
        sent = self._open(owner, call, request, forwarded(call, trace, epoch=epoch))
        reply = b""
        try:
            await sent.initial_metadata()
            if sent.has_answered:
                await _pass_headers(call, sent)
            if streams_response:
                while (frame := await sent.read()) is not grpc.aio.EOF:
                    await call.send_frame(frame, sent.encoding)
            else:
                reply = await _only_reply(owner, call, sent)
            call.trailers = sent.trailers
        except grpc.aio.AioRpcError:
            fail(call, owner, sent)
        except asyncio.CancelledError:
            sent.cancel()
            fail(call, owner, sent)
            raise
        except Exception as error:
            sent.refuse(error)
            raise
        return reply

    def give_up(self, owner: Member) -> None:
        if (sibling := self._siblings.pop(owner.socket, None)) is not None:
            sibling.give_up("its lane does not tick")

    def keep(self, sockets: Collection[str]) -> None:
        for socket in self._siblings.keys() - sockets:
            self._retired.add(self._siblings.pop(socket))

    async def aclose(self) -> None:
        self._is_closed = True
        siblings = list(self._siblings.values())
        for sibling in siblings:
            sibling.begin_close(None)
        for sibling in siblings:
            await sibling.close(None)
        await self._retired.aclose()

    def _open(self, owner: Member, call: Call, request: bytes | None, headers: Headers) -> Any:
        sibling = self._sibling(owner)
        if request is None:
            sent: Any = _StreamForward(sibling, headers, None, None, False)
            sent.prepare(_rest(call, sent.outgoing), None, framing.frame)
        else:
            sent = _DownloadForward(sibling, headers, None, None, False)
            sent.request = framing.frame(request)
        sent.of_client = call
        with suppress(grpc.aio.UsageError):
            sibling.start(sent.outgoing)
        return sent

    def _sibling(self, owner: Member) -> Subchannel:
        sibling = self._siblings.get(owner.socket)
        if sibling is None:
            target, dialling = f"unix:{owner.socket}", self._dialling
            if owner.is_remote and self._reach_remote is not None:
                target, dialling = self._reach_remote(owner)
                dialling = replace(dialling, max_waiting=self._dialling.max_waiting)
            sibling = self._siblings[owner.socket] = Subchannel(target, dialling)
            if self._is_closed:
                sibling.begin_close(None)
        return sibling


async def _rest(call: Call, sent: Any) -> AsyncIterator[bytes]:
    try:
        while (message := await call.next_bytes()) is not None:
            yield message
    except asyncio.CancelledError:
        # Its client has broken gRPC's rules. Cancelled here, the forward logs no failure: there is none of ours.
        sent.cancel()
        raise


async def _only_reply(owner: Member, call: Call, sent: Any) -> bytes:
    """The one message of a unary answer, unless the owner has broken the protocol."""
    frames = []
    while (frame := await sent.read()) is not grpc.aio.EOF:
        frames.append(frame)
    if len(frames) == 1:
        return call.reply_of(frames[0], sent.encoding)
    call.fail(grpc.StatusCode.UNIMPLEMENTED, f"expected one message, {owner.name} sent {len(frames)}")
    return b""


async def _pass_early_headers(call: Call, sent: UnaryForward) -> Exception | None:
    try:
        await _pass_headers(call, sent)
    except Exception as error:
        sent.refuse(error)
        return error
    return None


async def _pass_headers(call: Call, sent: _Forward | UnaryForward) -> None:
    """Let the client's answer begin as the owner's has: with its encoding and its initial metadata."""
    if not call.initial_sent:
        call.answer_in(sent.encoding)
        await call.send_initial_metadata(sent.initial)
