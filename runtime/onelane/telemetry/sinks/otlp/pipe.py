"""The protocol between the OTLP sink and its exporter process: length-prefixed frames over a socket pair.

The sink writes a frame with a batch, the exporter answers each with an `ExportResult`.
"""

import marshal
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from onelane.telemetry.histogram import Buckets, Exemplar
from onelane.telemetry.stats import Attributes, Instrument, Point

TRACES, METRICS, LOGS = "TRACES", "METRICS", "LOGS"
"""Signals, as OpenTelemetry's variables spell them."""
SENT, RETRY, FAILED = "sent", "retry", "failed"
"""Statuses of an export: taken by the collector, to be sent again, or never to be taken."""


class ExportResult(NamedTuple):
    """The answer of the exporter process to one batch."""

    status: str
    """`SENT`, `RETRY` or `FAILED`."""
    reason: str = ""
    rejected: int = 0
    """Items of a sent batch that the collector rejected, or that could not be encoded."""


def write_frame(sock: socket.socket, message: Any) -> None:
    """Send one message of built-in types."""
    packed = marshal.dumps(message)
    sock.sendall(len(packed).to_bytes(4, "big") + packed)


def read_frame(sock: socket.socket) -> Any | None:
    """The next message, or None once the peer has closed."""
    head = _read_exactly(sock, 4)
    packed = _read_exactly(sock, int.from_bytes(head, "big")) if head else b""
    return marshal.loads(packed) if packed else None


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, or none where the peer closed before."""
    received = bytearray()
    while len(received) < size:
        try:
            data = sock.recv(min(size - len(received), 1 << 20))
        except ConnectionError:
            return b""
        if not data:
            return b""
        received += data
    return bytes(received)


def pack_points(points: Sequence[Point]) -> bytes:
    """All series as bytes for another process of the same Python."""
    return marshal.dumps([_point_row(point) for point in points])


def unpack_points(packed: bytes) -> list[Point]:
    return [_point_of_row(*row) for row in marshal.loads(packed)]


def _point_row(point: Point) -> tuple[Any, ...]:
    value: Any = point.value
    if isinstance(value, Buckets):
        exemplars = [(e.value, e.trace_id, e.span_id, e.at_ns) for e in value.exemplars]
        value = (dict(value.counts), value.sum, value.zeros, value.scale, exemplars)
    instrument = point.instrument
    return (instrument.name, instrument.unit, instrument.description, point.kind, point.attributes, value)


def _point_of_row(name: str, unit: str, description: str, kind: str, attributes: Attributes, value: Any) -> Point:
    if kind == "histogram":
        counts, total, zeros, scale, exemplars = value
        value = Buckets(counts, total, zeros, scale, tuple(Exemplar(*fields) for fields in exemplars))
    return Point(Instrument(name, unit, description), kind, attributes, value)
