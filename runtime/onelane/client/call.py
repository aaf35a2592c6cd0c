"""One call of a client, in the four shapes that `grpc.aio` has, on our own wire.

Made and sent at once, without a task; only a request iterator needs one. What a caller sees (await, async for, read,
write, cancel, code, details, metadata, callbacks, errors) is grpc.aio's.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from time import monotonic
from typing import Any

import grpc
import grpc.aio
from grpc.aio import EOF, Metadata

from onelane.client.connection import Connection
from onelane.client.subchannel import Subchannel
from onelane.wire.client import ClientStream
from onelane.wire.framing import Headers, write_timeout

OK = grpc.StatusCode.OK
CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
CANCELLED_HERE = "Locally cancelled by application!"
REPEATS = 3
"""How often a call that no server looked at is sent again. gRFC A6 allows one that reached a server to be sent again
once, and one that never left as often as need be; this is one number for both."""


class ClientCall(grpc.aio.Call):
    """What all four shapes share."""

    single_response: bool

    def __init__(
        self,
        channel: Subchannel,
        headers: Headers,
        deserialize: Callable[[bytes], Any] | None,
        timeout: float | None,
        wait_for_ready: bool,
    ) -> None:
        self._channel = channel
        self._at = channel
        """Where this attempt is made; the first one's channel keeps the deadline."""
        self.headers = headers
        self._deserialize = deserialize
        self.wait_for_ready = wait_for_ready
        self.attempts = 0
        self.connection: Connection | None = None
        self.stream: ClientStream | None = None
        self.messages: deque[bytes] = deque()
        self.status: grpc.StatusCode | None = None
        """None while the call is under way."""
        self.words = ""
        self.peer_name = ""
        self.repeats: Callable[[Any, grpc.StatusCode, Any], bool] | None = None
        """Asked where an attempt has failed: True where it makes another (`send_again`)."""
        self.retries = 0
        self.health: Any = None
        """What is known of the endpoint that this attempt went to; its channel's."""
        self.told: Callable[[ClientCall], None] | None = None
        self._initial: Any = None
        self._trailers: Any = ()
        self._over: asyncio.Future[None] | None = None
        self._changed: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._deadline_at: float | None = None
        self._slot = 0
        if timeout is not None:
            self._deadline_at = monotonic() + timeout
            self._slot = channel.deadlines.add(self._deadline_at, self)

    def tell(self, told: Callable[[Any], None]) -> None:
        """Call `told` with this call at its end; at once where it has ended."""
        if self.status is not None:
            told(self)
        else:
            self.told = told

    # What its connection says (`onelane.client.subchannel.Outgoing`).

    @property
    def can_repeat(self) -> bool:
        return self.attempts <= REPEATS and self._initial is None and self._holds_all()

    def _holds_all(self) -> bool:
        raise NotImplementedError

    def begin(self, connection: Connection) -> None:
        raise NotImplementedError

    def answered(self, metadata: Any) -> None:
        self._initial = metadata
        self._wake()

    def arrived(self, messages: list[bytes]) -> None:
        self.messages += messages
        self._wake()

    def finish(self, code: Any, details: str, trailers: Any = ()) -> None:
        if self.status is not None:
            return
        status = code if isinstance(code, grpc.StatusCode) else CODES[code]
        if self.repeats is not None and status is not OK and self.repeats(self, status, trailers):
            return
        self.status = status
        if self.stream is not None:
            # They know each other: parted here, they need no garbage collector.
            self.stream.call = None
        self.words = details
        self._trailers = trailers
        if self._deadline_at is not None:
            self._channel.deadlines.remove(self._slot, self)
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        self._wake()
        if self.told is not None:
            self.told(self)
        for callback in self._callbacks:
            callback(self)

    def send_again(self, channel: Subchannel, previous: bytes) -> None:
        """Make another attempt, on any channel. previous: the header that counts those before."""
        if self.status is not None:
            return
        kept = [pair for pair in self.headers if pair[0] not in (b"grpc-timeout", previous)]
        left = self.time_remaining()
        if left is not None:
            kept.append((b"grpc-timeout", write_timeout(left)))
        self.headers = [*kept, (previous, b"%d" % self.retries)]
        self._at = channel
        channel.start(self)

    def forget_attempt(self) -> None:
        """Nothing of the attempt that has failed is left."""
        if self.stream is not None:
            self.stream.call = None
        self.stream = self.connection = None
        self.messages.clear()
        self._initial = None

    def expire(self) -> None:
        self._stop(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    # grpc.aio.RpcContext and Call

    def cancel(self) -> bool:
        if self.status is not None:
            return False
        self._stop(grpc.StatusCode.CANCELLED, CANCELLED_HERE)
        return True

    def cancelled(self) -> bool:
        return self.status is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self.status is not None

    def time_remaining(self) -> float | None:
        return None if self._deadline_at is None else max(0.0, self._deadline_at - monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self.status is not None:
            callback(self)
        else:
            self._callbacks.append(callback)

    async def initial_metadata(self) -> Metadata:
        while self._initial is None and self.status is None:
            await self._change()
        return Metadata(*(self._initial or ()))

    async def trailing_metadata(self) -> Metadata:
        await self.over()
        return Metadata(*self._trailers)

    async def code(self) -> grpc.StatusCode:
        await self.over()
        assert self.status is not None
        return self.status

    async def details(self) -> str:
        await self.over()
        return self.words

    async def debug_error_string(self) -> str:
        await self.over()
        return f"{self._at.address}: {self.words}"

    async def wait_for_connection(self) -> None:
        """Wait until the call has been sent.

        Raises:
            AioRpcError: it failed before.
        """
        while self.connection is None and self.status is None:
            await self._change()
        if self.status not in (None, OK):
            raise self.error()

    async def over(self) -> None:
        """Wait until the call has ended."""
        if self.status is None:
            # Shielded: who waits for the status does not own the call.
            await asyncio.shield(self._ended())

    def error(self) -> grpc.aio.AioRpcError:
        """The failure as an exception."""
        assert self.status is not None
        named = self.peer_name and self.status is grpc.StatusCode.UNAVAILABLE
        details = f"{self.peer_name}: {self.words}" if named else self.words
        return grpc.aio.AioRpcError(
            self.status,
            Metadata(*(self._initial or ())),
            Metadata(*self._trailers),
            details=details,
            debug_error_string=f"{self._at.address}: {details}",
        )

    @property
    def trailers(self) -> Any:
        """The trailing metadata of a call that is over, as pairs."""
        return self._trailers

    @property
    def initial(self) -> Any:
        """The initial metadata that have come by now, as pairs."""
        return self._initial or ()

    # Inside

    def _stop(self, code: grpc.StatusCode, details: str) -> None:
        if self.stream is not None:
            assert self.connection is not None
            self.connection.cancel(self.stream)
        else:
            self._at.forget(self)
        self.repeats = None
        self.finish(code, details)

    def _ended(self) -> asyncio.Future[None]:
        if self._over is None:
            self._over = self._channel.loop.create_future()
        return self._over

    async def _change(self) -> None:
        if self._changed is None or self._changed.done():
            self._changed = self._channel.loop.create_future()
        await asyncio.shield(self._changed)

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _parse(self, message: bytes) -> Any:
        if self._deserialize is None:
            return message
        try:
            return self._deserialize(message)
        except Exception as error:
            self.status, self.words = grpc.StatusCode.INTERNAL, "Exception deserializing response!"
            raise self.error() from error

    def _check(self) -> None:
        """Raise what the end of the call was, unless it was well."""
        if self.status is grpc.StatusCode.CANCELLED and self.words == CANCELLED_HERE:
            raise asyncio.CancelledError
        if self.status is not OK:
            raise self.error()


class _OneAnswer(ClientCall):
    """Awaited for its one answer."""

    single_response = True
    _answer: Any = None
    _has_answer = False

    def __await__(self) -> Generator[Any, Any, Any]:
        if self.status is None:
            try:
                yield from self._ended()
            except asyncio.CancelledError:
                if not self.cancel():
                    self._check()
                raise
        if self.status is OK:
            return self._one()
        self._check()
        return None

    def _one(self) -> Any:
        if not self._has_answer:
            if len(self.messages) != 1:
                # statuscodes.md: any number of answers but one.
                self.status = grpc.StatusCode.UNIMPLEMENTED
                self.words = f"expected one message, the server sent {len(self.messages)}"
                raise self.error()
            self._answer = self._parse(self.messages[0])
            self._has_answer = True
        return self._answer


class _ManyAnswers(ClientCall):
    """Read message by message. What is not read holds the server back."""

    single_response = False
    _iterating: AsyncIterator[Any] | None = None

    async def read(self) -> Any:
        while not self.messages:
            if self.status is not None:
                self._check()
                return EOF
            if self.stream is not None and self.stream.unread:
                assert self.connection is not None
                self.connection.wire.consumed(self.stream)
                self.connection.flush_soon()
            try:
                await self._change()
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self._parse(self.messages.popleft())

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._iterating is None:
            self._iterating = self._all()
        return self._iterating

    async def _all(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not EOF:
            yield message


class _OneRequest(ClientCall):
    """Sends its one message with its headers."""

    request = b""
    """Framed."""

    def _holds_all(self) -> bool:
        return True

    def begin(self, connection: Connection) -> None:
        self.attempts += 1
        self.connection = connection
        limit = self._channel.dialling.max_message_bytes
        self.stream = connection.wire.call(self.headers, self.request, self, limit=limit)
        self.stream.single_response = self.single_response
        connection.flush_soon()
        self._wake()


class _ManyRequests(ClientCall):
    """Sends message after message, written or from an iterator. `write` waits while the server does not read."""

    def prepare(
        self,
        requests: AsyncIterable[Any] | Iterable[Any] | None,
        serialize: Callable[[Any], bytes] | None,
        frame: Callable[[bytes], bytes],
    ) -> None:
        self._serialize = serialize
        self._frame = frame
        self._sent = False
        self._ended_here = False
        self._feeding = None
        if requests is not None:
            self._feeding = self._channel.loop.create_task(self._feed(requests))
            self.add_done_callback(_stop_feeding)

    def _holds_all(self) -> bool:
        return not self._sent

    def begin(self, connection: Connection) -> None:
        self.attempts += 1
        self.connection = connection
        self.stream = connection.wire.open(self.headers, self, limit=self._channel.dialling.max_message_bytes)
        self.stream.single_response = self.single_response
        if self._ended_here:
            connection.wire.end(self.stream)
        connection.flush_soon()
        self._wake()

    async def write(self, request: Any) -> None:
        if self._feeding is not None:
            raise grpc.aio.UsageError("The write API is not for a call that was given a request iterator")
        await self._write(request)

    async def done_writing(self) -> None:
        if self._feeding is not None:
            raise grpc.aio.UsageError("The write API is not for a call that was given a request iterator")
        self._end()

    async def _write(self, request: Any) -> None:
        if self.status is None and not self._ended_here:
            message = self._frame(self._serialize(request) if self._serialize else request)
            while self.stream is None and self.status is None:
                await self._change()
        if self.status is not None:
            self._check()
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._ended_here:
            raise asyncio.InvalidStateError("RPC is half closed after calling done_writing.")
        assert self.connection is not None
        assert self.stream is not None
        self._sent = True
        self.connection.wire.send_message(self.stream, message)
        self.connection.flush_soon()
        try:
            await self.connection.wait_room(self.stream.id)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _end(self) -> None:
        if self._ended_here or self.status is not None:
            return
        self._ended_here = True
        if self.stream is not None:
            assert self.connection is not None
            self.connection.wire.end(self.stream)
            self.connection.flush_soon()

    async def _feed(self, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
        try:
            if hasattr(requests, "__aiter__"):
                async for request in requests:
                    await self._write(request)
            else:
                for request in requests:
                    await self._write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The call has ended; its own error says how.
            return
        except Exception:
            self.cancel()
            raise
        self._end()


def _stop_feeding(call: Any) -> None:
    if call._feeding is not asyncio.current_task():
        call._feeding.cancel()


class UnaryUnaryCall(_OneAnswer, _OneRequest, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One message, one answer."""


class UnaryStreamCall(_ManyAnswers, _OneRequest, grpc.aio.UnaryStreamCall[Any, Any]):
    """One message, many answers."""


class StreamUnaryCall(_OneAnswer, _ManyRequests, grpc.aio.StreamUnaryCall[Any, Any]):
    """Many messages, one answer."""


class StreamStreamCall(_ManyAnswers, _ManyRequests, grpc.aio.StreamStreamCall[Any, Any]):
    """Many messages both ways."""
