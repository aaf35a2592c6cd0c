"""The types of calls with a stream in them, as `grpc.aio` has them: a request side and a response side, each of one
message or a stream.

Only a request iterator needs a task. What a caller sees (await, async for, read, write, done_writing) is grpc.aio's.
"""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterable
from typing import Any

import grpc
import grpc.aio
from grpc.aio import EOF

from onelane.client import call_methods
from onelane.client.call import ClientCall, UnaryRequestCall
from onelane.client.connection import Connection
from onelane.client.dropped_call import HeldWeakly, WeakCall

log = logging.getLogger("onelane.client")


class _UnaryResponse(ClientCall):
    """Awaited for its one response message."""

    single_response = True

    def __await__(self) -> Generator[Any, Any, Any]:
        return call_methods.response_of(self)


MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."
"""grpc.aio's text."""


class _StreamResponse(HeldWeakly):
    """Read message by message. Messages that are not read hold the server back."""

    single_response = False
    _has_read = False
    _has_iterator = False
    _is_exhausted = False
    """The iterator has come to its end, or has raised."""
    when_drained: Callable[[], None] | None = None
    """Called, once, when all messages have been read of a call that has no stream now."""

    def put(self, message: Any) -> None:
        """Let the caller read something that no server has sent."""
        self.messages.append(message)
        self._wake()

    async def read(self) -> Any:
        if self._has_iterator and (self.messages or self.status is None):
            raise grpc.aio.UsageError(MIXED)
        self._has_read = True
        return await self._next()

    async def _next(self) -> Any:
        while not self.messages:
            if self.status is not None:
                self.raise_failure()
                return EOF
            if self.stream is None:
                self._drained()
            elif self.stream.unread:
                assert self.connection is not None
                self.connection.wire.consumed(self.stream)
                self.connection.flush_soon()
            try:
                await self.change()
            except asyncio.CancelledError:
                self.cancel()
                raise
        message = self.messages[0]
        del self.messages[0]
        return self._parse(message)

    def _drained(self) -> None:
        if self.when_drained is not None:
            when_drained, self.when_drained = self.when_drained, None
            when_drained()

    # Itself, and not a generator: that would refer to the call, and the call to it.

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._has_read:
            raise grpc.aio.UsageError(MIXED)
        self._has_iterator = True
        return self

    async def __anext__(self) -> Any:
        if self._is_exhausted:
            raise StopAsyncIteration
        try:
            message = await self._next()
        except BaseException:
            self._is_exhausted = True
            raise
        if message is EOF:
            self._is_exhausted = True
            raise StopAsyncIteration
        return message


class _StreamRequest(HeldWeakly):
    """Sends message after message, written or from an iterator. `write` waits while the server does not read."""

    _feeder: "asyncio.Task[None] | None" = None
    """Writes what the iterator gives, while the call is under way."""
    _is_fed = False

    def prepare(
        self,
        requests: AsyncIterable[Any] | Iterable[Any] | None,
        serialize: Callable[[Any], bytes] | None,
        frame: Callable[[bytes], bytes],
    ) -> None:
        """requests: None where they will be written."""
        self._serialize = serialize
        self._frame = frame
        self._has_sent = False
        self._is_half_closed = False
        if requests is not None:
            self._is_fed = True
            self._feeder = asyncio.get_running_loop().create_task(_feed(self._held, requests))
            self.add_done_callback(_stop_feeder)
            self._needs_no_writer()

    def _needs_no_writer(self) -> None:
        """The rest of the requests comes without the caller."""
        if self.single_response:
            self._held.keep()

    def _holds_requests(self) -> bool:
        return not self._has_sent

    def begin(self, connection: Connection) -> None:
        if self.headers_size > connection.wire.max_headers:
            self._refuse_metadata(connection.wire.max_headers)
            return
        self.transmissions += 1
        self.connection = connection
        self.stream = connection.wire.open(self.headers, self._held, limit=self._subchannel.dialling.max_message_bytes)
        self.stream.single_response = self.single_response
        if self._is_half_closed:
            connection.wire.end(self.stream)
        connection.flush_soon()
        self._wake()

    async def write(self, request: Any) -> None:
        if self._is_fed:
            raise grpc.aio.UsageError(MIXED)
        message = self._message(request)
        while self._must_wait:
            await self.change()
        if (sending := self._begin_send(message)) is not None:
            try:
                await sending
            except asyncio.CancelledError:
                self.cancel()
                raise

    async def done_writing(self) -> None:
        if self._is_fed:
            raise grpc.aio.UsageError(MIXED)
        self._half_close()

    def _message(self, request: Any) -> bytes:
        """The bytes of a request."""
        if self.status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._is_half_closed:
            raise asyncio.InvalidStateError('RPC is half closed after calling "done_writing".')
        return self._frame(self._serialize(request) if self._serialize else request)

    @property
    def _must_wait(self) -> bool:
        """It has no stream yet."""
        return self.stream is None and self.status is None

    def _begin_send(self, message: bytes) -> Coroutine[Any, Any, None] | None:
        """Send a message; what to await before the next is sent, None where the server reads: then a message makes no
        coroutine."""
        if self.status is not None:
            self.raise_failure()
            raise asyncio.InvalidStateError("RPC already finished.")
        assert self.connection is not None
        assert self.stream is not None
        self._has_sent = True
        self.connection.wire.send_message(self.stream, message)
        self.connection.flush_soon()
        number = self.stream.id
        return self.connection.wait_room(number) if self.connection.must_wait(number) else None

    def _half_close(self) -> None:
        if self._is_half_closed or self.status is not None:
            return
        self._is_half_closed = True
        self._needs_no_writer()
        if self.stream is not None:
            assert self.connection is not None
            self.connection.wire.end(self.stream)
            self.connection.flush_soon()


async def _feed(held: WeakCall, requests: AsyncIterable[Any] | Iterable[Any]) -> None:
    """Write what `requests` gives into a call. While this waits it does not keep the call alive."""
    try:
        if hasattr(requests, "__aiter__"):
            async for request in requests:
                if (writing := _begin_write(held, request)) is not None:
                    await writing
        else:
            for request in requests:
                if (writing := _begin_write(held, request)) is not None:
                    await writing
    except BaseException as error:
        _feeding_failed(held, error)
        return
    if held() is not None:
        _call_of(held)._half_close()


def _feeding_failed(held: WeakCall, error: BaseException) -> None:
    """Cancel a call whose iterator has raised anything: it may call another service, and raise as that call does. Where
    the call has ended, its own error tells how."""
    if held.is_over:
        return
    held.cancel()
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise error
    log.error("client.requests_failed the iterator of requests has raised; its call is cancelled", exc_info=error)


def _begin_write(held: WeakCall, request: Any) -> Coroutine[Any, Any, None] | None:
    """Write a request into a call; what to await before the next, None where the server reads."""
    call = _call_of(held)
    message = call._message(request)
    return _write_late(held, message) if call._must_wait else call._begin_send(message)


async def _write_late(held: WeakCall, message: bytes) -> None:
    """Write into a call that has no stream yet."""
    while _call_of(held)._must_wait:
        await _call_of(held).change()
    if (sending := _call_of(held)._begin_send(message)) is not None:
        await sending


def _call_of(held: WeakCall) -> Any:
    """The call.

    Raises:
        InvalidStateError: it was dropped.
    """
    call = held()
    if call is None:
        raise asyncio.InvalidStateError("the call was dropped")
    return call


def _stop_feeder(call: Any) -> None:
    # Parted here: an error of the iterator refers to the call, and the feeder to the error.
    feeder, call._feeder = call._feeder, None
    if feeder is not asyncio.current_task():
        feeder.cancel()


class UnaryStreamCall(_StreamResponse, UnaryRequestCall, grpc.aio.UnaryStreamCall[Any, Any]):
    """One request, a stream of responses."""


class StreamUnaryCall(_UnaryResponse, _StreamRequest, grpc.aio.StreamUnaryCall[Any, Any]):
    """A stream of requests, one response."""


class StreamStreamCall(_StreamResponse, _StreamRequest, grpc.aio.StreamStreamCall[Any, Any]):
    """Streams both ways."""
