"""Plain `def` handlers, run on the lane itself.

A unary one runs in one go. One that reads a stream runs in a greenlet: where it asks for the next message it steps
aside and the lane goes on, so code that was written for grpcio's threads runs unchanged, without a thread.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextvars import copy_context
from types import GeneratorType
from typing import Any

import greenlet
import grpc.aio

from onelane.server import user_code
from onelane.server.arguments import BadHandler
from onelane.server.call import Call


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
