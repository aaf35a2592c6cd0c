"""A service whose handler calls another one through a channel of grpcio's own."""

from typing import Any

import grpc.aio
import onelane

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class GrpcioCaller(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: onelane.Shard) -> None: ...

    async def Unary(self, request: EchoRequest, context: grpc.aio.ServicerContext[Any, Any]) -> EchoReply:
        """The answer of the server at the address `order`."""
        async with grpc.aio.insecure_channel(request.order) as channel:
            method: Any = echo_pb2_grpc.EchoStub(channel).Unary
            reply: EchoReply = await method(EchoRequest(text=request.text, key=request.key))
            return reply
