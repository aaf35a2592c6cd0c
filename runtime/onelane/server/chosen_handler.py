"""A handler that an interceptor has chosen for one call, as a handler of the called method.

As in grpc.aio it may be of any kind. One that takes a single request gets the first of a stream; one that takes a
stream gets a stream of the single request; one that answers once answers a stream once. It may have a deserializer of
its own, so a single request is kept as bytes beside the message by which the call was routed.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import grpc.aio

from onelane.core.keys import ANY, FieldKey
from onelane.errors import Malformed
from onelane.server.arguments import BadHandler
from onelane.server.call import OK
from onelane.server.methods import Method, is_async

Kind = tuple[bool, bool]
"""The request is a stream, the response is a stream."""
MAKERS: dict[Kind, Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
_FUNCTIONS: dict[Kind, str] = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


@dataclass(frozen=True, slots=True)
class Received:
    """The request of a call of one message."""

    raw: bytes
    message: Any
    """As the service's own method parses it."""


def keeping_bytes(method: Method) -> Method:
    """`method` whose single requests are `Received`: its handler is not chosen yet."""
    if method.request_streaming:
        return method
    rule = method.rule
    if isinstance(rule, FieldKey):
        rule = replace(rule, read=partial(_read_key, rule.read))
    return replace(method, deserialize=partial(_receive, method.deserialize), rule=rule)


def _receive(deserialize: Callable[[bytes], Any] | None, raw: bytes) -> Received:
    return Received(raw, deserialize(raw) if deserialize else raw)


def _read_key(read: Callable[[Any], str], request: Any) -> str:
    # A service that calls another lane of its app has the message alone.
    return read(request.message if isinstance(request, Received) else request)


def kind_of(chosen: Any) -> Kind | None:
    """The kind of a `grpc.RpcMethodHandler`; None of an object that is none, or has no function of its kind."""
    streams = (getattr(chosen, "request_streaming", None), getattr(chosen, "response_streaming", None))
    if None in streams:
        return None
    kind = (bool(streams[0]), bool(streams[1]))
    return kind if callable(getattr(chosen, _FUNCTIONS[kind], None)) else None


def as_chosen(method: Method, chosen: Any) -> Method:
    """`method` for one call, with the handler that interceptors have chosen.

    method: as the service has it; its single request comes as `Received`.
    """
    kind = kind_of(chosen)
    assert kind is not None
    wire = (method.request_streaming, method.response_streaming)
    function = getattr(chosen, _FUNCTIONS[kind])
    deserialize = chosen.request_deserializer
    has_own_requests = deserialize == method.deserialize
    parse = _message if has_own_requests else partial(_parse, method, deserialize)
    runs_async = is_async(function)
    handler = (_async_handler if runs_async else _plain_handler)(function, wire, kind, parse)
    if handler is not function:
        # For the line of the service that a log line names.
        handler.__wrapped__ = function
    return replace(
        method,
        handler=handler,
        is_async=runs_async,
        deserialize=deserialize,
        serialize=chosen.response_serializer,
        rule=method.rule if has_own_requests else ANY,
        reply_type=method.reply_type if chosen.response_serializer == method.serialize else None,
    )


def _message(received: Received) -> Any:
    return received.message


def _parse(method: Method, deserialize: Callable[[bytes], Any] | None, received: Received) -> Any:
    if deserialize is None:
        return received.raw
    try:
        return deserialize(received.raw)
    except Exception as error:
        raise Malformed(f"the request of {method.name} is not the message it should be") from error


# async def


def _async_handler(function: Any, wire: Kind, kind: Kind, parse: Callable[[Received], Any]) -> Any:
    if wire == kind:
        return function if wire[0] else lambda request, context: function(parse(request), context)

    async def argument(request: Any, context: Any) -> Any:
        if wire[0]:
            return request if kind[0] else _expect_message(await anext(request, grpc.aio.EOF), context)
        message = parse(request)
        return _stream_of(message) if kind[0] else message

    async def answer_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        answers = function(await argument(request, context), context)
        if hasattr(answers, "__aiter__"):
            async with _closing(answers):
                async for answer in answers:
                    yield answer
            return
        # One answer; or None of a coroutine that has written its answers.
        answer = await answers
        if not kind[1] and context.code_now is OK:
            yield answer

    async def answer_once(request: Any, context: Any) -> Any:
        answers = function(await argument(request, context), context)
        if not hasattr(answers, "__aiter__"):
            return await answers
        replies = []
        async with _closing(answers):
            async for answer in answers:
                replies.append(answer)
                if len(replies) > 1:
                    break
        return _expect_one(replies, context)

    return answer_stream if wire[1] else answer_once


async def _stream_of(message: Any) -> AsyncIterator[Any]:
    yield message


def _closing(answers: Any) -> Any:
    return aclosing(answers) if isinstance(answers, AsyncGenerator) else nullcontext()


# def


def _plain_handler(function: Any, wire: Kind, kind: Kind, parse: Callable[[Received], Any]) -> Any:
    if wire == kind:
        return function if wire[0] else lambda request, context: function(parse(request), context)

    def argument(request: Any, context: Any) -> Any:
        if wire[0]:
            return request if kind[0] else _expect_message(next(request, grpc.aio.EOF), context)
        message = parse(request)
        return iter((message,)) if kind[0] else message

    def answer_stream(request: Any, context: Any) -> Iterable[Any]:
        answers = function(argument(request, context), context)
        if kind[1]:
            yield from answers or ()
        elif context.code_now is OK:
            yield answers

    def answer_once(request: Any, context: Any) -> Any:
        answers = function(argument(request, context), context)
        return _expect_one(list(islice(answers or (), 2)), context) if kind[1] else answers

    return answer_stream if wire[1] else answer_once


# Both


def _expect_message(message: Any, context: Any) -> Any:
    if message is grpc.aio.EOF:
        context.abort_now(grpc.StatusCode.UNIMPLEMENTED, "expected one message, received 0")
    return message


def _expect_one(replies: list[Any], context: Any) -> Any:
    """The answer of a method that answers once; None where its status is not OK."""
    if len(replies) == 1 or context.code_now is not OK:
        return replies[0] if replies else None
    count = "no message" if not replies else "several messages"
    raise BadHandler(f"{context.method[1:]} has answered {count} where its client expects one")
