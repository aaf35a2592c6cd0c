"""Running a handler: async or plain, unary or streaming, from a parsed message to the answer's bytes.

Promises: an async generator that is left before its end is closed at once, in its own task and context. Not compiled,
as `lane/running` is not: the frames here show what the handler of a stream does.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from functools import partial
from types import AsyncGeneratorType
from typing import Any

from onelane.core import keys
from onelane.core.keys import FieldKey
from onelane.server import sync_handler, user_code
from onelane.server.arguments import BadHandler
from onelane.server.call import OK, Call
from onelane.server.methods import Method
from onelane.server.payloads import bad_answer, bytes_of, parse, serialize
from onelane.server.plain_context import PlainContext

MAX_CLOSE_ATTEMPTS = 8
"""How often a generator is closed that yields in its cleanup."""


async def run(method: Method, call: Call, message: Any) -> bytes:
    """Run the handler of `method`; the bytes of a unary answer, else b"".

    message: the request, parsed, or None where the client streams.
    """
    if method.request_streaming or method.response_streaming:
        call.carry(_checked(method, call), _serializer(method))
        return await (_stream if method.is_async else _plain_stream)(method, call, message)
    if method.is_async:
        answer = await method.handler(message, call)
    else:
        answer = method.handler(message, PlainContext(call))
    return bytes_of(method, call, answer)


async def _stream(method: Method, call: Call, message: Any) -> bytes:
    answer = method.handler(call.messages() if method.request_streaming else message, call)
    if not method.response_streaming:
        return bytes_of(method, call, await answer)
    if hasattr(answer, "__aiter__"):
        await _send_each(call, answer)
        return b""
    returned = await answer
    if returned is not None and call.code_now is OK:
        raise bad_answer(method, returned, "None from a coroutine, which writes its answers, or an async generator")
    return b""


async def _send_each(call: Call, answers: Any) -> None:
    try:
        async for answer in answers:
            try:
                sending = call.begin_write(answer)
                if sending is not None:
                    await sending
            except BadHandler as error:
                if isinstance(answers, AsyncGeneratorType):
                    error.line = user_code.standing_line(answers.ag_frame, answers.ag_code) or error.line
                raise
    except BaseException:
        # It stands at a `yield`. Left there, it would be closed by the garbage collector, some time, in another
        # context, and would hold until then what it holds: the turn of a key, a connection to a database.
        if isinstance(answers, AsyncGeneratorType):
            await _close(answers)
        elif isinstance(answers, AsyncGenerator):
            await answers.aclose()
        raise


async def _close(answers: AsyncGeneratorType[Any, Any]) -> None:
    """Close a generator, in the task and context that it ran in."""
    for _ in range(MAX_CLOSE_ATTEMPTS):
        if answers.ag_frame is None:
            return
        # Not `aclose`, which gives up, for good, where the generator yields once more in its cleanup.
        with suppress(GeneratorExit, StopAsyncIteration):
            await answers.athrow(GeneratorExit())
    line = user_code.standing_line(answers.ag_frame, answers.ag_code)
    raise BadHandler(f"{answers.__qualname__} yields whenever it is closed, expected it to end", line=line)


async def _plain_stream(method: Method, call: Call, message: Any) -> bytes:
    # The watchdog finds `context` in the frames of both functions below (shard/lane_stack).
    context = PlainContext(call)
    body = sync_handler.messages(call) if method.request_streaming else message
    if method.response_streaming:
        await sync_handler.stream(call, lambda: _answers(method, call, method.handler(body, context)))
        return b""
    return bytes_of(method, call, await sync_handler.run(lambda: method.handler(body, context)))


def _answers(method: Method, call: Call, answers: Any) -> Iterable[Any]:
    """What a plain handler has returned for a stream, if one can iterate over it."""
    if isinstance(answers, Iterable):
        return answers
    if answers is None and call.code_now is not OK:
        return ()
    raise bad_answer(method, answers, "an iterable of messages")


def _checked(method: Method, call: Call) -> Callable[[bytes], Any] | None:
    """The parser of a stream's messages; where metadata routed it, the first message may not contradict that."""
    if not method.request_streaming:
        return method.deserialize
    header = keys.header_of(call.metadata)
    rule = method.rule
    if header is None or not isinstance(rule, FieldKey):
        return lambda message: parse(method, message)

    def first(message: bytes) -> Any:
        parsed = parse(method, message)
        keys.check_header(rule.read(parsed), header, rule.paths[0])
        call.carry(lambda later: parse(method, later), _serializer(method))
        return parsed

    return first


def _serializer(method: Method) -> Callable[[Any], bytes] | None:
    """What makes bytes of each response of a stream."""
    return partial(serialize, method) if method.response_streaming else None
