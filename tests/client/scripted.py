"""A server that answers as a test's script says."""

import asyncio
from typing import Any

import grpc
import grpc.aio

from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

UNAVAILABLE, ABORTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED


class Scripted(grpc.GenericRpcHandler):
    """Answers each call of any unary method with the next of `steps`: a status, seconds to wait, or an answer; or what
    returns one of these when the call has come."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.trailers: tuple[tuple[str, str], ...] = ()
        self.seen: list[dict[str, Any]] = []
        self.cancelled = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if "Topology" in handler_call_details.method:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self.answer, EchoRequest.FromString, lambda reply: reply.SerializeToString()
        )

    async def answer(self, request: EchoRequest, context: Any) -> EchoReply:
        number = len(self.seen)
        self.seen.append(dict(context.invocation_metadata()))
        step = self.steps.pop(0) if self.steps else "done"
        if callable(step):
            step = step()
        if isinstance(step, grpc.StatusCode):
            await context.abort(step, "as the test says", self.trailers)
        if isinstance(step, float):
            try:
                await asyncio.sleep(step)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return EchoReply(text=f"{number}")
