"""A server of server streams that end as a test's script says, and of a topology that changes when the test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from onelane.core.moved import MOVED
from onelane.v1 import topology_pb2, topology_pb2_grpc

from tests.follow.v1.follow_pb2 import FollowReply, FollowRequest

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
HOLD = "hold"
"""A step: send nothing more, and leave the stream open."""


class Ends:
    """A step: the stream ends. epoch: in the trailer of a move; None for no trailer."""

    def __init__(self, epoch: object = None, *, code: grpc.StatusCode = UNAVAILABLE) -> None:
        self.trailers = () if epoch is None else ((MOVED, str(epoch)),)
        self.code = code


class ScriptedStreams(grpc.GenericRpcHandler):
    """Each stream of any method of `Follow` goes through the next of `scripts`: texts that it sends, seconds that it
    waits, and other steps; when there is none left, through `then`."""

    def __init__(self) -> None:
        self.scripts: list[list[Any]] = []
        self.then: list[Any] = [HOLD]
        self.seen: list[dict[str, Any]] = []
        """The metadata of each stream."""
        self.requests: list[FollowRequest] = []
        self.remaining: list[float | None] = []
        """Of each stream's deadline, when it came."""
        self.has_come = asyncio.Condition()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if "Topology" in handler_call_details.method:
            return None
        return grpc.unary_stream_rpc_method_handler(
            self.answer, FollowRequest.FromString, lambda reply: reply.SerializeToString()
        )

    async def answer(self, request: FollowRequest, context: Any) -> AsyncIterator[FollowReply]:
        script = self.scripts.pop(0) if self.scripts else self.then
        self.seen.append(dict(context.invocation_metadata()))
        self.requests.append(request)
        self.remaining.append(context.time_remaining())
        async with self.has_come:
            self.has_come.notify_all()
        for step in script:
            if isinstance(step, Ends):
                await context.abort(step.code, "as the test says", step.trailers)
            if step is HOLD:
                await asyncio.Event().wait()
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield FollowReply(text=step)

    async def wait_streams(self, count: int) -> None:
        """Wait until so many have come."""
        async with self.has_come:
            await self.has_come.wait_for(lambda: len(self.seen) >= count)


class ChangingTopology(topology_pb2_grpc.TopologyServicer):
    """Sends the placements that a test puts, each with the server itself as its only member."""

    def __init__(self) -> None:
        self.epochs: asyncio.Queue[int] = asyncio.Queue()
        self.address = ""

    async def Status(self, request: Any, context: Any) -> Any:
        """Nobody asks for it here."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)

    async def Watch(self, request: topology_pb2.WatchRequest, context: Any) -> AsyncIterator[topology_pb2.Placement]:
        while True:
            member = topology_pb2.Member(name="follow-0", address=self.address)
            yield topology_pb2.Placement(epoch=await self.epochs.get(), members=[member], points=16)


@asynccontextmanager
async def scripted_streams(
    topology: ChangingTopology | None = None, tls: grpc.ServerCredentials | None = None
) -> AsyncIterator[tuple[ScriptedStreams, str]]:
    """Such a server; its address."""
    scripted = ScriptedStreams()
    server = grpc.aio.server(handlers=[scripted])
    if topology is not None:
        topology_pb2_grpc.add_TopologyServicer_to_server(topology, server)
    own = "127.0.0.1:0"
    port = server.add_insecure_port(own) if tls is None else server.add_secure_port(own, tls)
    address = f"127.0.0.1:{port}"
    if topology is not None:
        topology.address = address
    await server.start()
    try:
        yield scripted, address
    finally:
        await server.stop(None)
