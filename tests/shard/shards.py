"""An app of several shards in processes of their own, each of which can be told what to do."""

import grpc.aio

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp

SHARDS = 3


class Shards:
    """The shards of an echo app, each with a key that it owns."""

    def __init__(self, app: RunningApp) -> None:
        self.app = app
        self._placement = app.placement()
        self.members = self._placement.members
        key_of = {self.owner_of(key): key for key in map("k{}".format, range(200))}
        self.keys = [key_of[f"echo-{index}"] for index in range(len(self.members))]

    def owner_of(self, key: str) -> str:
        return self._placement.owner_of(key).name

    async def ask(self, index: int, order: str) -> str:
        """Have one shard carry out an order of `Echo.Across`."""
        async with grpc.aio.insecure_channel(self.app.listen["echo"]) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            reply = await stub.Across(EchoRequest(key=self.keys[index], order=order), timeout=BOUND_S)
            return str(reply.text)
