"""`grpc.aio`'s client interceptors around the methods of any channel; a channel without interceptors skips this."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

INTERCEPTOR_TYPES = {
    "unary_unary": grpc.aio.UnaryUnaryClientInterceptor,
    "unary_stream": grpc.aio.UnaryStreamClientInterceptor,
    "stream_unary": grpc.aio.StreamUnaryClientInterceptor,
    "stream_stream": grpc.aio.StreamStreamClientInterceptor,
}


def checked(interceptors: Sequence[Any]) -> tuple[Any, ...]:
    """The same interceptors, as a tuple.

    Raises:
        ValueError: one of them derives from none of grpc.aio's client interceptors.
    """
    known = tuple(INTERCEPTOR_TYPES.values())
    if unknown := [interceptor for interceptor in interceptors if not isinstance(interceptor, known)]:
        raise ValueError(f"{unknown} derive from none of grpc.aio's client interceptors")
    return tuple(interceptors)


def intercepted(multi: Any, shape: str, method: str, interceptors: Sequence[Any]) -> Any:
    """`multi` behind the interceptors of its shape, the first outermost."""
    of_shape = [interceptor for interceptor in interceptors if isinstance(interceptor, INTERCEPTOR_TYPES[shape])]
    return InterceptedMethod(multi, shape, method, of_shape) if of_shape else multi


class InterceptedMethod:
    """A multi-callable whose calls pass through interceptors."""

    def __init__(self, multi: Any, shape: str, method: str, interceptors: Sequence[Any]) -> None:
        self._multi = multi
        self._shape = shape
        self._method = method
        self._interceptors = interceptors

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> "InterceptedCall":
        details = grpc.aio.ClientCallDetails(
            self._method, timeout, grpc.aio.Metadata(*(metadata or ())), credentials, wait_for_ready
        )

        async def send(details: Any, request: Any) -> Any:
            return self._multi(
                request,
                timeout=details.timeout,
                metadata=details.metadata,
                credentials=details.credentials,
                wait_for_ready=details.wait_for_ready,
                compression=compression,
            )

        continuation: Callable[[Any, Any], Any] = send
        for interceptor in reversed(self._interceptors):
            continuation = self._around(getattr(interceptor, f"intercept_{self._shape}"), continuation)
        if self._shape.startswith("stream_") and request is None:
            request = WrittenRequests()
        return InterceptedCall(continuation(details, request), request)

    @staticmethod
    def _around(intercept: Any, continuation: Any) -> Any:
        async def around(details: Any, request: Any) -> Any:
            return await intercept(continuation, details, request)

        return around


class WrittenRequests:
    """The requests that are written into a call, as the iterator that interceptors expect."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(1)

    async def put(self, request: Any) -> None:
        await self._queue.put(request)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Any]:
        while (request := await self._queue.get()) is not grpc.aio.EOF:
            yield request


class InterceptedCall:
    """A call that interceptors have not passed on yet, or the call that they have returned."""

    def __init__(self, chain: Any, request: Any) -> None:
        self._request = request
        self._interception: asyncio.Task[Any] = asyncio.ensure_future(chain)
        """Returns the call; or a response, where an interceptor answers by itself."""
        self._end: asyncio.Future[None] | None = None
        """Done when the call is; made by the first write."""

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._response().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._responses()

    async def _response(self) -> Any:
        call = await self._call()
        return await call if hasattr(call, "__await__") else call

    async def _responses(self) -> AsyncIterator[Any]:
        async for response in await self._call():
            yield response

    async def _call(self) -> Any:
        try:
            return await asyncio.shield(self._interception)
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def read(self) -> Any:
        call = await self._call()
        if hasattr(call, "read"):
            return await call.read()
        return await anext(call, grpc.aio.EOF)

    async def write(self, request: Any) -> None:
        await self._put(request)

    async def done_writing(self) -> None:
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._put(grpc.aio.EOF)

    async def _put(self, request: Any) -> None:
        """Hand `request` to the interceptors, unless the call ends before one of them reads it.

        Raises:
            AioRpcError: the call has failed.
            InvalidStateError: it has ended.
        """
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
            self.add_done_callback(self._ended)
        put = asyncio.ensure_future(self._request.put(request))
        try:
            await asyncio.wait((put, self._end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Either read, or the call has ended and nobody will read it.
            put.cancel()
        if not put.done() or put.cancelled():
            call = await self._call()
            if hasattr(call, "error") and await call.code() is not grpc.StatusCode.OK:
                raise call.error()
            raise asyncio.InvalidStateError("RPC already finished.")

    def _ended(self, _: Any) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def cancel(self) -> bool:
        if not self._interception.done():
            return self._interception.cancel()
        if self._interception.cancelled() or self._interception.exception() is not None:
            return False
        return bool(self._interception.result().cancel())

    def cancelled(self) -> bool:
        return self._interception.cancelled() or (self._has_call() and bool(self._interception.result().cancelled()))

    def done(self) -> bool:
        return self._interception.done() and (not self._has_call() or bool(self._interception.result().done()))

    def time_remaining(self) -> float | None:
        return self._interception.result().time_remaining() if self._has_call() else None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        def returned(task: asyncio.Task[Any]) -> None:
            if self._has_call():
                task.result().add_done_callback(lambda _: callback(self))
            else:
                callback(self)

        self._interception.add_done_callback(returned)

    def _has_call(self) -> bool:
        task = self._interception
        return task.done() and not task.cancelled() and task.exception() is None and hasattr(task.result(), "code")

    async def initial_metadata(self) -> Any:
        return await (await self._call()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await (await self._call()).trailing_metadata()

    async def code(self) -> Any:
        return await (await self._call()).code()

    async def details(self) -> Any:
        return await (await self._call()).details()

    async def debug_error_string(self) -> Any:
        return await (await self._call()).debug_error_string()

    async def wait_for_connection(self) -> None:
        await (await self._call()).wait_for_connection()
