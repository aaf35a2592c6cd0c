"""What a server wants to know of the headers of a request, looked at once."""

from collections.abc import Mapping

from onelane.wire import framing, header_size
from onelane.wire.framing import RESERVED, BadWire, HeaderTuple

LookedAt = tuple[HeaderTuple, dict[bytes, bytes], bytes, HeaderTuple, float | None, int, int]
"""Headers, the same by name, path, the application's metadata, timeout, bytes, and the HTTP status of a request that is
none of gRPC's: see `wire.server.Stream`."""


def look_at(headers: HeaderTuple) -> LookedAt:
    fields = dict(headers)
    refusal = 0
    content = fields.get(b"content-type", b"")
    if not content.startswith(b"application/grpc") or content.startswith(b"application/grpc-web"):
        refusal = 415
    elif fields.get(b":method") != b"POST":
        refusal = 405
    application: HeaderTuple = ()
    if not fields.keys() <= RESERVED:
        application = tuple(pair for pair in headers if pair[0] not in RESERVED)
    size = header_size.size_of(headers)
    return headers, fields, fields.get(b":path", b""), application, timeout_in(fields), size, refusal


def timeout_in(fields: Mapping[bytes, bytes]) -> float | None:
    """Seconds; None without one, below zero where it is malformed."""
    timeout = fields.get(b"grpc-timeout")
    if timeout is None:
        return None
    try:
        return framing.read_timeout(timeout)
    except BadWire:
        return -1.0
