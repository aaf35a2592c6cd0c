"""The line between a supervisor and one shard: whole messages, in order, until one side is gone.

Over a socket pair between processes, over two queues where both live in one.
"""

import asyncio
import socket
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from onelane.placement import Member, Placement
from onelane.spans import SpanRecord, TraceContext
from onelane.stats import Buckets, Instrument, Point, attributes_of
from onelane.v1 import control_pb2

In = TypeVar("In", bound=Message)


class Control(Protocol):
    """One end of the line. Promised: order, and that a message arrives whole or not at all."""

    async def send(self, message: Any) -> None:
        """Send one message; dropped where the other side is gone."""

    async def receive(self) -> Any | None:
        """The next message, or None once the other side is gone."""

    def close(self) -> None:
        """Hang up."""


class SocketControl(Generic[In]):
    """See `Control`: frames of a 4-byte big-endian length and a protobuf message."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: type[In]) -> None:
        self._reader = reader
        self._writer = writer
        self._kind = kind

    @classmethod
    async def over(cls, sock: socket.socket, kind: type[In]) -> "SocketControl[In]":
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, kind)

    async def send(self, message: Message) -> None:
        data = message.SerializeToString()
        try:
            self._writer.write(len(data).to_bytes(4, "big") + data)
            await self._writer.drain()
        except (ConnectionError, RuntimeError):
            return

    async def receive(self) -> In | None:
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            data = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        message = self._kind()
        message.ParseFromString(data)
        return message

    def close(self) -> None:
        self._writer.close()


class QueueControl:
    """See `Control`: one end of two queues."""

    def __init__(self, inbox: asyncio.Queue[Any], outbox: asyncio.Queue[Any]) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._closed = False

    @classmethod
    def pair(cls) -> tuple["QueueControl", "QueueControl"]:
        one: asyncio.Queue[Any] = asyncio.Queue()
        other: asyncio.Queue[Any] = asyncio.Queue()
        return cls(one, other), cls(other, one)

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
    members = [control_pb2.ShardMember(name=m.name, address=m.address, socket=m.socket) for m in placement.members]
    return control_pb2.ShardPlacement(
        epoch=placement.epoch, members=members, points=placement.points, pins=dict(placement.pins)
    )


def placement_from_proto(message: control_pb2.ShardPlacement) -> Placement:
    members = tuple(Member(m.name, m.address, m.socket) for m in message.members)
    return Placement(message.epoch, members, message.points, dict(message.pins))


def point_to_proto(point: Point) -> control_pb2.Point:
    made = control_pb2.Point(
        name=point.instrument.name,
        unit=point.instrument.unit,
        description=point.instrument.description,
        attributes=dict(point.attributes),
    )
    if isinstance(point.value, Buckets):
        made.histogram.CopyFrom(
            control_pb2.Buckets(bounds=point.value.bounds, counts=point.value.counts, sum=point.value.sum)
        )
    elif point.kind == "gauge":
        made.gauge = point.value
    else:
        made.count = point.value
    return made


def point_from_proto(message: control_pb2.Point) -> Point:
    instrument = Instrument(message.name, message.unit, message.description)
    attributes = attributes_of(dict(message.attributes))
    match message.WhichOneof("value"):
        case "histogram":
            there = message.histogram
            return Point(
                instrument, "histogram", attributes, Buckets(tuple(there.bounds), tuple(there.counts), there.sum)
            )
        case "gauge":
            return Point(instrument, "gauge", attributes, message.gauge)
        case _:
            return Point(instrument, "count", attributes, message.count)


def span_to_proto(span: SpanRecord) -> control_pb2.Span:
    return control_pb2.Span(
        trace_id=bytes.fromhex(span.context.trace_id),
        span_id=bytes.fromhex(span.context.span_id),
        parent_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=span.kind,
        start_ns=span.start_ns,
        end_ns=span.end_ns,
        attributes=span.attributes,
        error=span.error,
        remote_parent=span.remote_parent,
        tracestate=span.context.tracestate,
    )


def span_from_proto(message: control_pb2.Span) -> SpanRecord:
    return SpanRecord(
        TraceContext(message.trace_id.hex(), message.span_id.hex(), True, message.tracestate),
        message.parent_id.hex(),
        message.name,
        message.kind,
        message.start_ns,
        message.end_ns,
        dict(message.attributes),
        message.error,
        message.remote_parent,
    )
