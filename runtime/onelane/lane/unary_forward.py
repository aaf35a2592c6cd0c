"""One call of one message and one answer, sent on to the owner of its key; and what all forwards share.

Not a `ClientCall`: nobody awaits it, it parses nothing, and its deadline is the client's. So it has a third of the
fields, and is compiled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio

from onelane.client.call import DEADLINE_DETAILS, MAX_TRANSPARENT_RETRIES, STATUS_BY_NUMBER
from onelane.client.connection import ENDED, Connection
from onelane.client.propagation import forwarded, forwarded_apart, write_common
from onelane.client.subchannel import Subchannel
from onelane.core.hop import SERVED
from onelane.core.placement import Member
from onelane.core.trace_context import TraceContext
from onelane.server.call import Call
from onelane.wire import framing
from onelane.wire.client import ClientConnection, ClientStream
from onelane.wire.framing import Headers, Metadata
from onelane.wire.link_client import LinkClient

NOT_HOME: Final = "onelane-not-home"
"""Trailer by which a shard says that it does not own the key, with its epoch."""

Done = Callable[[bytes], None]


class UnaryForward:
    """See the module. Owned by the loop of its subchannel."""

    __slots__ = (
        "_done",
        "_end",
        "_epoch",
        "_initial",
        "_on_answered",
        "_request",
        "_subchannel",
        "_trace",
        "connection",
        "has_reached_owner",
        "headers",
        "is_cancelled_here",
        "messages",
        "of_client",
        "owner",
        "passing",
        "status",
        "status_details",
        "stream",
        "trailers",
        "transmissions",
        "wait_for_ready",
    )

    def __init__(
        self,
        subchannel: Subchannel,
        owner: Member,
        call: Call,
        trace: TraceContext | None,
        epoch: int,
        request: bytes,
        on_answered: Callable[["UnaryForward"], object],
        done: Done,
    ) -> None:
        """trace: of the span of this hop. epoch: of the placement by which it is sent on. on_answered: called after the
        headers of the answer. done: called once, with the reply."""
        self.of_client = call
        self.owner = owner
        self.headers: Headers = []
        self.wait_for_ready = False
        self.status: grpc.StatusCode | None = None
        """None while the call is under way."""
        self.status_details = ""
        self.trailers: Metadata = ()
        self.messages: list[bytes] = []
        """With their prefix, as the owner has sent them."""
        self.stream: ClientStream | None = None
        self.connection: Connection | None = None
        self.transmissions = 0
        self.passing: asyncio.Task[Exception | None] | None = None
        """Passes the initial metadata on, where they came before the answer. Its result: why the client takes none."""
        self.is_cancelled_here = False
        self.has_reached_owner = False
        """It was cancelled once the owner had it, which therefore counts it."""
        self._subchannel = subchannel
        self._trace = trace
        self._epoch = epoch
        self._request = request
        self._on_answered = on_answered
        self._done = done
        self._initial: Metadata | None = None
        self._end: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Send it, now or once its owner can be reached."""
        self.of_client.cancel_forward = self.cancel
        try:
            self._subchannel.start(self)
        except grpc.aio.UsageError:
            # Closed: the call has ended with UNAVAILABLE.
            return

    # Called by its subchannel and its connection, see `onelane.client.connection.Outgoing`

    @property
    def can_repeat(self) -> bool:
        return self.transmissions <= MAX_TRANSPARENT_RETRIES and self._initial is None

    @property
    def is_over(self) -> bool:
        return self.status is not None

    def begin(self, connection: Connection) -> None:
        self.transmissions += 1
        self.connection = connection
        self.stream = self._send_whole(connection.link) if connection.link is not None else None
        if self.stream is None:
            self.stream = self._send(connection.wire)
        connection.flush_soon()

    def _send_whole(self, link: LinkClient) -> ClientStream | None:
        """Send it in one frame, if it can be."""
        common, own = forwarded_apart(self.of_client, self._trace)
        return link.forward(
            common,
            write_common,
            own,
            self._request,
            self,
            deadline_at=self.of_client.deadline_at,
            epoch=self._epoch,
            is_unsampled=self._trace is not None and not self._trace.trace_id,
            limit=self._subchannel.dialling.max_message_bytes,
        )

    def _send(self, wire: ClientConnection) -> ClientStream:
        headers = forwarded(self.of_client, self._trace, epoch=self._epoch)
        limit = self._subchannel.dialling.max_message_bytes
        stream = wire.call(headers, framing.frame(self._request), self, limit=limit)
        stream.keep_frames()
        return stream

    def begin_late(self, connection: Connection) -> None:
        # Its headers are written only now.
        self.begin(connection)

    def reset_attempt(self) -> None:
        if self.stream is not None:
            self.stream.call = ENDED
        self.stream = self.connection = None
        self._initial = None
        self.messages.clear()

    def moves_to(self, subchannel: Subchannel) -> None:
        self._subchannel = subchannel
        self.transmissions = 0

    def answered(self, metadata: Metadata) -> None:
        self._initial = metadata
        # Later: the answer itself nearly always comes in the same bytes.
        asyncio.get_running_loop().call_soon(self._on_answered, self)

    def arrived(self, messages: list[bytes]) -> None:
        self.messages += messages

    def answered_whole(self, reply: bytes, trailers: Metadata) -> None:
        """Its owner has ended it with the status OK, all in one piece."""
        if self._initial is None and self.passing is None and self._end is None and self.status is None:
            call = self.of_client
            self.status = grpc.StatusCode.OK
            self.trailers = call.trailers = trailers
            assert self.stream is not None
            self.stream.call = ENDED
            if not call.initial_sent:
                call.answer_in(b"")
            self._done(reply)
        else:
            self.messages.append(framing.frame(reply))
            self.finish(framing.OK, "", trailers)

    def finish(self, code: Any, details: str, trailers: Metadata = ()) -> None:
        if self.status is not None:
            return
        self.status = code if isinstance(code, grpc.StatusCode) else STATUS_BY_NUMBER[code]
        self.status_details = details
        self.trailers = trailers
        if self.stream is not None:
            # They refer to each other: parted here, they need no garbage collector.
            self.stream.call = ENDED
        if self._end is not None and not self._end.done():
            self._end.set_result(None)
        self._answer()

    def abandon(self, details: str) -> None:
        self.finish(grpc.StatusCode.UNAVAILABLE, details)

    def wait_ended(self) -> Awaitable[None]:
        """Wait until it has ended."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
            if self.status is not None:
                self._end.set_result(None)
        return self._end

    # What its client's call sees

    def cancel(self) -> bool:
        """End it here, and tell its owner."""
        if self.status is not None:
            return False
        self.is_cancelled_here = True
        stream, connection = self.stream, self.connection
        if stream is None or connection is None:
            self._subchannel.forget(self)
        else:
            # Everything was sent that the owner needs to begin the call.
            self.has_reached_owner = not (connection.wire.is_unsent(stream) or connection.wire.http2.queued(stream.id))
            # The owner counts the call with the status that its client is told.
            code, _ = status_if_cancelled(self.of_client)
            connection.cancel(stream, framing.reset_of_status(code.value[0]))
        self.finish(grpc.StatusCode.CANCELLED, "")
        return True

    def refuse(self, error: Exception) -> None:
        """End it: what the owner has answered cannot be passed on."""
        self.of_client.end_early(status_of(error), str(error))
        self.cancel()

    @property
    def initial(self) -> Metadata:
        """The initial metadata received by now."""
        return self._initial or ()

    @property
    def encoding(self) -> bytes:
        """Of the compressed messages in the answer; b"" for none."""
        return self.stream.encoding if self.stream is not None else b""

    def _answer(self) -> None:
        """Its outcome is that of its client's call."""
        frame, call = b"", self.of_client
        if self.status is not grpc.StatusCode.OK:
            fail(call, self.owner, self)
        elif len(self.messages) == 1:
            frame = self.messages[0]
            call.trailers = self.trailers
        else:
            details = f"expected one message, {self.owner.name} sent {len(self.messages)}"
            call.fail(grpc.StatusCode.UNIMPLEMENTED, details)
        if self.passing is None or self.passing.done():
            self._done(self._reply(frame))
        else:
            self.passing.add_done_callback(lambda _: self._done(self._reply(frame)))

    def _reply(self, frame: bytes) -> bytes:
        """The reply of a call that has ended. Before it go the headers of the owner's answer, if they have not yet."""
        call = self.of_client
        try:
            if self.passing is not None and (refusal := self.passing.result()) is not None:
                raise refusal
            if not call.initial_sent:
                call.answer_in(self.encoding)
                if self._initial:
                    call.send_initial_now(call.accept_initial_metadata(self._initial))
            return call.reply_of(frame, self.encoding) if frame else b""
        except Exception as error:
            # The client takes less metadata than the shards do; and whatever it is, the call must end.
            call.fail(status_of(error), str(error))
            return b""


def status_of(error: Exception) -> grpc.StatusCode:
    return grpc.StatusCode[getattr(error, "status", "INTERNAL")]


def status_if_cancelled(call: Call) -> tuple[grpc.StatusCode, str]:
    """The status of a client's call where this shard ends it before its owner does."""
    if call.early_status is not None:
        return call.early_status
    if call.time_remaining() == 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED, DEADLINE_DETAILS
    if call.is_cancelled_by_client:
        return grpc.StatusCode.CANCELLED, "cancelled by the client"
    return grpc.StatusCode.UNAVAILABLE, "the shard has shut down before the answer was ready"


def fail(call: Call, owner: Member, sent: Any) -> None:
    """End a client's call as its forward `sent` has failed."""
    assert sent.status is not None
    call.trailers = sent.trailers
    if sent.has_reached_owner or sent.status is grpc.StatusCode.DEADLINE_EXCEEDED:
        # Cut off; the owner's end of the connection, which did so or was told, may know nothing of its counts.
        call.trailers = (*call.trailers, (SERVED, owner.name))
    details = sent.status_details
    if sent.status is grpc.StatusCode.CANCELLED and (sent.is_cancelled_here or call.time_remaining() == 0):
        # Not by its owner: the deadline of the client's call has passed, or it was cancelled, or cut off. So it is
        # counted here, where the owner has not seen it.
        call.fail(*status_if_cancelled(call))
        return
    if sent.status is grpc.StatusCode.UNAVAILABLE and not any(name in (SERVED, NOT_HOME) for name, _ in call.trailers):
        details = f"shard {owner.name} does not answer: {details}"
    call.fail(sent.status, details)


def take_marker(call: Call, name: str) -> str | None:
    """Take a sibling's marker out of the trailers, so that no client sees it."""
    for key, marker in call.trailers:
        if key == name:
            rest = [pair for pair in call.trailers if pair[0] != name] if len(call.trailers) > 1 else ()
            call.trailers = tuple(rest)
            return marker.decode() if isinstance(marker, bytes) else marker
    return None
