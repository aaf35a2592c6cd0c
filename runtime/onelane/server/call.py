"""One call as a lane sees it: method, metadata, messages and outcome. It is also the handler's `ServicerContext`.

A listener subclasses `Call` with its own bytes; a lane never sees a socket. Outcome fields are written by the handler
(through gRPC's own context methods) and by the lane, and read by the listener when the handler has ended.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

import grpc
import grpc.aio
from mypy_extensions import mypyc_attr

from onelane.core.hop import write_client, write_proven
from onelane.core.identity import Identity
from onelane.core.trace_context import TraceContext
from onelane.core.turns import Turn
from onelane.server import arguments, auth_context, context_methods, user_code
from onelane.server.call_state import ARRIVED, DONE, CallState
from onelane.telemetry.tracer import Span, context_of
from onelane.wire import deframer, framing
from onelane.wire.framing import Metadata as Metadata
from onelane.wire.link_headers import headers_apart

log = logging.getLogger("onelane.call")
OK: Final = grpc.StatusCode.OK
FINISHED = "RPC already finished."
COMPRESSIONS = dict(zip((b"", b"deflate", b"gzip"), grpc.Compression, strict=True))
"""`grpc-encoding` → what a handler calls it."""
DIRECT_HOP: Final = "direct"
"""A value of `Call.hop`: from a client."""
FORWARDED_HOP: Final = "forwarded"
"""Sent on by a sibling."""
AWAY: Final = "away"
"""Counted by a sibling."""


@mypyc_attr(native_class=False)
class Aborted(grpc.aio.AbortError):
    """A handler ended its call by `context.abort`; the status is in the call."""


@mypyc_attr(native_class=False)
class InitialMetadataSent(grpc.aio.UsageError, ValueError):
    """Initial metadata are sent once, before the first message. For async handlers grpcio raises a UsageError, for
    plain ones a ValueError."""

    def __init__(self) -> None:
        super().__init__("Send initial metadata failed: already sent")


class Metadatum(NamedTuple):
    """One pair of `invocation_metadata`. Interceptors of OpenTelemetry and others read its fields, as in grpcio."""

    key: str
    value: str | bytes


@mypyc_attr(allow_interpreted_subclasses=True)
class Call:
    """One call. Methods that raise NotImplementedError are the listener's to implement."""

    waiting: Any
    """While it is WAITING, the lane's `Waiting` or `Arriving`; else None, or not set."""
    key: str
    """Of a call that runs without taking turns, for a change of placement; else not set."""
    tells_cancellation: ClassVar[bool] = False
    """Its listener sets `is_cancelled` wherever anything but a drain cancels its task."""

    __slots__ = (
        "_abort_details",
        "_callbacks",
        "_deserialize",
        "_early_status",
        "_has_code",
        "_identity",
        "_pushed_back",
        "_serialize",
        "_turned",
        "baggage",
        "began",
        "cancel_forward",
        "chain",
        "code_now",
        "debug",
        "details_now",
        "hop",
        "initial_sent",
        "is_cancelled",
        "key",
        "metadata",
        "method",
        "parent",
        "reply",
        "span",
        "state",
        "trailers",
        "trusted",
        "turn",
        "waiting",
    )

    def __init__(self, method: str, metadata: Metadata, *, trusted: bool) -> None:
        self.method = method
        """`/pkg.Service/Method`."""
        self.metadata = metadata
        self.trusted = trusted
        """The connection is known to be a sibling's."""
        self.state: CallState = ARRIVED
        """Written by the lane, and by the listener for a call that it never gave to the lane."""
        self.code_now: grpc.StatusCode = OK
        self.details_now = ""
        self.trailers: Metadata = ()
        self.debug: Metadata = ()
        """Trailers that the caller asked for by `onelane-debug`."""
        self.parent: TraceContext | None = None
        """The trace that the caller is in."""
        self.span: Span = None
        self.began = 0.0
        """When the lane took it; by `perf_counter`."""
        self.baggage = ""
        """W3C baggage that the caller has sent."""
        self.chain = ""
        """The turns of the calls that led to this one."""
        self.turn: Turn | None = None
        """Its turn of its key, while it has one."""
        self.cancel_forward: Callable[[], object] | None = None
        """Cancels it while it is FORWARDED."""
        self.is_cancelled = False
        """Its client has cancelled it, or its deadline has passed: nobody waits for its answer."""
        self.hop = DIRECT_HOP
        """See DIRECT_HOP, FORWARDED_HOP and AWAY."""
        self.initial_sent = False
        """The handler has sent its initial metadata, or a message: the headers are out."""
        self.reply = b""
        """The answer of a unary response, once it is there; none where the status is not OK."""
        self._pushed_back: bytes | None = None
        self._serialize: Callable[[Any], bytes] | None = None
        self._deserialize: Callable[[bytes], Any] | None = None
        self._callbacks: list[Callable[[Any], None]] | None = None
        self._turned: asyncio.Future[None] | None = None

    # Implemented by listeners

    async def receive(self) -> bytes | None:
        """The next message of the client, or None after its last."""
        raise NotImplementedError

    async def send(self, message: bytes) -> None:
        """Send one message; waits where the client does not read."""
        raise NotImplementedError

    def begin_send(self, message: bytes) -> Coroutine[Any, Any, None] | None:
        """`send` without a coroutine where the client reads on: returns what is to be awaited, or None."""
        return self.send(message)

    async def send_initial(self, metadata: Metadata) -> None:
        raise NotImplementedError

    def send_initial_now(self, metadata: Metadata) -> None:
        """`send_initial` of a plain `def` handler, which cannot await: before the answer, and the next message."""
        raise NotImplementedError

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None where it set none."""
        raise NotImplementedError

    def peer(self) -> str:
        raise NotImplementedError

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        raise NotImplementedError

    def answer(self, reply: bytes) -> None:
        """It is DONE: its outcome stands here. Sends it, where a listener has no task that waits for it."""
        self.reply = reply
        self.run_callbacks()
        self.proceed()

    def run_callbacks(self) -> None:
        """Call what `add_done_callback` was given, in order. A callback that raises is logged, and the others run."""
        while self._callbacks:
            self.run_callback(self._callbacks.pop(0), self)

    def run_callback(self, callback: Callable[[Any], None], context: Any) -> None:
        try:
            callback(context)
        except BaseException as error:
            line = user_code.line_of(error) or user_code.definition_of(callback)
            # A handler of `logging` may raise as well, and callbacks run inside the connection.
            with suppress(BaseException):
                summary = user_code.summary(error)
                log.exception("call.callback_failed method=%s at=%s error=%s", self.method[1:], line, summary)

    def proceed(self) -> None:
        """Its turn has come, or a sibling's answer. Wakes `turned`, unless a listener has a way without a task."""
        if self._turned is not None and not self._turned.done():
            self._turned.set_result(None)

    async def turned(self) -> None:
        """Wait until its turn has come, or a sibling's answer."""
        self._turned = asyncio.get_running_loop().create_future()
        await self._turned

    # Where it is sent on to the owner of its key, see onelane.lane.forwarder.

    def client_headers(self) -> Iterable[Any]:
        """The headers that its client has sent, as far as they are known."""
        return [*framing.unchecked_headers(self.metadata), (b"grpc-accept-encoding", framing.ENCODINGS)]

    def identity_headers(self) -> framing.Headers:
        """Its client's peer and certificate, and the identity that this shard has proven."""
        headers = write_client(self.peer(), self.auth_context())
        return headers if self.identity is None else [*headers, write_proven(self.identity)]

    def headers_apart(self) -> tuple[framing.HeaderTuple, framing.Headers]:
        """See `onelane.wire.link_headers`."""
        return headers_apart(self.client_headers(), self.identity_headers(), self.method)

    def answer_in(self, encoding: bytes) -> None:
        """The owner's answer has this `grpc-encoding`, b"" for none: so has this one. Before its headers are sent."""
        self.set_compression(COMPRESSIONS[encoding])

    def reply_of(self, frame: bytes, encoding: bytes) -> bytes:
        """The reply that `answer` takes, of the owner's message with its prefix. encoding: see `answer_in`."""
        if encoding and not frame[0]:
            self.disable_next_message_compression()
        return deframer.message_of(frame, encoding)

    async def send_frame(self, frame: bytes, encoding: bytes) -> None:
        """`send` a message of the owner's that has its prefix. encoding: see `answer_in`."""
        await self.send(self.reply_of(frame, encoding))

    # See onelane.core.context.CallContext.

    @property
    def deadline_at(self) -> float | None:
        remaining = self.time_remaining()
        return None if remaining is None else monotonic() + remaining

    @property
    def epoch(self) -> int:
        """Of the placement by which a sibling has sent it on; 0 for a call that comes from its client."""
        return 0

    @property
    def trace(self) -> TraceContext | None:
        return context_of(self.span)

    @property
    def outgoing_chain(self) -> str:
        return self.chain if self.turn is None else self.turn.outgoing_chain(self.chain)

    # Used by the lane

    def carry(self, deserialize: Callable[[bytes], Any] | None, serialize: Callable[[Any], bytes] | None) -> None:
        """Say how messages of this call become bytes, for `read` and `write`. serialize: None where its handler
        returns the one response."""
        self._deserialize, self._serialize = deserialize, serialize

    @property
    def first(self) -> bytes | None:
        """The message that was pushed back, and is to be read next."""
        return self._pushed_back

    def push_back(self, message: bytes) -> None:
        """Give a message back that was read to route by; the next `next_bytes` returns it."""
        self._pushed_back = message

    async def next_bytes(self) -> bytes | None:
        message = self._pushed_back
        if message is None:
            return await self.receive()
        if not self.is_aborted:
            self._pushed_back = None
        return message

    def messages(self) -> AsyncIterator[Any]:
        """The client's messages, parsed, one after another."""
        return RequestIterator(self)

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        self.code_now, self.details_now = code, details

    def end_early(self, code: grpc.StatusCode, details: str) -> None:
        """Its client is told this status before its handler has ended: it is counted with the same. The first counts,
        unless its client has cancelled it before."""
        if self.early_status is None and not self.is_cancelled:
            self._early_status = code, details

    def cut_off(self, code: grpc.StatusCode, details: str, trailers: Metadata) -> None:
        """Tell its client a status and trailers now, whatever its handler does, and cancel that. A listener that can
        only end a call with its handler does no more than note the status."""
        self.end_early(code, details)

    @property
    def early_status(self) -> tuple[grpc.StatusCode, str] | None:
        # Not set by `__init__`: few calls end early.
        return getattr(self, "_early_status", None)

    @property
    def is_cancelled_by_client(self) -> bool:
        """Of a call whose task was cancelled, or whose forward: by its client, not by its shard that shuts down."""
        return self.is_cancelled

    def prove(self, identity: Identity) -> None:
        """Its credentials have been checked, here or where it came from."""
        self._identity = identity

    # Used by handlers: grpc.aio.ServicerContext

    @property
    def identity(self) -> Identity | None:
        """Who its client is; None where the app has no `auth`. Handlers rather ask `onelane.identity_of(context)`."""
        # Not set by `__init__`: most apps have none.
        return getattr(self, "_identity", None)

    def read(self) -> Coroutine[Any, Any, Any]:
        return context_methods.read(self)

    def write(self, message: Any) -> Coroutine[Any, Any, None]:
        return context_methods.write(self, message)

    def begin_write(self, message: Any) -> Coroutine[Any, Any, None] | None:
        """`write` without a coroutine where the client reads on: returns what is to be awaited, or None."""
        return self.begin_send(self.serialized(message))

    def parsed(self, message: bytes) -> Any:
        """A message of the client as its handler gets it."""
        return self._deserialize(message) if self._deserialize else message

    def serialized(self, message: Any) -> bytes:
        """A message of the handler as bytes, which are sent now."""
        if self._serialize is None:
            # grpc.aio sends it, and then the returned response: two, for which clients wait until their deadline.
            raise grpc.aio.UsageError("write() in a handler of one response, which it is to return")
        if self.state is DONE or self.is_cancelled:
            raise grpc.aio.UsageError(FINISHED)
        raw = self._serialize(message)
        self.initial_sent = True
        return raw

    def send_initial_metadata(self, initial_metadata: Metadata) -> Coroutine[Any, Any, None]:
        return context_methods.send_initial_metadata(self, initial_metadata)

    def accept_initial_metadata(self, initial_metadata: Metadata) -> Metadata:
        """Initial metadata of a handler, checked; from now on they count as sent."""
        if self.is_aborted:
            raise Aborted(self._abort_details)
        if self.state is DONE:
            raise grpc.aio.UsageError(FINISHED)
        if self.initial_sent:
            raise InitialMetadataSent
        pairs = arguments.metadata(initial_metadata)
        self.initial_sent = True
        return pairs

    def abort(
        self, code: grpc.StatusCode | int, details: str = "", trailing_metadata: Metadata = ()
    ) -> Coroutine[Any, Any, NoReturn]:
        return context_methods.abort(self, code, details, trailing_metadata)

    def abort_with_status(self, status: Any) -> Coroutine[Any, Any, NoReturn]:
        return context_methods.abort_with_status(self, status)

    def abort_now(self, code: grpc.StatusCode | int, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """`abort` of a plain handler. The first one is what the client sees, whatever the handler does then."""
        if self.is_aborted:
            raise grpc.aio.UsageError("Abort already called!")
        if self.state is DONE:
            raise grpc.aio.UsageError(FINISHED)
        self.set_abort(code, details, trailing_metadata)
        raise Aborted(self._abort_details)

    def set_abort(self, code: grpc.StatusCode | int, details: str, trailing_metadata: Metadata) -> None:
        """End the call by this status once its handler has ended."""
        code, details = arguments.status_code(code, self.method), arguments.details(details, self.method)
        trailers = arguments.metadata(trailing_metadata) if trailing_metadata else self.trailers
        if code is OK:
            code, details = grpc.StatusCode.UNKNOWN, f"abort() was called with OK: {details}"
        self.code_now, self.details_now, self.trailers = code, details or self.details_now, trailers
        self._abort_details = details
        # From now on `read` and `write` raise, also where no message comes. No method and no exception of the call is
        # kept for that: it would be a cycle, which only the garbage collector ends.
        self.carry(partial(_raise_abort, details), partial(_raise_abort, details))
        self.push_back(b"")

    @property
    def is_aborted(self) -> bool:
        """Its handler has called `abort`."""
        return hasattr(self, "_abort_details")

    def invocation_metadata(self) -> Sequence[Metadatum]:
        return tuple(map(Metadatum._make, self.metadata))

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        pairs = arguments.metadata(trailing_metadata)
        if not self.is_aborted:
            self.trailers = pairs

    def trailing_metadata(self) -> Metadata:
        return self.trailers

    def set_code(self, code: grpc.StatusCode | int) -> None:
        status = arguments.status_code(code, self.method)
        if not self.is_aborted:
            self.code_now, self._has_code = status, True

    def code(self) -> grpc.StatusCode | None:
        """None until it is set: its answer would be OK."""
        return self.code_now if self.code_now is not OK or hasattr(self, "_has_code") else None

    def set_details(self, details: str) -> None:
        text = arguments.details(details, self.method)
        if not self.is_aborted:
            self.details_now = text

    def details(self) -> str:
        return self.details_now

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compression of the answer; a listener that cannot ignores it, as gRPC allows."""
        if self.initial_sent:
            raise RuntimeError("Compression setting must be specified before sending initial metadata")

    def disable_next_message_compression(self) -> None:
        """See `set_compression`."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        return self.is_cancelled or (self.state is DONE and self.code_now is grpc.StatusCode.CANCELLED)

    def done(self) -> bool:
        return self.state is DONE or self.is_aborted

    def peer_identities(self) -> Iterable[bytes] | None:
        return self.auth_context().get(self.peer_identity_key() or "")

    def peer_identity_key(self) -> str | None:
        auth = self.auth_context()
        return next((key for key in auth_context.IDENTITY_KEYS if key in auth), None)


class RequestIterator(AsyncIterator[Any]):
    """The messages of a client's stream. No generator: a handler that leaves it early leaves nothing to be closed."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __anext__(self) -> Any:
        call = self._call
        message = await call.next_bytes()
        if message is None:
            raise StopAsyncIteration
        return call.parsed(message)


def _raise_abort(details: str, _: Any) -> NoReturn:
    raise Aborted(details)


grpc.aio.ServicerContext.register(Call)
