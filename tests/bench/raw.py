"""The reference: the same service on bare grpc.aio and uvloop, registered as grpcio's own generated code does."""

import sys
from typing import Any

import grpc.aio
import uvloop

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class Echo(echo_pb2_grpc.EchoServicer):
    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        self.seen[request.key] = self.seen.get(request.key, 0) + 1
        return EchoReply(text=request.text, shard="raw", seen=self.seen[request.key])


class _Generic:
    """Only generic handlers: grpcio 1.84 and newer are slower with registered ones, and the reference is the faster."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, *_: Any) -> None:
        """Left out."""


async def main() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    echo_pb2_grpc.add_EchoServicer_to_server(Echo(), _Generic(server))  # type: ignore[arg-type,abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
