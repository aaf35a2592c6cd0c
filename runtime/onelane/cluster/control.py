"""The line between a supervisor and one shard: whole messages, in order, until one side is gone.

gRPC on our own wire over a socket pair between processes, two queues where both live in one.
"""

import asyncio
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.message import Message

from onelane.core.placement import Member, Placement
from onelane.v1 import control_pb2
from onelane.wire import client, server
from onelane.wire.client import ClientConnection
from onelane.wire.driver import WireProtocol
from onelane.wire.framing import frame
from onelane.wire.http2 import Limits
from onelane.wire.server import ServerConnection

if TYPE_CHECKING:
    from onelane.core.lease import Fence
    from onelane.core.machine_links import MachineLinks

MAX_MESSAGE = 2**31 - 1
ATTEND = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/onelane.v1.Control/Attend"),
    (b":authority", b"supervisor"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


class Control(Protocol):
    """One end of the line. Promised: order, and that a message arrives whole or not at all."""

    async def send(self, message: Any) -> None:
        """Send one message; dropped where the other side is gone."""

    async def receive(self) -> Any | None:
        """The next message, or None once the other side is gone."""

    def close(self) -> None:
        """Hang up."""


class WireControl(WireProtocol[Any]):
    """See `Control`: one gRPC call on our own wire, `/onelane.v1.Control/Attend`, streaming both ways.

    The shard calls, the supervisor serves. A side that does not read holds the other back, by HTTP/2's windows.
    """

    max_queued = 1024 * 1024
    max_piece = max_events = sys.maxsize
    """Whatever has come is handled at once: the other end is ours, and its last words may come just before its end."""

    def __init__(self, kind: type[Message], *, serves: bool) -> None:
        wire = ServerConnection(Limits(), max_message=MAX_MESSAGE) if serves else ClientConnection(Limits())
        super().__init__(wire, asyncio.get_running_loop())
        self._kind = kind
        self._serves = serves
        self._stream: Any = None
        self._inbox: deque[bytes] = deque()
        self._gone = False
        self._changed = self._loop.create_future()

    @classmethod
    async def over(cls, sock: socket.socket, kind: type[Message], *, serves: bool) -> "WireControl":
        """One end over a connected socket. kind: of the messages that come; serves: this is the supervisor's end."""
        line = cls(kind, serves=serves)
        try:
            await line._loop.create_unix_connection(lambda: line, sock=sock)
        except BaseException:
            line.connect_failed()
            raise
        return line

    async def send(self, message: Message) -> None:
        framed = frame(message.SerializeToString())
        while self._stream is None and not self._gone:
            await self._change()
        if not self._gone:
            self.wire.send_message(self._stream, framed)
            self.flush()
            await self.wait_room(self._stream.id)

    async def receive(self) -> Any | None:
        while not self._inbox:
            if self._gone:
                return None
            await self._change()
        message = self._kind()
        message.ParseFromString(self._inbox.popleft())
        if not self._inbox and not self._gone:
            self.wire.consumed(self._stream)
            self.flush()
        return message

    def close(self) -> None:
        self.transport.close()

    # Events of the wire

    def connected(self) -> None:
        if not self._serves:
            self._stream = self.wire.open(ATTEND, None, limit=MAX_MESSAGE)
        self.flush()

    def handle(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case server.Opened(stream):
                    self._stream = stream
                case server.Messages(_, messages) | client.Messages(_, messages):
                    self._inbox += messages
                case (
                    server.Ended()
                    | server.Broken()
                    | server.ConnectionLost()
                    | client.Finished()
                    | client.ConnectionLost()
                ):
                    self._gone = True
        self._announce_change()

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        self.wake()
        self._announce_change()

    async def _change(self) -> None:
        await asyncio.shield(self._changed)

    def _announce_change(self) -> None:
        changed, self._changed = self._changed, self._loop.create_future()
        changed.set_result(None)


class QueueControl:
    """See `Control`: one end of two queues."""

    def __init__(self, inbox: asyncio.Queue[Any], outbox: asyncio.Queue[Any]) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._closed = False

    @classmethod
    def pair(cls) -> tuple["QueueControl", "QueueControl"]:
        to_shard: asyncio.Queue[Any] = asyncio.Queue()
        to_supervisor: asyncio.Queue[Any] = asyncio.Queue()
        return cls(to_shard, to_supervisor), cls(to_supervisor, to_shard)

    async def send(self, message: Any) -> None:
        self._outbox.put_nowait(message)

    async def receive(self) -> Any | None:
        return None if self._closed else await self._inbox.get()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outbox.put_nowait(None)


# Values to messages and back.


def placement_to_proto(placement: Placement) -> control_pb2.ShardPlacement:
    members = [member_to_proto(member) for member in placement.members]
    return control_pb2.ShardPlacement(
        epoch=placement.epoch, members=members, points=placement.points, pins=dict(placement.pins)
    )


def placement_from_proto(message: control_pb2.ShardPlacement) -> Placement:
    members = tuple(map(member_from_proto, message.members))
    return Placement(message.epoch, members, message.points, dict(message.pins))


def member_to_proto(member: Member) -> control_pb2.ShardMember:
    return control_pb2.ShardMember(name=member.name, address=member.address, socket=member.socket, life=member.life)


def member_from_proto(message: control_pb2.ShardMember) -> Member:
    return Member(message.name, message.address, message.socket, message.life)


def fence_to_proto(fence: "Fence") -> control_pb2.Fence:
    return control_pb2.Fence(lease_id=fence.lease_id, until=fence.until)


def fence_from_proto(message: control_pb2.Fence) -> "Fence":
    # Only with a cluster.
    from onelane.core.lease import Fence

    return Fence(message.lease_id, message.until)


def links_to_proto(links: "MachineLinks") -> control_pb2.MachineLinks:
    message = control_pb2.MachineLinks(cluster=links.cluster, machine=links.machine, insecure=links.files is None)
    if links.files is not None:
        message.ca, message.cert, message.key = links.files.ca, links.files.cert, links.files.key
    return message


def links_from_proto(message: control_pb2.MachineLinks) -> "MachineLinks":
    # Only with a cluster.
    from onelane.core.machine_links import LinkFiles, MachineLinks

    files = None if message.insecure else LinkFiles(message.ca, message.cert, message.key)
    return MachineLinks(message.cluster, message.machine, files)
