"""Server interceptors as users of grpc.aio write them."""

import inspect
from typing import Any

import grpc
import grpc.aio


class Denying(grpc.aio.ServerInterceptor):
    """Lets in who has the token."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if ("token", "sesame") in tuple(handler_call_details.invocation_metadata):
            return handler

        async def deny(_: Any, context: Any) -> Any:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"no token for {handler_call_details.method}")

        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(deny)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(deny)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(deny)
        return grpc.unary_unary_rpc_method_handler(deny)


class Stamping(grpc.aio.ServerInterceptor):
    """Puts its stamp on unary answers."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler.request_streaming or handler.response_streaming:
            return handler

        async def stamped(request: Any, context: Any) -> Any:
            context.set_trailing_metadata((("x-stamp", "seen"),))
            answer = handler.unary_unary(request, context)
            return await answer if inspect.isawaitable(answer) else answer

        return grpc.unary_unary_rpc_method_handler(stamped, handler.request_deserializer, handler.response_serializer)


class Nothing:
    """No interceptor at all."""
