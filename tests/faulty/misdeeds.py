"""What handlers do wrong: each function here is one misdeed, with the status that its call ends with.

A misdeed that returns something has the handler answer with it; a coroutine, which `abort` of an async handler is, is
awaited.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import greenlet
import grpc
import grpc.aio
import onelane.errors

from tests.faulty.v1.faulty_pb2 import Other, Reply

running: set[asyncio.Task[None]] = set()
"""Tasks that handlers have started."""
NOTHING = object()
"""The misdeed answers with nothing of its own."""


@dataclass(frozen=True)
class Misdeed:
    """One function of this file."""

    run: Callable[[Any], Any]
    code: str
    """The status of its call."""
    event: str
    """The log event that names it; "" for what gRPC allows."""
    methods: frozenset[str]
    """Those in which it is a misdeed."""
    grpcio_code: str
    """Its status by the grpcio listener."""

    def is_line(self, line: str) -> bool:
        """Whether `file:number` is a line of it."""
        file, _, number = line.rpartition(":")
        lines, first = inspect.getsourcelines(self.run)
        return file == inspect.getsourcefile(self.run) and first <= int(number) < first + len(lines)


MISDEEDS: dict[str, Misdeed] = {}
ASYNC = frozenset({"Async", "AsyncUpload", "AsyncStream", "Writer"})
PLAIN = frozenset({"Plain", "PlainUpload", "PlainStream", "PlainList"})


def misdeed(
    code: str = "INTERNAL",
    event: str = "call.failed",
    methods: frozenset[str] = ASYNC | PLAIN,
    *,
    grpcio_code: str = "",
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def register(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        MISDEEDS[run.__name__] = Misdeed(run, code, event, methods, grpcio_code or code)
        return run

    return register


@misdeed("OK", "")
def none(context: Any) -> object:
    return NOTHING


# Codes


@misdeed("NOT_FOUND", "")
def code_as_number(context: Any) -> object:
    context.set_code(5)
    return NOTHING


@misdeed("NOT_FOUND", "")
def abort_with_a_number(context: Any) -> object:
    return context.abort(5, "a number")


@misdeed("UNKNOWN", "call.unknown_code")
def code_out_of_range(context: Any) -> object:
    context.set_code(99)
    return NOTHING


@misdeed("UNKNOWN", "call.unknown_code")
def code_as_text(context: Any) -> object:
    context.set_code("NOT_FOUND")
    return NOTHING


@misdeed("UNKNOWN", "call.unknown_code")
def abort_without_a_code(context: Any) -> object:
    return context.abort(None, "no code")


@misdeed("UNKNOWN", "")
def abort_with_ok(context: Any) -> object:
    return context.abort(grpc.StatusCode.OK, "fine")


@misdeed()
def abort_with_no_status(context: Any) -> object:
    return context.abort_with_status(SimpleNamespace())


@misdeed()
def abort_without_anything(context: Any) -> object:
    return context.abort()


# Metadata


@misdeed()
def trailers_as_a_dict(context: Any) -> object:
    context.set_trailing_metadata({"x-name": "value"})
    return NOTHING


@misdeed()
def trailers_as_a_bare_pair(context: Any) -> object:
    context.set_trailing_metadata(("x-name", "value"))
    return NOTHING


@misdeed()
def trailers_of_two_letters(context: Any) -> object:
    context.set_trailing_metadata(("ab", "cd"))
    return NOTHING


@misdeed()
def trailers_as_triples(context: Any) -> object:
    context.set_trailing_metadata((("x-name", "value", "more"),))
    return NOTHING


@misdeed()
def trailers_as_a_number(context: Any) -> object:
    context.set_trailing_metadata(5)
    return NOTHING


@misdeed()
def trailers_as_nothing(context: Any) -> object:
    context.set_trailing_metadata(None)
    return NOTHING


@misdeed()
def trailers_with_a_number(context: Any) -> object:
    context.set_trailing_metadata((("x-count", 5),))
    return NOTHING


@misdeed()
def trailers_with_an_impossible_name(context: Any) -> object:
    context.set_trailing_metadata((("X Name", "value"),))
    return NOTHING


@misdeed()
def trailers_with_a_surrogate(context: Any) -> object:
    context.set_trailing_metadata((("x-\udc80", "\udc80"),))
    return NOTHING


@misdeed()
def abort_with_a_dict(context: Any) -> object:
    return context.abort(grpc.StatusCode.NOT_FOUND, "", {"x-name": "value"})


@misdeed("NOT_FOUND", "")
def abort_with_a_list(context: Any) -> object:
    return context.abort(grpc.StatusCode.NOT_FOUND, "", [["x-name", "value"]])


@misdeed()
def initial_metadata_as_a_dict(context: Any) -> object:
    return context.send_initial_metadata({"x-name": "value"}) or NOTHING


# Details


@misdeed("NOT_FOUND", "call.details_replaced")
def details_with_a_surrogate(context: Any) -> object:
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("caf\udce9")
    return NOTHING


@misdeed("NOT_FOUND", "call.details_replaced")
def abort_with_a_surrogate(context: Any) -> object:
    return context.abort(grpc.StatusCode.NOT_FOUND, "caf\udce9")


@misdeed()
def details_as_bytes(context: Any) -> object:
    context.set_details(b"bytes")
    return NOTHING


@misdeed()
def abort_with_bytes(context: Any) -> object:
    return context.abort(grpc.StatusCode.NOT_FOUND, b"bytes")


@misdeed()
def abort_with_an_error(context: Any) -> object:
    return context.abort(grpc.StatusCode.NOT_FOUND, ValueError("an error"))


@misdeed("NOT_FOUND", "call.raised_after_status")
def details_as_an_error_after_a_code(context: Any) -> object:
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details(ValueError("an error"))
    return NOTHING


# Exceptions


class Panic(BaseException):
    """As an extension in Rust raises it."""


class Unprintable(Exception):
    """It cannot even be logged."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class OfNoStatus(onelane.errors.OnelaneError):
    """It names a status that does not exist."""

    status: ClassVar[str] = "NO_SUCH_STATUS"


class Unloggable(Exception):
    """Code that logs it, and is not prepared for that, ends."""

    def __str__(self) -> str:
        raise Panic

    __repr__ = __str__


class UnprintableWithStatus(Unprintable, onelane.errors.Invalid):
    """Its text is to be the details of the call."""


@misdeed()
def exits(context: Any) -> object:
    sys.exit("a handler ends the process")


@misdeed(methods=ASYNC)
def exits_in_a_task(context: Any) -> object:
    async def end_the_process() -> None:
        sys.exit("a task of a handler ends the process")

    async def wait_for_it() -> None:
        await asyncio.gather(end_the_process(), asyncio.sleep(0))

    return wait_for_it()


@misdeed("OK", "", ASYNC)
def exits_in_a_callback_of_the_loop(context: Any) -> object:
    asyncio.get_running_loop().call_soon(sys.exit)
    return asyncio.sleep(0)


@misdeed("OK", "", ASYNC)
def goes_on_after_its_end(context: Any) -> object:
    async def go_on() -> None:
        await has_ended.wait()
        context.set_code(5)
        context.set_trailing_metadata((("x-late", "value"),))
        await context.write(Reply(text="late"))
        await context.abort(grpc.StatusCode.ABORTED, "late")

    has_ended = asyncio.Event()
    context.add_done_callback(lambda _: has_ended.set())
    running.add(task := asyncio.create_task(go_on()))
    task.add_done_callback(lambda ended: ended.exception())
    return NOTHING


@misdeed()
def interrupts(context: Any) -> object:
    raise KeyboardInterrupt


@misdeed()
def panics(context: Any) -> object:
    raise Panic("called `Option::unwrap()` on a `None` value")


@misdeed()
def raises_generator_exit(context: Any) -> object:
    raise GeneratorExit


@misdeed()
def raises_greenlet_exit(context: Any) -> object:
    raise greenlet.GreenletExit


@misdeed()
def raises_stop_iteration(context: Any) -> object:
    raise StopIteration("value")


@misdeed()
def raises_stop_async_iteration(context: Any) -> object:
    raise StopAsyncIteration("value")


@misdeed("INTERNAL", "call.leaked_cancellation", ASYNC)
def raises_cancelled_error(context: Any) -> object:
    raise asyncio.CancelledError


@misdeed()
def raises_a_group_of_panics(context: Any) -> object:
    raise BaseExceptionGroup("group", [Panic("one"), Panic("two")])


@misdeed()
def raises_an_unprintable_error(context: Any) -> object:
    raise Unprintable


@misdeed()
def raises_an_error_that_panics_when_it_is_printed(context: Any) -> object:
    raise Unloggable


@misdeed()
def raises_an_error_of_no_status(context: Any) -> object:
    raise OfNoStatus("text")


@misdeed()
def raises_an_unprintable_error_with_status(context: Any) -> object:
    raise UnprintableWithStatus


@misdeed("INVALID_ARGUMENT", "")
def raises_details_with_a_surrogate(context: Any) -> object:
    raise onelane.errors.Invalid("no file caf\udce9")


@misdeed("UNKNOWN", "")
def raises_a_failed_call_that_was_ok(context: Any) -> object:
    raise grpc.aio.AioRpcError(grpc.StatusCode.OK, grpc.aio.Metadata(), grpc.aio.Metadata(), "fine")


@misdeed("NOT_FOUND", "")
def raises_a_failed_call_with_a_number(context: Any) -> object:
    raise grpc.aio.AioRpcError(5, grpc.aio.Metadata(), grpc.aio.Metadata(), "a number")  # type: ignore[arg-type]


@misdeed()
def raises_an_abort_of_its_own(context: Any) -> object:
    raise grpc.aio.AbortError("no status was chosen")


# grpc.aio cancels the task of a call whose client has cancelled it, and does not say so.
@misdeed("INTERNAL", "", ASYNC, grpcio_code="CANCELLED")
def cancels_its_own_task(context: Any) -> object:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return asyncio.sleep(0)


# Callbacks


@misdeed("OK", "call.callback_failed")
def callback_raises(context: Any) -> object:
    add = getattr(context, "add_callback", None) or context.add_done_callback
    add(lambda *_: 1 / 0)
    return NOTHING


@misdeed("OK", "call.callback_failed")
def callback_exits(context: Any) -> object:
    add = getattr(context, "add_callback", None) or context.add_done_callback
    add(lambda *_: sys.exit("callback"))
    return NOTHING


@misdeed("OK", "")
def callback_is_no_function(context: Any) -> object:
    # Logged as well, but it has no line.
    context.add_done_callback("callback")
    return NOTHING


# Answers


@misdeed(methods=(ASYNC | PLAIN) - {"Writer"})
def answers_none(context: Any) -> object:
    return None


@misdeed()
def answers_another_message(context: Any) -> object:
    return Other(text="of another class")


@misdeed(methods=(ASYNC | PLAIN) - {"PlainList"})
def answers_a_list(context: Any) -> object:
    return [Reply(text="in a list")]


@misdeed()
def answers_a_text(context: Any) -> object:
    return "text"


@misdeed()
def answers_a_class(context: Any) -> object:
    return Reply


@misdeed(methods=(ASYNC | PLAIN) - {"PlainList"})
def answers_a_generator(context: Any) -> object:
    return (Reply(text=text) for text in "ab")


async def _agen() -> Any:
    yield Reply()


@misdeed()
def answers_an_async_generator(context: Any) -> object:
    return _agen()
