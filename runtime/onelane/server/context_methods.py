"""The coroutines of a handler's context. Not compiled: a coroutine that is never awaited must warn, as Python's do, and
a handler that returns one is told so by its type.
"""

from collections.abc import Coroutine
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from onelane.wire.framing import Metadata


class HandlerCall(Protocol):
    """A call as its handler's coroutines see it."""

    async def next_bytes(self) -> bytes | None:
        """The next message, or None after the last."""

    async def send_initial(self, metadata: Metadata) -> None:
        """Send initial metadata."""

    def parsed(self, message: bytes) -> Any:
        """A message that has come, parsed."""

    def begin_write(self, message: Any) -> Coroutine[Any, Any, None] | None:
        """Send one message; returns what is to be awaited before the next, if anything."""

    def accept_initial_metadata(self, initial_metadata: Metadata) -> Metadata:
        """Initial metadata of a handler, checked."""

    def abort_now(self, code: grpc.StatusCode | int, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call by this status."""


async def read(call: HandlerCall) -> Any:
    message = await call.next_bytes()
    return grpc.aio.EOF if message is None else call.parsed(message)


async def write(call: HandlerCall, message: Any) -> None:
    sending = call.begin_write(message)
    if sending is not None:
        await sending


async def send_initial_metadata(call: HandlerCall, initial_metadata: Metadata) -> None:
    await call.send_initial(call.accept_initial_metadata(initial_metadata))


async def abort(call: HandlerCall, code: grpc.StatusCode | int, details: str, trailing_metadata: Metadata) -> NoReturn:
    call.abort_now(code, details, trailing_metadata)


async def abort_with_status(call: HandlerCall, status: Any) -> NoReturn:
    call.abort_now(status.code, status.details, status.trailing_metadata)
