"""The context of a plain `def` handler. Compiled, unlike what runs such a handler: one is made for each call."""

from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from onelane.server.call import Call, Metadata


class PlainContext:
    """The `grpc.ServicerContext` of a plain `def` handler: the same call, with methods that do not await."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "write"):
            # Else their coroutine is made, and never awaited.
            raise AttributeError(
                f"a plain def handler has no context.{name}: it iterates over requests, and yields responses"
            )
        return getattr(self._call, name)

    def abort(self, code: grpc.StatusCode | int, details: str, trailing_metadata: Metadata = ()) -> NoReturn:
        self._call.abort_now(code, details, trailing_metadata)

    def abort_with_status(self, status: Any) -> NoReturn:
        self._call.abort_now(status.code, status.details, status.trailing_metadata)

    def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        self._call.send_initial_now(self._call.accept_initial_metadata(initial_metadata))

    def is_active(self) -> bool:
        return not (self._call.done() or self._call.cancelled())

    def cancel(self) -> None:
        if self.is_active():
            self._call.set_abort(grpc.StatusCode.CANCELLED, "cancelled by the handler", ())

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self._call.done():
            return False
        self._call.add_done_callback(lambda _: callback())
        return True


grpc.ServicerContext.register(PlainContext)


def call_of(context: PlainContext) -> Call:
    """The call behind a plain handler's context."""
    return context._call
