"""The article's diamond: the service of rooms.py on a threaded `grpc.server`, with the locks that it then needs.

Many threads in, one guarded thing in the middle, many threads out.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import grpc

from tests.bench.rooms import Room
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

WORKERS = 10


class LockedRooms(echo_pb2_grpc.EchoServicer):
    """One lock for the dict, one for each room, one for the statistics."""

    def __init__(self) -> None:
        self.rooms: dict[str, tuple[Lock, Room]] = {}
        self.rooms_lock = Lock()
        self.calls = 0
        self.bytes = 0
        self.stats_lock = Lock()

    def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        with self.rooms_lock:
            lock, room = self.rooms.setdefault(request.key, (Lock(), Room()))
        with lock:
            room.say(request.text)
            answer = EchoReply(text=room.talk[0], shard="rooms", seen=room.lines)
        with self.stats_lock:
            self.calls += 1
            self.bytes += len(request.text)
        return answer


def start() -> tuple[int, grpc.Server]:
    """The server, and its port."""
    server = grpc.server(ThreadPoolExecutor(WORKERS), options=[("grpc.so_reuseport", 0)])
    echo_pb2_grpc.add_EchoServicer_to_server(LockedRooms(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return port, server
