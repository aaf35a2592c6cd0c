"""An app of several shards in processes of their own, each of which can be told what to do."""

import grpc.aio
from onelane.core.placement import Member, Placement

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp

SHARDS = 3


class Shards:
    """The shards of an echo app, each with a key that it owns."""

    def __init__(self, app: RunningApp) -> None:
        self.app = app
        described = app.status()["apps"]["echo"]
        members = tuple(Member(shard["name"], shard["address"], "") for shard in described["shards"])
        self.members = members
        self._placement = Placement(described["epoch"], members)
        key_of: dict[str, str] = {}
        for number in range(200):
            key_of.setdefault(self.owner_of(f"k{number}"), f"k{number}")
        self.keys = [key_of[f"echo-{index}"] for index in range(len(members))]

    def owner_of(self, key: str) -> str:
        return self._placement.owner_of(key).name

    async def ask(self, index: int, order: str) -> str:
        """Have one shard carry out an order of `Echo.Across`."""
        async with grpc.aio.insecure_channel(self.app.listen["echo"]) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            reply = await stub.Across(EchoRequest(key=self.keys[index], order=order), timeout=BOUND_S)
            return str(reply.text)
