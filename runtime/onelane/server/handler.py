"""Running a handler: async or plain, unary or streaming, from a parsed message to the answer's bytes."""

from collections.abc import Callable
from typing import Any

from onelane.core import keys
from onelane.core.keys import FieldKey
from onelane.errors import Malformed
from onelane.server import sync_handler
from onelane.server.call import OK, Call
from onelane.server.methods import Method


async def run(method: Method, call: Call, message: Any) -> bytes:
    """Run the handler of `method`; the bytes of a unary answer, else b"".

    message: the request, parsed, or None where the client streams.
    """
    if method.request_streaming or method.response_streaming:
        call.carry(_checked(method, call), method.serialize)
        return await (_stream if method.is_async else _plain_stream)(method, call, message)
    if method.is_async:
        answer = await method.handler(message, call)
    else:
        return run_now(method, call, message)
    return bytes_of(method, call, answer)


def run_now(method: Method, call: Call, message: Any) -> bytes:
    """Run a plain `def` handler of one message and one answer; its bytes."""
    return bytes_of(method, call, method.handler(message, sync_handler.PlainContext(call)))


def parse(method: Method, request: bytes) -> Any:
    """The message of `request`.

    Raises:
        Malformed: it is none.
    """
    if method.deserialize is None:
        return request
    try:
        return method.deserialize(request)
    except Exception as error:
        raise Malformed(f"the request of {method.name} is not the message it should be") from error


async def _stream(method: Method, call: Call, message: Any) -> bytes:
    answer = method.handler(call.messages() if method.request_streaming else message, call)
    if not method.response_streaming:
        return bytes_of(method, call, await answer)
    if hasattr(answer, "__aiter__"):
        async for message in answer:
            await call.write(message)
    else:
        await answer
    return b""


async def _plain_stream(method: Method, call: Call, message: Any) -> bytes:
    # The watchdog finds `context` in the frames of both functions below (shard/lane_stack).
    context = sync_handler.PlainContext(call)
    body = sync_handler.messages(call) if method.request_streaming else message
    if method.response_streaming:
        await sync_handler.stream(call, lambda: method.handler(body, context))
        return b""
    return bytes_of(method, call, await sync_handler.run(lambda: method.handler(body, context)))


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
        call.carry(lambda later: parse(method, later), method.serialize)
        return parsed

    return first


def bytes_of(method: Method, call: Call, answer: Any) -> bytes:
    """The answer as bytes; none where the handler has chosen another status than OK."""
    if call.code_now is not OK:
        return b""
    if method.serialize is None:
        return bytes(answer)
    return method.serialize(answer)
