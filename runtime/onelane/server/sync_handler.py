"""Plain `def` handlers, run on the lane itself.

A unary one runs in one go. One that reads a stream runs in a greenlet: where it asks for the next message it steps
aside and the lane goes on, so code that was written for grpcio's threads runs unchanged, without a thread.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextvars import copy_context
from types import GeneratorType
from typing import Any, NoReturn

import greenlet
import grpc

from onelane.server import user_code
from onelane.server.arguments import BadHandler
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


def wait(awaitable: Awaitable[Any]) -> Any:
    """Step aside until `awaitable` is done. Only inside `run`."""
    parent = greenlet.getcurrent().parent
    assert parent is not None
    return parent.switch(awaitable)


async def run(handler: Callable[[], Any]) -> Any:
    """Run `handler` to its end in a greenlet; awaitables that it waits for are awaited here, on the lane."""
    child = greenlet.greenlet(handler)
    # A copy: a greenlet starts with an empty context, and the task's own is in use meanwhile.
    child.gr_context = copy_context()
    step = child.switch()
    while not child.dead:
        try:
            value = await step
        except BaseException as error:
            step = child.throw(error)
        else:
            step = child.switch(value)
    if isinstance(step, greenlet.GreenletExit):
        # A greenlet returns this exception, whoever has raised it.
        raise step
    return step


def messages(call: Call) -> Iterator[Any]:
    """The client's messages for a plain handler, which must run inside `run`."""
    while (message := wait(call.read())) is not grpc.aio.EOF:
        yield message


async def stream(call: Call, handler: Callable[[], Any]) -> None:
    """Run a plain handler that returns or yields its answers one by one, and send each."""

    def produce() -> None:
        # The watchdog finds `call` in this frame (shard/lane_stack).
        answers = handler()
        try:
            for answer in answers:
                try:
                    sending = call.begin_write(answer)
                    if sending is not None:
                        wait(sending)
                except BadHandler as error:
                    if isinstance(answers, GeneratorType):
                        error.line = user_code.standing_line(answers.gi_frame, answers.gi_code) or error.line
                    raise
        finally:
            if isinstance(answers, GeneratorType):
                # Left at a `yield`, it would hold what it holds until the garbage collector comes.
                answers.close()

    await run(produce)
