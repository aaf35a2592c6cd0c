"""What the OTLP sink and its exporter process tell each other: a batch, and what became of it, over a socket pair."""

import marshal
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from onelane.telemetry.histogram import Buckets, Exemplar
from onelane.telemetry.stats import Attributes, Instrument, Point

TRACES, METRICS, LOGS = "TRACES", "METRICS", "LOGS"
"""Signals, as OpenTelemetry's variables spell them."""
SENT, RETRY, FAILED = "sent", "again", "refused"


class ExportResult(NamedTuple):
    """What became of a batch."""

    what: str
    """`sent`, `again` or `refused`."""
    why: str = ""
    rejected: int = 0
    """Items of a batch that was sent which the collector did not take, or which could not be written."""


def write_frame(line: socket.socket, message: Any) -> None:
    """Send one message of plain values."""
    packed = marshal.dumps(message)
    line.sendall(len(packed).to_bytes(4, "big") + packed)


def read_frame(line: socket.socket) -> Any | None:
    """The next message, or None once the other side is gone."""
    head = _read_exactly(line, 4)
    packed = _read_exactly(line, int.from_bytes(head, "big")) if head else b""
    return marshal.loads(packed) if packed else None


def _read_exactly(line: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        try:
            more = line.recv(min(size - len(found), 1 << 20))
        except ConnectionError:
            return b""
        if not more:
            return b""
        found += more
    return bytes(found)


def pack_points(points: Sequence[Point]) -> bytes:
    """All series as bytes for another process of the same Python."""
    return marshal.dumps([_point_row(point) for point in points])


def unpack_points(packed: bytes) -> list[Point]:
    return [_point_of_row(*row) for row in marshal.loads(packed)]


def _point_row(point: Point) -> tuple[Any, ...]:
    value: Any = point.value
    if isinstance(value, Buckets):
        exemplars = [(one.value, one.trace_id, one.span_id, one.at_ns) for one in value.exemplars]
        value = (dict(value.counts), value.sum, value.zeros, value.scale, exemplars)
    of = point.instrument
    return (of.name, of.unit, of.description, point.kind, point.attributes, value)


def _point_of_row(name: str, unit: str, description: str, kind: str, attributes: Attributes, value: Any) -> Point:
    if kind == "histogram":
        counts, total, zeros, scale, exemplars = value
        value = Buckets(counts, total, zeros, scale, tuple(Exemplar(*one) for one in exemplars))
    return Point(Instrument(name, unit, description), kind, attributes, value)
