"""What of a call is awaited. Not compiled: a coroutine that is never awaited must warn, as Python's do."""

import asyncio
from collections.abc import Generator
from typing import Any, Protocol

import grpc
from grpc.aio import Metadata


class AwaitedCall(Protocol):
    """A call as those who await it see it."""

    @property
    def status(self) -> grpc.StatusCode | None:
        """None while the call is under way."""

    @property
    def connection(self) -> Any:
        """None until it is sent."""

    @property
    def initial(self) -> Any:
        """The initial metadata received by now, as pairs."""

    @property
    def has_answered(self) -> bool:
        """The headers of the answer have come."""

    @property
    def trailers(self) -> Any:
        """The trailing metadata of a call that has ended, as pairs."""

    @property
    def is_cancelled_here(self) -> bool:
        """By `cancel`, and not by its server."""

    def cancel(self) -> bool:
        """Cancel it; whether it was under way."""

    def change(self) -> "asyncio.Future[None]":
        """Done once something arrives, or the call ends."""

    def end_future(self) -> "asyncio.Future[None]":
        """Done when the call is."""

    def read_response(self) -> Any:
        """The one response of a call that has ended well."""

    def raise_failure(self) -> None:
        """Raise what ended the call, unless its status is OK."""

    def named_details(self) -> str:
        """The details, with the name of the peer that cannot be reached."""

    def addressed_details(self) -> str:
        """The details, with the address that it was sent to."""


def response_of(call: AwaitedCall) -> Generator[Any, Any, Any]:
    """Wait for the one response of a call. Cancelled, this cancels the call."""
    if call.status is None:
        try:
            yield from call.end_future()
        except asyncio.CancelledError:
            if not call.cancel():
                call.raise_failure()
            raise
    if call.status is grpc.StatusCode.OK:
        return call.read_response()
    call.raise_failure()
    return None


async def initial_metadata(call: AwaitedCall) -> Metadata:
    while not call.has_answered and call.status is None:
        await call.change()
    return Metadata(*call.initial)


async def trailing_metadata(call: AwaitedCall) -> Metadata:
    await wait_ended(call)
    return Metadata(*call.trailers)


async def code(call: AwaitedCall) -> grpc.StatusCode:
    await wait_ended(call)
    assert call.status is not None
    return call.status


async def details(call: AwaitedCall) -> str:
    await wait_ended(call)
    return call.named_details()


async def debug_error_string(call: AwaitedCall) -> Any:
    await wait_ended(call)
    if call.status is grpc.StatusCode.OK or call.is_cancelled_here:
        return None if call.is_cancelled_here else ""
    return call.addressed_details()


async def wait_for_connection(call: AwaitedCall) -> None:
    while call.connection is None and call.status is None:
        await call.change()
    if call.status is not None:
        call.raise_failure()


async def wait_ended(call: AwaitedCall) -> None:
    # Not `end_future`: whoever awaits the call itself and is cancelled cancels that future for all.
    while call.status is None:
        await call.change()
