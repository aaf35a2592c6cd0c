"""The reference service, without onelane: the body that every server here runs."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class Echo(echo_pb2_grpc.EchoServicer):
    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def reply(self, request: EchoRequest) -> EchoReply:
        self.seen[request.key] = self.seen.get(request.key, 0) + 1
        return EchoReply(text=request.text, shard="raw", seen=self.seen[request.key])

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        return self.reply(request)

    async def Download(self, request: EchoRequest, context: Any) -> AsyncIterator[EchoReply]:
        for _ in range(request.times):
            yield self.reply(request)


class _Generic:
    """Only generic handlers: grpcio 1.84 and newer are slower with registered ones, and the reference is the faster."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, *_: Any) -> None:
        """Left out."""


def register(server: grpc.aio.Server, servicer: echo_pb2_grpc.EchoServicer | None = None) -> None:
    """Serve it there, or another one."""
    servicer = servicer or Echo()  # type: ignore[abstract]
    echo_pb2_grpc.add_EchoServicer_to_server(servicer, _Generic(server))  # type: ignore[arg-type]
