"""The calls on one client's connection: from the events of the wire to the lane, and from a call's outcome to frames.

Back-pressure reaches both ends: a handler that does not read lets the client's window run dry, and `send` waits while
the client does not read. Whatever goes wrong with one call ends that call, and no other of its connection.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc

from onelane.core.deadlines import Deadlines
from onelane.core.hop import write_client
from onelane.core.turns import patience_s
from onelane.server import auth_context
from onelane.server.arguments import STATUS_OF_NUMBER
from onelane.server.call import OK
from onelane.server.call_state import ARRIVED, DONE, FORWARDED, WAITING
from onelane.server.eager import Eager
from onelane.server.listener import Serving, Work
from onelane.server.methods import Method
from onelane.server.native_call import NativeCall
from onelane.server.unpacking import SMALL, Unpacker, Unpacking
from onelane.wire import framing
from onelane.wire.driver import WireProtocol
from onelane.wire.framing import BadWire, Headers, Metadata
from onelane.wire.held_bytes import CONNECTION_BYTES, SHARD_BYTES, HeldBytes
from onelane.wire.link_headers import LastHeaders
from onelane.wire.packed import Packed
from onelane.wire.server import (
    Broken,
    ConnectionLost,
    Ended,
    Held,
    Messages,
    Opened,
    Pong,
    ServerConnection,
    Stream,
    Untaken,
    WebOpened,
)

log = logging.getLogger("onelane.connection")
LARGE: Final = 64 * 1024
MAX_UNFLUSHED: Final = 4 * 1024 * 1024
"""Bytes that may wait for the end of a turn of the loop. With more, a message larger than `LARGE` is sent at once: the
answers of one turn may be many."""
HEADWAY: Final = 64 * 1024
"""Bytes of an answer that a slow client takes within the time for it, if it does not take all."""
SLOW_MESSAGE, UNTAKEN_ANSWER = "slow_message", "untaken_answer"
"""Reasons of calls that were ended for how long their clients make the shard hold something."""
TOO_MUCH_HELD = {
    CONNECTION_BYTES: "the connection has too many bytes of messages that are not whole, not read or not taken",
    SHARD_BYTES: "the shard has too many bytes of messages that are not whole, not read or not taken",
}


class CallsOwner(Protocol):
    """A listener as the calls of its connections see it."""

    serving: Serving
    loop: asyncio.AbstractEventLoop
    deadlines: Deadlines
    eager: Eager
    methods: dict[bytes, Method]
    compression: grpc.Compression
    held_bytes: HeldBytes
    unpacker: Unpacker


OwnerT = TypeVar("OwnerT", bound=CallsOwner)


class CallsConnection(WireProtocol[ServerConnection], Generic[OwnerT]):
    """See the module. A subclass says how the connection begins and ends."""

    trusted = False
    """A sibling's, see `SiblingConnection`."""
    proves_identities = False
    _identity: Headers | None = None
    _last_headers: LastHeaders | None = None

    def __init__(self, owner: OwnerT, wire: ServerConnection) -> None:
        super().__init__(wire, owner.loop)
        self.peer = ""
        self.auth: Mapping[str, Iterable[bytes]] = auth_context.INSECURE
        self.tasks: dict[asyncio.Task[None], None] = {}
        """The calls under way. A dict: as a set, an idle connection would be larger by 150 bytes."""
        self._owner = owner

    def held_back(self) -> None:
        self.wire.count_untaken()
        self.wire.weigh()

    def let_go(self, level: int, reason: str, *, keeps_oldest: bool) -> int:
        """See `wire.held_bytes.Holder`."""
        for stream in self.wire.let_go(level, TOO_MUCH_HELD[reason], keeps_oldest=keeps_oldest):
            self._ended_early(stream, reason)
        return self.wire.weigh()

    def end_slow_calls(self, now: float, message_s: float) -> None:
        """End calls of which a message is not whole, or the answer not taken, `message_s` after that was first seen."""
        for stream in list(self.wire.streams.values()):
            if not self._is_message_begun(stream):
                continue
            stream.waits_since = stream.waits_since or now
            if now - stream.waits_since > message_s:
                text = f"a message that has begun was not whole after {message_s:g} s"
                self.wire.finish(stream, framing.RESOURCE_EXHAUSTED, text)
                self._ended_early(stream, SLOW_MESSAGE)
        for stream in list(self.wire.answered.values()):
            method = self._owner.methods.get(stream.path)
            left = self.wire.http2.queued(stream.id)
            if method is None or method.response_streaming or not left:
                continue
            if stream.waits_left < 0 or left <= stream.waits_left - HEADWAY:
                stream.waits_since, stream.waits_left = now, left
            elif now - stream.waits_since > message_s:
                self.wire.drop(stream)
                self._ended_early(stream, UNTAKEN_ANSWER)

    def _is_message_begun(self, stream: Stream) -> bool:
        """Whether a message is not whole."""
        if stream.ended or stream.call is None:
            return False
        # A call of one message begins it with its headers, and waits for the end of the stream.
        return not stream.is_whole or stream.call.state is ARRIVED

    def _ended_early(self, stream: Stream, reason: str) -> None:
        """The stream was ended for what it holds, or for how long."""
        self._owner.serving.ended_early(stream.path.decode("latin-1"), reason, peer=self.peer)
        call: NativeCall | None = stream.call
        if call is None:
            self.drop_postponed(stream)
        else:
            call.end_early(grpc.StatusCode.RESOURCE_EXHAUSTED, f"ended early: {reason}")
            self._cancel(stream)
            # Now: its handler may go on for some time after it was cancelled.
            call.discard_unread()
        self.flush_soon()

    def acknowledged(self) -> None:
        """The client has acknowledged a ping."""

    def handle(self, events: list[Any]) -> None:
        for event in events:
            kind = type(event)
            try:
                if kind is Messages:
                    self._arrived(event.stream, event.messages, last=event.last)
                elif kind is Opened:
                    self._opened(event.stream, event.message)
                elif kind is Ended:
                    self.reset(event.stream, event.error)
                elif kind is Broken:
                    self._broken(event.stream, event.code, event.details)
                elif kind is Pong:
                    self.acknowledged()
                elif kind is ConnectionLost:
                    self.is_closing = True
                elif kind is WebOpened:
                    self._web_opened(event.stream)
            except Exception:
                # A defect of ours: it ends its own call. Raised on, it would close the connection, with all its calls.
                self._event_failed(event)
        # Not at once: the answers of one turn of the loop leave together, and wake the client once.
        self.flush_soon()

    def handle_late(self, events: list[Any]) -> None:
        for event in events:
            # Apart from `handle`, which has whatever follows written in a further turn of the loop.
            if type(event) is Held:
                self._owner.held_bytes.report(self, event.held)
            elif type(event) is Untaken:
                self._owner.serving.untaken(event.change, trusted=self.trusted)
            else:
                super().handle_late([event])

    def reset(self, stream: Stream, error: int) -> None:
        """The client has reset the stream of a call, with an HTTP/2 error code."""
        self._cancel(stream)

    def _event_failed(self, event: Any) -> None:
        stream: Stream | None = getattr(event, "stream", None)
        if stream is not None:
            details = "unexpected failure; the shard's log has the rest"
            if stream.call is not None:
                self.cut_off(stream.call, framing.INTERNAL, details)
            elif stream.id in self.wire.streams:
                self.wire.finish(stream, framing.INTERNAL, details)
        with suppress(Exception):
            log.exception("connection.event_failed peer=%s event=%s", self.peer, type(event).__name__)

    def streams_requests(self, call: NativeCall) -> bool:
        return self._owner.methods[call.stream.path].request_streaming

    def send(self, stream: Stream, message: bytes) -> Coroutine[Any, Any, None] | None:
        """Send a message, not compressed, at the end of this turn of the loop, a large one now. Returns what its sender
        awaits where the client does not read."""
        return self._sent(stream, len(message), self.wire.send_uncompressed(stream, message))

    def send_frame(self, stream: Stream, frame: bytes) -> Coroutine[Any, Any, None] | None:
        """`send` a message that has its prefix."""
        self.wire.send_message(stream, frame)
        return self._sent(stream, len(frame), self.wire.http2.queued(stream.id))

    def _sent(self, stream: Stream, size: int, queued: int) -> Coroutine[Any, Any, None] | None:
        if size > LARGE and self.wire.http2.queued_in_all() > MAX_UNFLUSHED:
            self.flush()
        else:
            self.flush_soon()
        return self.wait_room(stream.id) if self._is_paused or queued > self.max_queued else None

    def consumed(self, stream: Stream) -> None:
        self.wire.consumed(stream)
        self.flush_soon()

    def _opened(self, stream: Stream, message: bytes | None) -> None:
        method = self._owner.methods.get(stream.path)
        if method is None:
            self._no_method(stream)
            return
        if not self._accept(stream, method):
            return
        call: NativeCall = stream.call
        if method.request_streaming:
            self._start(call, self._owner.serving.arrive(method, call, None))
            if message is not None and stream.call is not None:
                call.arrived([message], last=True)
        elif message is not None:
            self._start(call, self._owner.serving.arrive(method, call, message))
        else:
            self._owner.serving.announce(method, call)
        if stream.call is not None:
            self._expect_deadline(call)

    def _web_opened(self, stream: Stream) -> None:
        """As `_opened`, of a request of another protocol."""
        method = self._owner.methods.get(stream.path)
        if method is None:
            self._no_method(stream)
        elif self._accept(stream, method):
            # Its answer is translated, and so goes the way of a stream's.
            call: NativeCall = stream.call
            call.has_stream = True
            if method.request_streaming:
                self._start(call, self._owner.serving.arrive(method, call, None))
            else:
                self._owner.serving.announce(method, call)
            if stream.call is not None:
                self._expect_deadline(call)

    def _no_method(self, stream: Stream) -> None:
        path = stream.path.decode("latin-1")
        self.wire.finish(stream, framing.UNIMPLEMENTED, f"Method not found: {path}")

    def _arrived(self, stream: Stream, messages: list[bytes], *, last: bool) -> None:
        call = stream.call
        if call is None or stream.id not in self.wire.streams:
            return
        call.arrived(messages, last=last)
        method = self._owner.methods[stream.path]
        if not method.request_streaming:
            self._begin_whole(call, method, last=last)

    def _broken(self, stream: Stream, code: int, details: str) -> None:
        """The client has broken gRPC's rules. A handler that reads its messages gets those before first."""
        call = stream.call
        if call is None:
            if stream.id in self.wire.streams:
                self.wire.finish(stream, code, details)
        elif self._owner.methods[stream.path].request_streaming:
            call.broken(code, details)
        else:
            self.cut_off(call, code, details)

    def _begin_whole(self, call: NativeCall, method: Method, *, last: bool) -> None:
        """Begin a call of one message once the client has half-closed: a second message is refused before a handler
        runs, wherever the frames were cut."""
        received = call.unread_messages
        if received > 1 or (last and not received):
            # Not how many: that depends on where the frames were cut.
            self.cut_off(
                call, framing.UNIMPLEMENTED, f"expected one message, received {'more' if received else 'none'}"
            )
        elif last:
            message = call.take_message()
            if isinstance(message, Packed):
                self._begin_packed(call, method, message)
            else:
                self._start(call, self._owner.serving.arrive(method, call, message))

    def _begin_packed(self, call: NativeCall, method: Method, packed: Packed) -> None:
        """Begin a call of one compressed message: unpack it, if the call is to be taken at all."""
        if self._owner.serving.refuses(method, call):
            return

        def ended(error: BadWire | None) -> None:
            self._owner.serving.untaken(-1, trusted=self.trusted)
            if call.state is not ARRIVED:
                return
            if error is not None:
                self.cut_off(call, error.code, str(error))
            else:
                self._start(call, self._owner.serving.arrive(method, call, packed.message()))
                self.flush_soon()

        # It is not the lane's yet, but in flight.
        self._owner.serving.untaken(1, trusted=self.trusted)
        self._unpack(call, packed, ended)

    async def unpack(self, call: NativeCall, packed: Packed) -> bytes:
        """Unpack a message that a handler wants to read. Where it cannot be unpacked its call ends, and this raises
        CancelledError."""
        unpacked: asyncio.Future[BadWire | None] = self._loop.create_future()

        def ended(error: BadWire | None) -> None:
            if not unpacked.done():
                unpacked.set_result(error)

        self._unpack(call, packed, ended)
        error = await unpacked
        if error is not None:
            self.cut_off(call, error.code, str(error))
        if not packed.is_whole:
            raise asyncio.CancelledError
        return packed.message()

    def _unpack(self, call: NativeCall, packed: Packed, ended: Callable[[BadWire | None], None]) -> None:
        """Unpack a message at once where it is small, else in turns with others. ended: see `Unpacking`; it is told
        also of a call that ends meanwhile, which then needs the message no more."""

        def grown(amount: int) -> bool:
            self.wire.hold(call.stream, amount)
            self.flush_soon()
            if call.stream.id in self.wire.streams:
                return True
            ended(None)
            return False

        try:
            if packed.advance(SMALL):
                ended(None)
                return
        except BadWire as error:
            ended(error)
            return
        self.wire.hold(call.stream, packed.size)
        self._owner.unpacker.add(self, Unpacking(packed, grown=grown, ended=ended))

    def _start(self, call: NativeCall, work: Work) -> None:
        """Start the work of a call. None: the call is DONE, FORWARDED, or WAITING for its turn."""
        if work is not None:
            task = self._owner.eager.start(work)
            if task is not None and call.state is not DONE:
                call.task = task
                self.tasks[task] = None
        elif call.state is WAITING:
            self._wait(call)

    def _wait(self, call: NativeCall) -> None:
        """Let a call without a task wait for its turn, until a little before its deadline."""
        remaining = call.time_remaining()
        if remaining is not None:
            self._set_deadline(call, monotonic() + patience_s(remaining))

    def proceed(self, call: NativeCall) -> None:
        """The turn of a call has come."""
        if call.deadline_at is not None:
            self._set_deadline(call, call.deadline_at)
        self._start(call, self._owner.serving.resume(call))
        self.flush_soon()

    def _expect_deadline(self, call: NativeCall) -> None:
        """Let a call that has begun expire at its deadline. Most have ended before that, with the first step of their
        handlers, and cost no slot."""
        if not call.slot and call.deadline_at is not None:
            call.slot = self._owner.deadlines.add(call.deadline_at, call)

    def _set_deadline(self, call: NativeCall, at: float) -> None:
        deadlines = self._owner.deadlines
        deadlines.remove(call.slot, call)
        call.slot = deadlines.add(at, call)

    def _accept(self, stream: Stream, method: Method) -> bool:
        """Make the call of a new stream; False where its headers were refused."""
        try:
            metadata, timeout = stream.metadata()
        except BadWire as error:
            self.wire.finish(stream, error.code, str(error))
            return False
        if timeout is not None and timeout <= 0:
            self.wire.finish(stream, framing.DEADLINE_EXCEEDED, "Deadline Exceeded")
            return False
        deadline_at = None if timeout is None else monotonic() + timeout
        stream.call = NativeCall(self, stream, method, metadata, deadline_at)
        return True

    def identity_headers(self) -> Headers:
        """What the owner of a call's key is told of its client: the same for each call of this connection."""
        if self._identity is None:
            self._identity = write_client(self.peer, self.auth)
        return self._identity

    def last_headers(self) -> LastHeaders:
        if self._last_headers is None:
            self._last_headers = LastHeaders()
        return self._last_headers

    def answer(self, call: NativeCall, reply: bytes) -> None:
        """Send the outcome of a call, unless its client has cancelled it."""
        stream = call.stream
        if call.is_cancelled:
            call.discard_unread()
        else:
            try:
                if call.code_now is OK and not (
                    call.trailers or call.has_stream or stream.sent_headers or stream.encoding
                ):
                    self.wire.answer(stream, reply)
                else:
                    self._send_answer(call, reply)
            except Exception as error:
                self._answer_failed(call, error)
        self._release(call)
        if len(reply) > LARGE and self.wire.http2.queued_in_all() > MAX_UNFLUSHED:
            self.flush()

    def _answer_failed(self, call: NativeCall, error: Exception) -> None:
        """End a call whose outcome cannot be sent. A defect of ours: `arguments` has checked what the handler gave."""
        details = str(error) if isinstance(error, BadWire) else "unexpected failure; the shard's log has the rest"
        self.wire.finish(call.stream, error.code if isinstance(error, BadWire) else framing.INTERNAL, details)
        with suppress(Exception):
            log.error("call.answer_failed method=%s", call.method[1:], exc_info=error)

    def _release(self, call: NativeCall) -> None:
        if call.task is not None:
            self.tasks.pop(call.task, None)
            call.task = None
        # A call, its stream and its task refer to each other: cut here, the cycle needs no garbage collector.
        call.stream.call = None
        if call.slot:
            self._owner.deadlines.remove(call.slot, call)
        call.run_callbacks()
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self.flush)

    def _send_answer(self, call: NativeCall, reply: bytes) -> None:
        stream = call.stream
        call.discard_unread()
        if call.code_now is OK:
            if self._owner.methods[stream.path].response_streaming:
                self.wire.send_headers(stream)
            else:
                is_packed = hasattr(call, "packed_reply")
                self.wire.send_message(stream, call.packed_reply if is_packed else call.framed(reply))
        cut = self.wire.finish(stream, call.code_now.value[0], call.details_now, tuple(call.trailers))
        if cut:
            self._owner.serving.truncated("details" if "details" in cut else "trailers")

    def expired(self, call: NativeCall) -> None:
        """The deadline of a call has passed."""
        details = "Deadline Exceeded"
        if call.state is WAITING:
            self._owner.serving.withdraw(call, late=True)
            details = call.details_now
        self.cut_off(call, framing.DEADLINE_EXCEEDED, details)

    def cut_off(self, call: NativeCall, code: int, details: str, trailers: Metadata = ()) -> None:
        """End a call with a status of our own, whatever its handler or its owner does."""
        call.end_early(STATUS_OF_NUMBER[code], details)
        if call.stream.id in self.wire.streams:
            self.wire.finish(call.stream, code, details, trailers)
        self._cancel(call.stream)
        self.flush_soon()

    def _cancel(self, stream: Stream) -> None:
        call = stream.call
        if call is None or call.state is DONE or call.is_cancelled:
            return
        call.is_cancelled = True
        if call.state is WAITING:
            self._owner.serving.withdraw(call, late=False)
        elif call.state is FORWARDED and call.cancel_forward is not None:
            # The forward ends at once, and with it the call.
            call.cancel_forward()
        elif call.task is not None:
            call.task.cancel()
        elif call.state is ARRIVED:
            call.state = call.state.end
            self._release(call)

    def drop_unhandled(self) -> None:
        # Their calls, which have begun, go on without a stream.
        for event in self._postponed:
            if type(event) is Ended:
                self._cancel(event.stream)
        super().drop_unhandled()

    def _cancel_all(self) -> None:
        self.drop_unhandled()
        for stream in list(self.wire.streams.values()):
            self._cancel(stream)
