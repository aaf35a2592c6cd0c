"""`grpc.aio`'s client interceptors around any channel's methods. Runs only where a channel was given some."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

_KINDS = {
    "unary_unary": grpc.aio.UnaryUnaryClientInterceptor,
    "unary_stream": grpc.aio.UnaryStreamClientInterceptor,
    "stream_unary": grpc.aio.StreamUnaryClientInterceptor,
    "stream_stream": grpc.aio.StreamStreamClientInterceptor,
}


def checked(interceptors: Sequence[Any]) -> tuple[Any, ...]:
    """`interceptors`, all of which are interceptors.

    Raises:
        ValueError: one of them is none of grpc.aio's.
    """
    if wrong := [one for one in interceptors if not isinstance(one, tuple(_KINDS.values()))]:
        raise ValueError(f"{wrong} derive from none of grpc.aio's client interceptors")
    return tuple(interceptors)


def intercepted(multi: Any, shape: str, method: str, interceptors: Sequence[Any]) -> Any:
    """`multi` behind those of `interceptors` that are of its shape, the first outermost."""
    mine = [one for one in interceptors if isinstance(one, _KINDS[shape])]
    return _Intercepted(multi, shape, method, mine) if mine else multi


class _Intercepted:
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
        for one in reversed(self._interceptors):
            continuation = self._around(getattr(one, f"intercept_{self._shape}"), continuation)
        if self._shape.startswith("stream_") and request is None:
            request = Written()
        return InterceptedCall(continuation(details, request), request)

    @staticmethod
    def _around(intercept: Any, continuation: Any) -> Any:
        async def around(details: Any, request: Any) -> Any:
            return await intercept(continuation, details, request)

        return around


class Written:
    """What is written into a call, as the iterator that interceptors expect."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(1)

    async def put(self, request: Any) -> None:
        await self._queue.put(request)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._all()

    async def _all(self) -> AsyncIterator[Any]:
        while (request := await self._queue.get()) is not grpc.aio.EOF:
            yield request


class InterceptedCall:
    """A call that interceptors are still deciding about, or the one they have decided on."""

    def __init__(self, chain: Any, request: Any) -> None:
        self._request = request
        self._decided: asyncio.Task[Any] = asyncio.ensure_future(chain)
        self._over: asyncio.Future[None] | None = None
        """Done when the call is; made by the first write."""

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._answer().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._answers()

    async def _answer(self) -> Any:
        call = await self._call()
        return await call if hasattr(call, "__await__") else call

    async def _answers(self) -> AsyncIterator[Any]:
        async for answer in await self._call():
            yield answer

    async def _call(self) -> Any:
        try:
            return await asyncio.shield(self._decided)
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
        """Hand `request` over, unless the call ends before anybody reads it.

        Raises:
            AioRpcError: the call has failed.
            InvalidStateError: it is over.
        """
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
            self.add_done_callback(self._end)
        put = asyncio.ensure_future(self._request.put(request))
        try:
            await asyncio.wait((put, self._over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Taken, or nobody will take it any more.
            put.cancel()
        if not put.done() or put.cancelled():
            call = await self._call()
            if hasattr(call, "error") and await call.code() is not grpc.StatusCode.OK:
                raise call.error()
            raise asyncio.InvalidStateError("RPC already finished.")

    def _end(self, _: Any) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def cancel(self) -> bool:
        if not self._decided.done():
            return self._decided.cancel()
        if self._decided.cancelled() or self._decided.exception() is not None:
            return False
        return bool(self._decided.result().cancel())

    def cancelled(self) -> bool:
        return self._decided.cancelled() or (self._has_call() and bool(self._decided.result().cancelled()))

    def done(self) -> bool:
        return self._decided.done() and (not self._has_call() or bool(self._decided.result().done()))

    def time_remaining(self) -> float | None:
        return self._decided.result().time_remaining() if self._has_call() else None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        def decided(task: asyncio.Task[Any]) -> None:
            if self._has_call():
                task.result().add_done_callback(lambda _: callback(self))
            else:
                callback(self)

        self._decided.add_done_callback(decided)

    def _has_call(self) -> bool:
        task = self._decided
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
