"""A client that may break gRPC's rules: headers and bytes as given, and what the server answers, as it came.

Over `onelane.wire.http2` and a blocking socket. It says of a whole exchange what a client can see: HTTP status,
headers, messages with their compressed flag, trailers, a reset, or the end of the connection.
"""

import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from onelane.wire.http2 import (
    Closed,
    DataReceived,
    GoAwayReceived,
    Http2,
    Limits,
    PingAcknowledged,
    ResponseReceived,
    StreamClosed,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from tests.bounds import BOUND_S

Headers = list[tuple[bytes, bytes]]


def request(path: bytes, *more: tuple[bytes, bytes], without: tuple[bytes, ...] = ()) -> Headers:
    """The headers of a call, with some of them changed (those in `more` that gRPC sends too) or left out."""
    usual = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"here",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    changed = {name: value for name, value in more if name in usual}
    headers = [(name, value) for name, value in (usual | changed).items() if name not in without]
    return [*headers, *(pair for pair in more if pair[0] not in usual)]


@dataclass
class Answer:
    """What came back for one stream."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None
    """The HTTP/2 error code of a stream that was reset."""
    is_over: bool = False
    has_gone: bool = False
    """The connection has ended, or will."""

    @property
    def status(self) -> bytes | None:
        """The grpc-status: in the trailers, or in the headers of a server that has sent nothing else."""
        return {**self.headers, **self.trailers}.get(b"grpc-status")

    @property
    def seen(self) -> str:
        """`HTTP status/grpc-status`, or how the exchange ended without one."""
        if self.headers:
            return f"{self.headers[b':status'].decode()}/{(self.status or b'-').decode()}"
        if self.has_gone:
            return "connection closed"
        return "nothing" if self.reset is None else f"reset {self.reset}"

    @property
    def messages(self) -> list[tuple[int, bytes]]:
        """Each message with its compressed flag."""
        frames, rest = [], self.body
        while rest:
            size = int.from_bytes(rest[1:5], "big")
            frames.append((rest[0], rest[5 : 5 + size]))
            rest = rest[5 + size :]
        return frames


class Exchange:
    """One request on a connection of its own, sent piece by piece: each piece is a DATA frame."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.answer = Answer()
        self._socket = socket.create_connection((host, int(port)), timeout=BOUND_S)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname=host)
        self._http2 = Http2(server=False, limits=Limits(max_metadata=64 * 1024))
        self._stream = 0
        self._unsent = b""
        self._is_echoed = True
        """The server has answered our last ping."""
        # The server's settings first, so that what is sent falls under them.
        self._pass()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def local_address(self) -> str:
        """Of this client, as gRPC writes a peer."""
        host, port = self._socket.getsockname()
        return f"ipv4:{host}:{port}"

    def open(self, headers: Headers, *, end: bool = False) -> None:
        self._stream = self._http2.send_request(headers, end_stream=end)
        self._unsent += self._http2.take()

    def put(self, piece: bytes, *, end: bool = False) -> None:
        """Add a frame to what the next `write` sends. Goes nowhere once the server has ended the stream."""
        with suppress(StreamEnded):
            self._http2.send_data(self._stream, piece, end_stream=end)
        # Taken at once: pieces that are queued together leave as one frame.
        self._unsent += self._http2.take()

    def write(self) -> None:
        """Send what has been put, in one piece."""
        unsent, self._unsent = self._unsent, b""
        self._socket.sendall(unsent + self._http2.take())

    def wait_handled(self) -> None:
        """Send what has been put, and wait until the server has handled it: it has answered a ping."""
        self._is_echoed = False
        self._http2.ping(b"handled?")
        while not (self._is_echoed or self.answer.has_gone):
            self._pass()

    def wait_headers(self) -> None:
        while not self.answer.headers and not self.answer.is_over:
            self._pass()

    def wait_answered(self) -> Answer:
        while not self.answer.is_over:
            self._pass()
        return self.answer

    def _pass(self) -> None:
        answer = self.answer
        try:
            self.write()
            data = self._socket.recv(65_536)
        except ConnectionError:
            data = b""
        others = take_answers(self._http2, data, {self._stream: answer})
        self._is_echoed = self._is_echoed or any(isinstance(event, PingAcknowledged) for event in others)


def take_answers(http2: Http2, data: bytes, answers: Mapping[int, Answer]) -> list[Any]:
    """Add to the answer of each stream what the server has sent, b"" for the end; returns the events of no stream."""
    others: list[Any] = []
    events = http2.receive(data)
    for event in events:
        answer = answers.get(getattr(event, "stream_id", 0), Answer())
        match event:
            case ResponseReceived():
                answer.headers = dict(event.headers)
                answer.is_over = event.end_stream
            case DataReceived():
                answer.body += event.data
                http2.acknowledge(len(event.data), event.stream_id)
                answer.is_over = event.end_stream
            case TrailersReceived():
                answer.trailers = dict(event.headers)
                answer.is_over = True
            case StreamReset():
                answer.reset = event.error_code
                answer.is_over = True
            case StreamClosed():
                answer.is_over = True
            case _:
                others.append(event)
    if not data or any(isinstance(event, Closed | GoAwayReceived) for event in others):
        for answer in answers.values():
            answer.has_gone = answer.is_over = True
    return others


def exchange(address: str, headers: Headers, *pieces: bytes, end: bool = True) -> Answer:
    """Send one request on a connection of its own, and take its answer to the end.

    end: the client has said its last word; else it waits for the server's.
    """
    with Exchange(address) as call:
        call.open(headers, end=end and not pieces)
        for number, piece in enumerate(pieces, start=1):
            call.put(piece, end=end and number == len(pieces))
        return call.wait_answered()
