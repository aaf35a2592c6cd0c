"""A stateful service: rooms, each with its talk and its members, and statistics of them all.

`Rooms` is the lane's: plain dicts. diamond.py has the same for many threads.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import onelane

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

KEPT = 20
"""Messages that a room remembers."""


@dataclass(slots=True)
class Room:
    talk: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    lines: int = 0

    def say(self, text: str) -> None:
        self.talk.append(text)
        self.lines += 1


class Rooms(echo_pb2_grpc.EchoServicer):
    """`Plain` says something in the room `key`, and is told how much was said there."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.rooms: dict[str, Room] = shard.keyed("rooms", Room, moves=False)
        self.calls = shard.stats.counter("rooms.calls", unit="{call}").at()
        self.bytes = shard.stats.counter("rooms.bytes", unit="By").at()

    def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        room = self.rooms.setdefault(request.key, Room())
        room.say(request.text)
        self.calls.add()
        self.bytes.add(len(request.text))
        return EchoReply(text=room.talk[0], shard="rooms", seen=room.lines)
