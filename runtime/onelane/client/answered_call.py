"""What an interceptor has returned in place of a call, as a call: a response, or an iterator of responses."""

from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import grpc
import grpc.aio
from grpc.aio import EOF

from onelane.client.call import OK, run_callback


class FinishedCall(grpc.aio.UnaryUnaryCall[Any, Any]):
    """A call without an RPC, which has ended: an interceptor has answered by itself, or the interceptors failed."""

    def __init__(
        self,
        response: Any = None,
        *,
        code: grpc.StatusCode = OK,
        details: str | None = "",
        initial_metadata: Any = None,
        trailing_metadata: Any = None,
        debug_error_string: str | None = None,
    ) -> None:
        self._response = response
        self._code = code
        self._details = details
        self._initial_metadata = initial_metadata
        self._trailing_metadata = trailing_metadata
        self._debug_error_string = debug_error_string

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._response
        yield

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def time_remaining(self) -> float | None:
        return None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        run_callback(callback, self)

    async def initial_metadata(self) -> Any:
        return self._initial_metadata

    async def trailing_metadata(self) -> Any:
        return self._trailing_metadata

    async def code(self) -> grpc.StatusCode:
        return self._code

    async def details(self) -> Any:
        return self._details

    async def debug_error_string(self) -> Any:
        return self._debug_error_string

    async def wait_for_connection(self) -> None:
        """There is none to wait for."""


class RelayedCall(grpc.aio.UnaryStreamCall[Any, Any], grpc.aio.StreamStreamCall[Any, Any]):
    """An RPC whose responses come through an async iterator of an interceptor; all else is the RPC's."""

    def __init__(self, call: Any, responses: Any) -> None:
        """call: the RPC's; None where the interceptor has begun none."""
        self._call: Any = FinishedCall() if call is None else call
        self._responses = responses

    def __aiter__(self) -> AsyncIterator[Any]:
        iterator: AsyncIterator[Any] = self._responses.__aiter__()
        return iterator

    async def read(self) -> Any:
        return await anext(aiter(self), EOF)

    async def write(self, request: Any) -> None:
        await self._call.write(request)

    async def done_writing(self) -> None:
        await self._call.done_writing()

    def cancel(self) -> bool:
        return bool(self._call.cancel())

    def cancelled(self) -> bool:
        return bool(self._call.cancelled())

    def done(self) -> bool:
        return bool(self._call.done())

    def time_remaining(self) -> Any:
        return self._call.time_remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._call.add_done_callback(callback)

    async def initial_metadata(self) -> Any:
        return await self._call.initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await self._call.trailing_metadata()

    async def code(self) -> Any:
        return await self._call.code()

    async def details(self) -> Any:
        return await self._call.details()

    async def debug_error_string(self) -> Any:
        return await self._call.debug_error_string()

    async def wait_for_connection(self) -> None:
        await self._call.wait_for_connection()
