"""The least that a call can cost here: one asyncio Protocol on ngh2, which parses the message and answers.

Leaves out all that makes a server: routing, deadlines, statistics, messages in pieces, back-pressure.
"""

import asyncio

from ngh2 import Connection
from ngh2.config import Role
from ngh2.events import DataReceived

from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK = [(b"grpc-status", b"0")]


class Probe(asyncio.Protocol):
    """Small whole messages only."""

    def __init__(self) -> None:
        self.http2 = Connection(Role.SERVER)
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.http2.initiate_connection()
        self.transport.write(self.http2.data_to_send())

    def data_received(self, data: bytes) -> None:
        http2 = self.http2
        http2.receive_data(data)
        for event in http2.events():
            if type(event) is DataReceived and event.data:
                request = EchoRequest.FromString(event.data[5:])
                answer = EchoReply(text=request.text, shard="probe", seen=1).SerializeToString()
                http2.send_response(event.stream_id, RESPONSE)
                http2.send_data(event.stream_id, b"\0" + len(answer).to_bytes(4, "big") + answer)
                http2.send_trailers(event.stream_id, OK)
        self.transport.write(http2.data_to_send())
