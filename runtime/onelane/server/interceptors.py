"""`grpc.aio`'s server interceptors around a lane's methods. Costs nothing where none is configured."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from onelane import plugins
from onelane.errors import BadService
from onelane.server import user_code
from onelane.server.arguments import BadHandler
from onelane.server.call import Call
from onelane.server.chosen_handler import MAKERS, as_chosen, keeping_bytes, kind_of
from onelane.server.methods import Method

Continuation = Callable[[Any], Awaitable[Any]]
"""What interceptors call: details of a call → the handler that is chosen for it."""


def load(plugs: Sequence[str]) -> list[grpc.aio.ServerInterceptor]:
    """One object of each `package.module:name`: of a class, or made by a function.

    Raises:
        BadService: one is missing, is no grpc.aio.ServerInterceptor, or its code has raised.
    """
    return [_load(plug) for plug in plugs]


def _load(plug: str) -> grpc.aio.ServerInterceptor:
    make = getattr(plugins.import_plug(plug), plug.partition(":")[2], None)
    expected = "expected a class of grpc.aio.ServerInterceptor, or a function that makes one"
    if not callable(make) or (isinstance(make, type) and not issubclass(make, grpc.aio.ServerInterceptor)):
        raise BadService(f"{plug} is {make!r}, {expected}")
    try:
        interceptor = make()
    except (Exception, SystemExit) as error:
        raise plugins.raised(plug, error) from error
    if not isinstance(interceptor, grpc.aio.ServerInterceptor):
        raise BadService(f"{plug} has made {interceptor!r}, {expected}")
    return interceptor


class Chain:
    """The interceptors of an app, around the methods of its services."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        """interceptors: the first is the outermost."""
        self._is_empty = not interceptors
        self._handlers: dict[str, Any] = {}
        """Path → the service's own handler, as `grpc.RpcMethodHandler`."""
        self._choose: Continuation = self._own_handler
        for interceptor in reversed(interceptors):
            self._choose = _before(interceptor, self._choose)

    def around(self, method: Method) -> Method:
        """`method` with a handler that the interceptors choose for each call."""
        if self._is_empty:
            return method
        make = MAKERS[method.request_streaming, method.response_streaming]
        own_handler = self._handlers[method.path] = make(method.handler, method.deserialize, method.serialize)
        own_method = as_chosen(method, own_handler)

        async def choose(call: Call) -> Method:
            chosen = await self._choose(_Details(call))
            if chosen is own_handler:
                return own_method
            if chosen is None:
                call.abort_now(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return as_chosen(method, chosen)

        return replace(keeping_bytes(method), choose=choose)

    async def _own_handler(self, details: Any) -> Any:
        """The end of the chain: an interceptor may have changed the method."""
        return self._handlers.get(details.method)


class _Details(grpc.HandlerCallDetails):
    """A call as interceptors see it."""

    def __init__(self, call: Call) -> None:
        self.method = call.method
        self._call = call

    @property
    def invocation_metadata(self) -> Any:  # type: ignore[override]
        return self._call.invocation_metadata()


def _before(interceptor: grpc.aio.ServerInterceptor, chain: Continuation) -> Continuation:
    async def intercept(details: Any) -> Any:
        chosen: Any = interceptor.intercept_service(chain, details)
        if inspect.isawaitable(chosen):
            chosen = await chosen
        if chosen is not None and kind_of(chosen) is None:
            name, path = type(interceptor).__qualname__, details.method
            raise BadHandler(
                f"{name} has chosen {_described(chosen)} for {path[1:]}, expected a grpc.RpcMethodHandler, or None",
                line=user_code.definition_of(interceptor.intercept_service),
            )
        return chosen

    return intercept


def _described(chosen: Any) -> str:
    kind = f"an object of class {type(chosen).__qualname__}"
    return f"{kind} without the function of its kind" if hasattr(chosen, "request_streaming") else kind
