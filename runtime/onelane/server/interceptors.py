"""`grpc.aio`'s server interceptors around a lane's methods. Costs nothing where none is configured."""

import importlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from onelane.errors import BadService
from onelane.server import arguments, user_code
from onelane.server.arguments import BadHandler
from onelane.server.call import Call
from onelane.server.methods import CallDetails, Method

_MAKERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def load(plugs: Sequence[str]) -> list[grpc.aio.ServerInterceptor]:
    """One object of each `package.module:Class`.

    Raises:
        BadService: one is missing, or is no grpc.aio.ServerInterceptor.
    """
    interceptors = []
    for plug in plugs:
        module, _, name = plug.partition(":")
        try:
            cls = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            raise BadService(f"interceptors: {plug}: no module {error.name!r}") from error
        if not isinstance(cls, type) or not issubclass(cls, grpc.aio.ServerInterceptor):
            raise BadService(f"interceptors: {plug} is {cls!r}, expected a class of grpc.aio.ServerInterceptor")
        interceptors.append(cls())
    return interceptors


def behind(method: Method, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> Method:
    """`method` with a handler that the interceptors choose for each call, the first of them outermost."""
    if not interceptors:
        return method
    shape = (method.request_streaming, method.response_streaming)
    plain = _MAKERS[shape](method.handler, method.deserialize, method.serialize)

    async def handler(_: Any) -> Any:
        return plain

    chain: Callable[[Any], Awaitable[Any]] = handler
    for interceptor in reversed(interceptors):
        chain = _intercept(interceptor, chain, method, shape)

    async def choose(call: Call) -> Method:
        chosen = await chain(CallDetails(method.path, call.invocation_metadata()))
        if chosen is None:
            call.abort_now(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        run = _function_of(chosen)
        is_async = inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run)
        return replace(
            method,
            handler=run,
            is_async=is_async,
            deserialize=chosen.request_deserializer,
            serialize=chosen.response_serializer,
            reply_type=method.reply_type if chosen.response_serializer == method.serialize else None,
        )

    return replace(method, choose=choose)


def _intercept(
    interceptor: grpc.aio.ServerInterceptor,
    chain: Callable[[Any], Awaitable[Any]],
    method: Method,
    shape: tuple[bool, bool],
) -> Callable[[Any], Awaitable[Any]]:
    async def intercept(details: Any) -> Any:
        chosen: Any = interceptor.intercept_service(chain, details)
        if inspect.isawaitable(chosen):
            chosen = await chosen
        if chosen is not None and not _is_handler(chosen, shape):
            name = type(interceptor).__qualname__
            streams = "a handler that has a function, request_streaming={} and response_streaming={}".format(*shape)
            raise BadHandler(
                f"{name} has chosen {_described(chosen)} for {method.name}, expected {streams}, or None",
                line=user_code.definition_of(interceptor.intercept_service),
            )
        return chosen

    return intercept


def _is_handler(chosen: Any, shape: tuple[bool, bool]) -> bool:
    chosen_shape = (getattr(chosen, "request_streaming", None), getattr(chosen, "response_streaming", None))
    return chosen_shape == shape and callable(_function_of(chosen))


def _function_of(handler: Any) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def _described(chosen: Any) -> str:
    if not hasattr(chosen, "request_streaming"):
        return f"an object of class {type(chosen).__qualname__}"
    streams = f"request_streaming={chosen.request_streaming} and response_streaming={chosen.response_streaming}"
    return f"one with the function {arguments.shown(_function_of(chosen))}, {streams}"
