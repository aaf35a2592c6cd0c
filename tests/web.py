"""Requests of browsers and of curl, over HTTP/1.1 and over HTTP/2 alike."""

import http.client
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onelane.wire.http2 import DataReceived, Http2, Limits, ResponseReceived, StreamClosed

from tests.running_app import ECHO

BOUND_S = 20.0
ECHO_APP = f"""
[apps.echo]
{ECHO}
listen = "127.0.0.1:0"
shards = 2
max_message_bytes = 65536
pins = {{ home = 0, away = 1 }}
"""
"""The settings of an app for these requests: of its two shards, each owns one key by name."""
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Send = Callable[..., Response]


def by_http1(
    address: str, path: str, body: bytes = b"", *, method: str = "POST", headers: Mapping[str, str] = JSON
) -> Response:
    connection = http.client.HTTPConnection(address, timeout=BOUND_S)
    try:
        connection.request(method, path, body if method == "POST" else None, dict(headers))
        answer = connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, fields, answer.read())
    finally:
        connection.close()


def by_http2(
    address: str, path: str, body: bytes = b"", *, method: str = "POST", headers: Mapping[str, str] = JSON
) -> Response:
    session = Http2(server=False, limits=Limits())
    fields = {":method": method, ":scheme": "http", ":path": path, ":authority": address} | dict(headers)
    number = session.send_request([(n.encode(), v.encode()) for n, v in fields.items()], end_stream=method != "POST")
    if method == "POST":
        session.send_data(number, body, end_stream=True)
    answer: dict[str, str] = {}
    received = bytearray()
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=BOUND_S) as connection:
        is_closed = False
        while not is_closed:
            connection.sendall(session.take())
            data = connection.recv(65536)
            assert data, "the connection has ended before the answer"
            for event in session.receive(data):
                if isinstance(event, ResponseReceived):
                    answer = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, DataReceived):
                    received += event.data
                    session.acknowledge(len(event.data), number)
                is_closed = is_closed or isinstance(event, StreamClosed)
    return Response(int(answer.pop(":status")), answer, bytes(received))


SENDERS = {"HTTP/1.1": by_http1, "HTTP/2": by_http2}
