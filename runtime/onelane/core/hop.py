"""What a shard tells the owner of a key about the client of a call that it forwards: its peer, certificate and proven
identity, the deadline, the trace.

Written as headers beside those of the client, which pass unchanged. They count between siblings alone: no client can
send them (`wire/framing.RESERVED`), and no handler sees them. Pure.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from onelane.core.identity import Identity, read_identity, write_identity
from onelane.core.trace_context import TRACESTATE, UNSAMPLED, TraceContext, parse_traceparent

HOP_MARK: Final = b"onelane-forwarded"
"""The mark of a forwarded call. Its value is the deadline, empty without one, a semicolon, and the epoch of the
placement by which the call is sent on."""
HOP_PEER = b"onelane-forwarded-peer"
HOP_AUTH = b"onelane-forwarded-auth"
HOP_IDENTITY = b"onelane-forwarded-identity"
HOP_TRACE = b"onelane-forwarded-trace"
WITHOUT_ID = b"-"
"""As HOP_TRACE: a trace that is not recorded and has no id yet. (To an older release it is none: that may sample.)"""
HOP_HEADERS = frozenset({HOP_MARK, HOP_PEER, HOP_AUTH, HOP_IDENTITY, HOP_TRACE})
SERVED: Final = "onelane-served"
"""Trailer by which the owner says that it has counted the call."""
_PRINTABLE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""What a header can carry as it is, beside letters and digits; the percent sign begins an escape."""
MAX_AUTH = 48 * 1024
"""Bytes of all properties of a client's identity, as they are sent; HPACK has fields of 64 KiB at most. Of a
certificate that is larger, the largest properties are left out: a handler then sees no identity, never a false one."""
MAX_CLIENTS = 1024
"""Clients whose identity is remembered, and not parsed again for each of their calls."""

AuthContext = Mapping[str, Iterable[bytes]]


class Hop(NamedTuple):
    """The client of a forwarded call, as the shard that it is connected to sees it."""

    peer: str
    auth: AuthContext
    deadline_at: float | None
    """By the monotonic clock, which all processes of a machine share: so the deadline is the same to the microsecond
    wherever the call is served, however long it waited for its owner. None without a deadline."""
    trace: TraceContext | None
    """Of the span of this hop; None where the client's own goes on."""
    identity: Identity | None = None
    """As the sender has proven it; None where its app asks for no credentials."""
    epoch: int = 0
    """Of the placement by which it was sent on."""


def write_client(peer: str, auth: AuthContext) -> list[tuple[bytes, bytes]]:
    """The headers that are the same for all calls of one connection of a client."""
    headers = [(HOP_PEER, quote(peer, safe=_PRINTABLE).encode())]
    properties = {name: [value.decode("latin-1") for value in values] for name, values in auth.items()}
    text = _write_auth(properties)
    while len(text) > MAX_AUTH:
        del properties[max(properties, key=lambda name: len(_write_auth({name: properties[name]})))]
        text = _write_auth(properties)
    if properties:
        headers.append((HOP_AUTH, text))
    return headers


def _write_auth(properties: Mapping[str, list[str]]) -> bytes:
    return quote(json.dumps(properties, separators=(",", ":")), safe=_PRINTABLE).encode()


def split(
    metadata: Iterable[tuple[str, str | bytes]], *, trusted: bool
) -> tuple[tuple[tuple[str, str | bytes], ...], Hop | None]:
    """The application's metadata, and the hop: for listeners that see headers as metadata. None where it is no
    forwarded call; a client's lie is left out.

    Raises:
        ValueError: the hop is malformed.
    """
    pairs = tuple(metadata)
    headers = {name.encode(): value.encode() for name, value in pairs if isinstance(value, str)}
    if headers.keys().isdisjoint(HOP_HEADERS):
        return pairs, None
    application = tuple(pair for pair in pairs if pair[0].encode() not in HOP_HEADERS)
    return application, read(headers) if trusted and HOP_MARK in headers else None


def write_proven(identity: Identity) -> tuple[bytes, bytes]:
    """The header by which the owner knows that the sender has checked the credentials of a call."""
    return (HOP_IDENTITY, write_identity(identity))


def write_call(deadline_at: float | None, trace: TraceContext | None, *, epoch: int) -> list[tuple[bytes, bytes]]:
    """The headers of one call. epoch: of the placement by which it is sent on."""
    headers = [(HOP_MARK, b";%d" % epoch if deadline_at is None else b"%.6f;%d" % (deadline_at, epoch))]
    if trace is not None:
        headers.append(write_trace(trace))
    return headers


def write_trace(trace: TraceContext) -> tuple[bytes, bytes]:
    """The header with the trace of the hop."""
    return (HOP_TRACE, trace.traceparent().encode() if trace.trace_id else WITHOUT_ID)


def read(headers: Mapping[bytes, bytes]) -> Hop:
    """The hop in the headers of a forwarded call: those with the name HOP_MARK, on a sibling's connection.

    Raises:
        ValueError: they are malformed.
    """
    deadline, _, epoch = headers[HOP_MARK].partition(b";")
    client = read_client(headers)
    return Hop(
        client.peer,
        client.auth,
        float(deadline) if deadline else None,
        read_trace(headers),
        client.identity,
        int(epoch),
    )


def read_client(headers: Mapping[bytes, bytes]) -> Hop:
    """The part of the hop that many calls of one client have in common: its peer, certificate and identity.

    Raises:
        ValueError: they are malformed.
    """
    identity = headers.get(HOP_IDENTITY)
    return Hop(
        _read_peer(headers.get(HOP_PEER, b"")),
        _read_auth(headers.get(HOP_AUTH, b"")),
        None,
        None,
        None if identity is None else read_identity(identity),
    )


def read_trace(headers: Mapping[bytes, bytes]) -> TraceContext | None:
    """The trace of the hop; None where the client's own goes on."""
    text = headers.get(HOP_TRACE)
    if text == WITHOUT_ID:
        return UNSAMPLED
    if not text:
        return None
    return parse_traceparent(text.decode(), headers.get(TRACESTATE.encode(), b"").decode("latin-1"))


@lru_cache(MAX_CLIENTS)
def _read_peer(text: bytes) -> str:
    return unquote(text.decode())


@lru_cache(MAX_CLIENTS)
def _read_auth(text: bytes) -> AuthContext:
    properties = json.loads(unquote(text.decode())) if text else {}
    return {name: [value.encode("latin-1") for value in values] for name, values in properties.items()}
