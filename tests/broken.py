"""A service whose object cannot be made."""

import onelane

from tests.echo.v1 import echo_pb2_grpc


class Broken(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        raise RuntimeError("this service cannot be made")
