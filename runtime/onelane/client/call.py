"""One call of a client on our own wire, as far as its four types (`call_types`) share it: status, metadata, deadline,
attempts.

Made and sent at once, without a task. What a caller sees (await, cancel, code, details, metadata, callbacks, errors)
is grpc.aio's. What of that is awaited: `call_methods`.
"""

import asyncio
import logging
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Generator, MutableSequence
from time import monotonic
from typing import Any, ClassVar, Final

import grpc
import grpc.aio
from grpc.aio import Metadata
from mypy_extensions import mypyc_attr

from onelane.client import call_methods
from onelane.client.connection import ENDED, Connection, Outgoing
from onelane.client.subchannel import Subchannel
from onelane.errors import caused
from onelane.wire.client import ClientStream
from onelane.wire.framing import Headers, write_timeout
from onelane.wire.header_size import TooMuchMetadata
from onelane.wire.http2 import ErrorCode

log = logging.getLogger("onelane.client")
OK: Final = grpc.StatusCode.OK
STATUS_BY_NUMBER: dict[int, grpc.StatusCode] = {status.value[0]: status for status in grpc.StatusCode}
CANCELLED_HERE: Final = "Locally cancelled by application!"
DEADLINE_DETAILS: Final = "Deadline Exceeded"
MAX_TRANSPARENT_RETRIES: Final = 3
"""How often a call that no server looked at is sent again. gRFC A6 allows one that reached a server to be sent again
once, and one that never left as often as need be; this is one number for both."""


_response_of: Final = call_methods.response_of
DEADLINE_SLACK_S: Final = 0.002
"""How long before our own deadline the server's may pass: its clock is another, and `grpc-timeout` is rounded down."""


def run_callback(callback: Callable[[Any], None], call: Any) -> None:
    """Run a done callback of `call`. Whatever it raises is logged: other calls end in the same turn of the loop."""
    try:
        callback(call)
    except BaseException:
        log.exception("client.callback_failed callback=%r", callback)


@mypyc_attr(allow_interpreted_subclasses=True)
class ClientCall:
    """One call, with all of its attempts. Owned by the loop of its channel."""

    single_response: ClassVar[bool] = False
    headers_size = 0
    """Bytes of its headers, where its metadata is large."""
    _is_cancelled_here = False
    """By `cancel`, whatever details a server sends."""
    _has_failed_here = False
    """By what its caller gave, or by an answer that its caller's code cannot parse."""
    _names_peer = False
    """Its server could not be reached."""

    def __init__(
        self,
        subchannel: Subchannel,
        headers: Headers,
        deserialize: Callable[[bytes], Any] | None,
        timeout: float | None,
        wait_for_ready: bool,
    ) -> None:
        self._subchannel = subchannel
        """Of the first attempt; keeps the deadline."""
        self._attempt_subchannel = subchannel
        """Of this attempt."""
        self.headers = headers
        self._deserialize = deserialize
        self.wait_for_ready = wait_for_ready
        self.transmissions = 0
        """How often it was sent, transparent retries included."""
        self.connection: Connection | None = None
        self.stream: ClientStream | None = None
        self.messages: MutableSequence[bytes] = [] if self.single_response else deque()
        self.status: grpc.StatusCode | None = None
        """None while the call is under way."""
        self.status_details = ""
        self.peer_name = ""
        self.retry: Callable[[Any, grpc.StatusCode, Any], bool] | None = None
        """Called where an attempt has failed: True where there will be another (`start_attempt`)."""
        self.retries = 0
        self.endpoint_health: Any = None
        """Of the endpoint that this attempt went to, as its channel knows it."""
        self._on_end: Callable[[ClientCall], None] | None = None
        self._initial: Any = None
        self._trailers: Any = ()
        self._end: asyncio.Future[None] | None = None
        """Done when the call is; made for the first that waits for it."""
        self._changed: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._response: Any = None
        """The one response, once it is parsed."""
        self._is_parsed = False
        self._deadline_at: float | None = None
        self._deadline_slot = 0
        if timeout is not None:
            self._deadline_at = monotonic() + timeout
            self._deadline_slot = subchannel.deadlines.add(self._deadline_at, self)

    def when_ended(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` with this call at its end, before all done callbacks; now where it has ended."""
        if self.status is not None:
            callback(self)
        else:
            self._on_end = callback

    @property
    def outgoing(self) -> Outgoing:
        """What its subchannel and its connection hold of it."""
        return self

    # Called by its connection, see `onelane.client.connection.Outgoing`.

    @property
    def can_repeat(self) -> bool:
        return self.transmissions <= MAX_TRANSPARENT_RETRIES and self._initial is None and self._holds_requests()

    @property
    def is_over(self) -> bool:
        return self.status is not None

    def _holds_requests(self) -> bool:
        """Every request message is still held, so the call can be sent anew."""
        raise NotImplementedError

    def begin(self, connection: Connection) -> None:
        raise NotImplementedError

    def begin_late(self, connection: Connection) -> None:
        self.headers = self._headers_with_remaining_timeout()
        self.begin(connection)

    def _headers_with_remaining_timeout(self) -> Headers:
        headers = [pair for pair in self.headers if pair[0] != b"grpc-timeout"]
        remaining_s = self.time_remaining()
        if remaining_s is not None:
            headers.append((b"grpc-timeout", write_timeout(remaining_s)))
        return headers

    def answered(self, metadata: Any) -> None:
        self._initial = metadata
        self._wake()

    def arrived(self, messages: list[bytes]) -> None:
        self.messages += messages
        self._wake()

    def answered_whole(self, reply: bytes, trailers: Any) -> None:
        self.messages.append(reply)
        self.finish(OK, "", trailers)

    def finish(self, code: Any, details: str, trailers: Any = ()) -> None:
        if self.status is not None:
            return
        status = STATUS_BY_NUMBER[code] if type(code) is int else code
        if status is not OK:
            if status is grpc.StatusCode.CANCELLED and not self._is_cancelled_here and self._is_late():
                # A server ends a call whose deadline has passed with RST_STREAM(CANCEL), maybe before our own timer.
                status, details = grpc.StatusCode.DEADLINE_EXCEEDED, DEADLINE_DETAILS
            if self.retry is not None and self.retry(self, status, trailers):
                return
            # A server's own status comes as its number.
            self._names_peer = code is grpc.StatusCode.UNAVAILABLE
        self.status = status
        if self.stream is not None:
            # They refer to each other: parted here, they need no garbage collector.
            self.stream.call = ENDED
        self.status_details = details
        self._trailers = trailers
        if self._deadline_at is not None:
            self._subchannel.deadlines.remove(self._deadline_slot, self)
        if self._end is not None and not self._end.done():
            self._end.set_result(None)
        self._wake()
        if self._on_end is not None:
            self._on_end(self)
        for callback in self._callbacks:
            run_callback(callback, self)

    def abandon(self, details: str) -> None:
        self.retry = None
        self.finish(grpc.StatusCode.UNAVAILABLE, details)

    def expire(self) -> None:
        self._stop(grpc.StatusCode.DEADLINE_EXCEEDED, DEADLINE_DETAILS)

    def expire_unsent(self) -> None:
        """It was too late for it when it was made."""
        self._deadline_at = monotonic()
        self.expire()

    def _is_late(self) -> bool:
        """The deadline has passed, by the clock of the server or by ours."""
        return self._deadline_at is not None and monotonic() >= self._deadline_at - DEADLINE_SLACK_S

    # Attempts

    def reset_attempt(self) -> None:
        """Drop what has come of the attempt that has failed."""
        if self.stream is not None:
            self.stream.call = ENDED
        self.stream = self.connection = None
        self._initial = None
        if self.single_response:
            self.messages.clear()

    def moves_to(self, subchannel: Subchannel) -> None:
        """It is sent anew, by another subchannel, and not as another attempt of what has failed."""
        self._attempt_subchannel = subchannel
        self.transmissions = 0

    def start_attempt(self, subchannel: Subchannel, previous_attempts: bytes) -> None:
        """Make another attempt, on any subchannel. previous_attempts: the header that counts those before."""
        if self.status is not None:
            return
        headers = [pair for pair in self._headers_with_remaining_timeout() if pair[0] != previous_attempts]
        self.headers = [*headers, (previous_attempts, b"%d" % self.retries)]
        self._attempt_subchannel = subchannel
        subchannel.restart(self.outgoing)

    # grpc.aio.RpcContext and Call

    def cancel(self) -> bool:
        if self.status is not None:
            return False
        self._is_cancelled_here = True
        self._stop(grpc.StatusCode.CANCELLED, CANCELLED_HERE)
        return True

    def cancelled(self) -> bool:
        return self.status is grpc.StatusCode.CANCELLED

    @property
    def is_cancelled_here(self) -> bool:
        """By `cancel`, and not by its server."""
        return self._is_cancelled_here

    def done(self) -> bool:
        return self.status is not None

    def time_remaining(self) -> float | None:
        return None if self._deadline_at is None else max(0.0, self._deadline_at - monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self.status is not None:
            run_callback(callback, self)
        else:
            self._callbacks.append(callback)

    def initial_metadata(self) -> Coroutine[Any, Any, Metadata]:
        return call_methods.initial_metadata(self)

    def trailing_metadata(self) -> Coroutine[Any, Any, Metadata]:
        return call_methods.trailing_metadata(self)

    def code(self) -> Coroutine[Any, Any, grpc.StatusCode]:
        return call_methods.code(self)

    def details(self) -> Coroutine[Any, Any, str]:
        return call_methods.details(self)

    def debug_error_string(self) -> Coroutine[Any, Any, Any]:
        """As in grpc.aio, "" of a call that has ended well, and None of one that was cancelled here."""
        return call_methods.debug_error_string(self)

    def wait_for_connection(self) -> Coroutine[Any, Any, None]:
        """Wait until the call has been sent.

        Raises:
            AioRpcError: it failed before.
            CancelledError: it was cancelled here.
        """
        return call_methods.wait_for_connection(self)

    def wait_ended(self) -> Coroutine[Any, Any, None]:
        return call_methods.wait_ended(self)

    def error(self) -> grpc.aio.AioRpcError:
        """The failure as an exception."""
        assert self.status is not None
        return grpc.aio.AioRpcError(
            self.status,
            Metadata(*(self._initial or ())),
            Metadata(*self._trailers),
            details=self.named_details(),
            debug_error_string=self.addressed_details(),
        )

    def addressed_details(self) -> str:
        """The details, with the address that it was sent to."""
        return f"{self._attempt_subchannel.address}: {self.named_details()}"

    def named_details(self) -> str:
        """The details, with the name of the peer that cannot be reached."""
        names_peer = self.peer_name and self._names_peer
        return f"{self.peer_name}: {self.status_details}" if names_peer else self.status_details

    @property
    def tells_of_endpoint(self) -> bool:
        """Whether its failure is one of the endpoint that it was sent to, and not of its caller alone."""
        return self.transmissions > 0 and not (self._is_cancelled_here or self._has_failed_here)

    @property
    def trailers(self) -> Any:
        """The trailing metadata of a call that has ended, as pairs."""
        return self._trailers

    @property
    def has_answered(self) -> bool:
        """The headers of the answer have come."""
        return self._initial is not None

    @property
    def initial(self) -> Any:
        """The initial metadata received by now, as pairs."""
        return self._initial or ()

    # Inside

    def reset_error(self) -> int:
        """The HTTP/2 error code that a server is sent where the call is cancelled here."""
        return ErrorCode.CANCEL

    def _stop(self, code: grpc.StatusCode, details: str) -> None:
        if self.stream is not None:
            assert self.connection is not None
            self.connection.cancel(self.stream, self.reset_error())
        else:
            self._attempt_subchannel.forget(self.outgoing)
        self.retry = None
        self.finish(code, details)

    def end_future(self) -> "asyncio.Future[None]":
        """Done when the call is; cancelled where one who awaits the call is."""
        if self._end is None:
            self._end = get_running_loop().create_future()
        return self._end

    def change(self) -> "asyncio.Future[None]":
        """Done once something arrives, or the call ends; who cancels it cancels nothing else."""
        if self._changed is None or self._changed.done():
            self._changed = get_running_loop().create_future()
        return asyncio.shield(self._changed)

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def read_response(self) -> Any:
        """The one response of a call that has ended well."""
        if not self._is_parsed:
            self._response = self._parse(self.messages[0])
            self._is_parsed = True
        return self._response

    def _parse(self, message: Any) -> Any:
        """message: bytes of its server, or what stands between them, such as a `Moved`."""
        if self._deserialize is None:
            return message
        try:
            return self._deserialize(message)
        except Exception as error:
            self._fail(grpc.StatusCode.INTERNAL, "Exception deserializing response!")
            # Without a local: it would be a circle with its traceback.
            raise caused(self.error(), error) from error

    def _refuse_metadata(self, limit: int) -> None:
        """The server of a connection takes no such metadata: it would refuse it, or close the connection."""
        self.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, str(TooMuchMetadata(self.headers_size, limit)))

    def _fail(self, code: grpc.StatusCode, details: str) -> None:
        """End the call where what has arrived cannot be used, also where the server has ended it as OK."""
        self._has_failed_here = True
        if self.status is None:
            self._stop(code, details)
        self.status, self.status_details = code, details
        self.messages.clear()

    def raise_failure(self) -> None:
        """Raise what ended the call, unless its status is OK."""
        if self._is_cancelled_here:
            raise asyncio.CancelledError
        if self.status is not OK:
            raise self.error()


@mypyc_attr(allow_interpreted_subclasses=True)
class UnaryRequestCall(ClientCall):
    """Sends its one request message with its headers."""

    request = b""
    """Framed."""

    def _holds_requests(self) -> bool:
        return True

    def begin(self, connection: Connection) -> None:
        wire = connection.wire
        if self.headers_size > wire.max_headers:
            self._refuse_metadata(wire.max_headers)
            return
        self.transmissions += 1
        self.connection = connection
        limit = self._subchannel.dialling.max_message_bytes
        self.stream = wire.call(self.headers, self.request, self, limit=limit)
        self.stream.single_response = self.single_response
        connection.flush_soon()
        self._wake()


@mypyc_attr(allow_interpreted_subclasses=True)
class UnaryUnaryCall(UnaryRequestCall):
    """One request, one response."""

    single_response: ClassVar[bool] = True

    def __await__(self) -> Generator[Any, Any, Any]:
        return _response_of(self)


grpc.aio.UnaryUnaryCall.register(UnaryUnaryCall)
