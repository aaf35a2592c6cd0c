"""A call behind client interceptors, of any of the four types that `grpc.aio` has.

Promises: await, async for, read, write, done_writing, cancel, status and metadata are grpc.aio's, whatever the
interceptors return (a call, a response, an async iterator) or raise. RPCs that an interceptor has begun are cancelled
where it fails or is cancelled. Once the interceptors have returned, their call is held by its caller alone: dropped, it
ends as a call without interceptors does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc.aio import EOF, AioRpcError

from onelane.client.answered_call import FinishedCall, RelayedCall
from onelane.client.call import CANCELLED_HERE, run_callback
from onelane.client.call_types import MIXED

RPC_FINISHED = "RPC already finished."
HALF_CLOSED = 'RPC is half closed after calling "done_writing".'
"""grpc.aio's texts."""


class InterceptedCall(grpc.aio.Call):
    """What the four types share: the chain of interceptors, status, metadata, callbacks."""

    method_name: str
    """Of the interceptors' method for this type."""

    def __init__(
        self, interceptors: Sequence[Any], send: Callable[[Any, Any], Any], details: Any, request: Any = None
    ) -> None:
        """send: begins the RPC of these details and this request. details: grpc.aio.ClientCallDetails."""
        self._send = send
        self._timeout: float | None = details.timeout
        self._callbacks: list[Callable[[Any], None]] = []
        self._begun: list[Any] | None = []
        """The RPCs that the interceptors have begun; None once they have returned or failed."""
        self._last_call: Any = None
        """What the innermost interceptor that has returned by now has returned, else the last RPC."""
        # The task holds the call until the interceptors have returned, also where the caller has dropped it.
        self.interception = asyncio.get_running_loop().create_task(self._intercept(interceptors, details, request))
        """The interceptors, to the call that they return."""
        self.interception.add_done_callback(self._intercepted)

    # The interceptors

    async def _intercept(self, interceptors: Sequence[Any], details: Any, request: Any) -> Any:
        assert self._begun is not None
        try:
            return await self._invoke(interceptors, details, request)
        except BaseException:
            for call in self._begun:
                call.cancel()
            raise
        finally:
            self._begun = None

    async def _invoke(self, interceptors: Sequence[Any], details: Any, request: Any) -> Any:
        """Run these interceptors, the first outermost, or the RPC where there is none; the call that they return."""
        if not interceptors:
            call = self._last_call = self._send(details, request)
            if self._begun is not None:
                self._begun.append(call)
            return call
        intercept: Callable[..., Awaitable[Any]] = getattr(interceptors[0], self.method_name)
        answer = await intercept(partial(self._invoke, interceptors[1:]), details, request)
        self._last_call = self._as_call(answer)
        return self._last_call

    def _as_call(self, answer: Any) -> Any:
        """What an interceptor has returned, as a call."""
        raise NotImplementedError

    def _intercepted(self, interception: asyncio.Task[Any]) -> None:
        if not interception.cancelled():
            # Retrieved here: whoever asks the call is told; asyncio needs not log it.
            interception.exception()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self.add_done_callback(callback)

    def _call(self) -> Any:
        """What the interceptors have returned; None before, and where they have failed."""
        task = self.interception
        return task.result() if task.done() and not task.cancelled() and task.exception() is None else None

    async def _returned(self) -> None:
        # Not the task itself: cancelling a task that only asks for the status cancels no call.
        if not self.interception.done():
            await asyncio.wait((self.interception,))

    async def _ended_call(self) -> Any:
        """What the interceptors have returned. Where they were cancelled or raised an AioRpcError: a call that says so.

        Raises whatever else they have raised.
        """
        await self._returned()
        try:
            return self.interception.result()
        except AioRpcError as error:
            return FinishedCall(
                code=error.code(),
                details=error.details(),
                initial_metadata=error.initial_metadata(),
                trailing_metadata=error.trailing_metadata(),
                debug_error_string=error.debug_error_string(),
            )
        except asyncio.CancelledError:
            return FinishedCall(code=grpc.StatusCode.CANCELLED, details=CANCELLED_HERE, debug_error_string="")

    # grpc.aio.RpcContext and Call

    def cancel(self) -> bool:
        if not self.interception.done():
            return self.interception.cancel()
        call = self._call()
        return call is not None and bool(call.cancel())

    def cancelled(self) -> bool:
        if (call := self._call()) is not None:
            return bool(call.cancelled())
        task = self.interception
        if not task.done() or task.cancelled():
            return task.cancelled()
        error = task.exception()
        return isinstance(error, AioRpcError) and error.code() is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        call = self._call()
        return self.interception.done() if call is None else bool(call.done())

    def time_remaining(self) -> float | None:
        """grpc.aio's has none. The deadline of an RPC begins with the RPC, when the interceptors pass it on."""
        call = self._call()
        return self._timeout if call is None else call.time_remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        call = self._call()
        if not self.interception.done():
            self._callbacks.append(callback)
        elif call is None or call.done():
            run_callback(callback, self)
        else:
            call.add_done_callback(lambda _: run_callback(callback, self))

    async def initial_metadata(self) -> Any:
        return await (await self._ended_call()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await (await self._ended_call()).trailing_metadata()

    async def code(self) -> Any:
        return await (await self._ended_call()).code()

    async def details(self) -> Any:
        return await (await self._ended_call()).details()

    async def debug_error_string(self) -> Any:
        return await (await self._ended_call()).debug_error_string()

    async def wait_for_connection(self) -> None:
        await self._returned()
        await self.interception.result().wait_for_connection()


class _UnaryResponse(InterceptedCall):
    """Awaited for its one response."""

    def _as_call(self, answer: Any) -> Any:
        return answer if hasattr(answer, "__await__") else FinishedCall(answer)

    def __await__(self) -> Generator[Any, Any, Any]:
        # The task itself: cancelling whoever awaits the response cancels the call.
        call = yield from self.interception.__await__()
        return (yield from call.__await__())


class _StreamResponse(InterceptedCall):
    """Read message by message, by an iterator or by `read`, which may be mixed here as in grpc.aio."""

    _responses: AsyncIterator[Any] | None = None
    _has_ended = False

    def _as_call(self, answer: Any) -> Any:
        return answer if isinstance(answer, grpc.aio.Call) else RelayedCall(self._last_call, answer)

    # Itself, and not a generator: that would refer to the call, and the call to it.

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if (response := await self.read()) is EOF:
            raise StopAsyncIteration
        return response

    async def read(self) -> Any:
        """The next response; EOF after the last, and after an error."""
        if self._has_ended:
            return EOF
        response = EOF
        try:
            call = await self.interception
            if self._responses is None:
                self._responses = aiter(call)
            response = await anext(self._responses, EOF)
        finally:
            if response is EOF:
                self._has_ended = True
                self._responses = None
        return response


class _StreamRequest(InterceptedCall):
    """Its requests are written, and interceptors read them from an iterator; or they come from one of the caller."""

    def __init__(
        self, interceptors: Sequence[Any], send: Callable[[Any, Any], Any], details: Any, request: Any = None
    ) -> None:
        """request: an iterator; None where requests will be written."""
        self._written = WrittenRequests() if request is None else None
        self._end: asyncio.Future[None] | None = None
        """Done when the call that the interceptors have returned is."""
        super().__init__(interceptors, send, details, self._written or request)

    def __del__(self) -> None:
        # The RPC gets its requests from an iterator, and does not know that nobody can write any more.
        # AttributeError: the call was not made, or not passed on. RuntimeError: its loop is closed.
        with suppress(AttributeError, RuntimeError):
            if self._written is not None and not self.done():
                self.interception.get_loop().call_soon_threadsafe(self._call().cancel)

    async def write(self, request: Any) -> None:
        """Hand a request to the interceptors.

        Raises:
            UsageError: the requests come from an iterator.
            InvalidStateError: the call has ended, or is half-closed.
        """
        written = self._writable()
        try:
            await self._wait_reader(written)
            self._check_open()
            if written.is_half_closed:
                raise asyncio.InvalidStateError(HALF_CLOSED)
            await self._put(written, request)
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._check_open()

    async def done_writing(self) -> None:
        """Half-close the call, once.

        Raises:
            UsageError: the requests come from an iterator.
            InvalidStateError: the call was cancelled before the interceptors had returned.
        """
        written = self._writable()
        try:
            await self._wait_reader(written)
            if self.interception.cancelled():
                raise asyncio.InvalidStateError(RPC_FINISHED)
            if self.interception.done():
                self.interception.result()
            if not written.is_half_closed:
                written.is_half_closed = True
                await self._put(written, EOF)
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def _wait_reader(self, written: "WrittenRequests") -> None:
        """Wait until the interceptors have returned, or one of them reads a request before it does."""
        if not self.interception.done() and not written.is_read.done():
            await asyncio.wait((self.interception, written.is_read), return_when=asyncio.FIRST_COMPLETED)

    def _writable(self) -> "WrittenRequests":
        if self._written is None:
            raise grpc.aio.UsageError(MIXED)
        return self._written

    def _check_open(self) -> None:
        if not self.done():
            return
        if self._call() is None and not self.interception.cancelled():
            error = self.interception.exception()
            if error is not None and not isinstance(error, AioRpcError):
                raise error
        raise asyncio.InvalidStateError(RPC_FINISHED)

    async def _put(self, written: "WrittenRequests", request: Any) -> None:
        """Put `request` where interceptors read, unless the call ends before there is room."""
        put = asyncio.ensure_future(written.put(request))
        try:
            while not put.done() and not self.done():
                end = self._end_of_call() if self.interception.done() else self.interception
                await asyncio.wait((put, end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            put.cancel()

    def _end_of_call(self) -> asyncio.Future[None]:
        if self._end is None:
            end = self._end = asyncio.get_running_loop().create_future()
            # Not by a callback of `self`, which would hold a call that its caller has dropped.
            self._call().add_done_callback(partial(_set_ended, end))
        return self._end


def _set_ended(end: asyncio.Future[None], _: Any) -> None:
    if not end.done():
        end.set_result(None)


class WrittenRequests:
    """The requests that are written into a call, as the iterator that interceptors expect."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[Any] = asyncio.Queue(1)
        self.is_half_closed = False
        """No request is written any more."""
        self._has_ended = False
        self.is_read = asyncio.get_running_loop().create_future()
        """Done from the first time that a request is asked for."""

    async def put(self, request: Any) -> None:
        """Wait for room, and put a request; EOF for the end."""
        await self._requests.put(request)

    def __aiter__(self) -> "WrittenRequests":
        return self

    async def __anext__(self) -> Any:
        if not self.is_read.done():
            self.is_read.set_result(None)
        if self._has_ended or (request := await self._requests.get()) is EOF:
            self._has_ended = True
            raise StopAsyncIteration
        return request


class InterceptedUnaryUnaryCall(_UnaryResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One request, one response."""

    method_name = "intercept_unary_unary"


class InterceptedUnaryStreamCall(_StreamResponse, grpc.aio.UnaryStreamCall[Any, Any]):
    """One request, a stream of responses."""

    method_name = "intercept_unary_stream"


class InterceptedStreamUnaryCall(_UnaryResponse, _StreamRequest, grpc.aio.StreamUnaryCall[Any, Any]):
    """A stream of requests, one response."""

    method_name = "intercept_stream_unary"


class InterceptedStreamStreamCall(_StreamResponse, _StreamRequest, grpc.aio.StreamStreamCall[Any, Any]):
    """Streams both ways."""

    method_name = "intercept_stream_stream"
