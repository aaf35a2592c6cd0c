"""Propagation: an outgoing call carries the trace, the chain of turns and the baggage of the call in progress, and a
deadline that only shrinks.

The one place that composes it, for each way out: stubs of other apps and calls to siblings (`outgoing`), each attempt
of a call that is hedged (`repeated`), and calls that are sent on to the owner of their key (`forwarded`). Pure.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from onelane.core.context import CallContext, earlier
from onelane.core.hop import write_call, write_trace
from onelane.core.trace_context import TRACEPARENT, TRACESTATE, TraceContext, trace_metadata
from onelane.core.turns import CHAIN
from onelane.wire.framing import Headers, HeaderTuple, Metadata, write_timeout
from onelane.wire.link_headers import OF_ONE_HOP

BAGGAGE: Final = "baggage"
PREVIOUS_ATTEMPTS: Final = "grpc-previous-rpc-attempts"
"""gRFC A6: how many attempts of the call were made before this one; absent in the first."""
_TRACE_HEADERS: Final = frozenset({TRACEPARENT, TRACESTATE})
_OF_EACH_REQUEST: Headers = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


class Forwardable(Protocol):
    """A call that is sent on to the owner of its key. See `onelane.server.call.Call`."""

    method: str

    @property
    def deadline_at(self) -> float | None:
        """By the monotonic clock; None without one."""

    def time_remaining(self) -> float | None:
        """Seconds until its deadline; None without one."""

    def client_headers(self) -> Iterable[Any]:
        """The headers that its client has sent: pairs of bytes. One that is secret to its sender is of another type
        than `tuple`; code that is compiled would lose it if these were said to be tuples."""

    def identity_headers(self) -> Headers:
        """Its client's peer and identity, see `core/hop.write_client`."""

    def headers_apart(self) -> tuple[HeaderTuple, Headers]:
        """All of them in two parts, see `wire/link_headers`."""


def outgoing(
    metadata: Metadata,
    timeout_s: float | None,
    *,
    context: CallContext | None,
    trace: TraceContext | None,
    baggage: str,
    now: Callable[[], float],
) -> tuple[Metadata, float | None]:
    """The metadata and the timeout of a call that is made in `context` with `metadata` and `timeout_s` of its caller.

    context: the call in progress; None outside of any. trace: takes the place of the caller's own. baggage: W3C, of
    the call in progress. now: the clock of `context.deadline_at`.
    """
    if trace is not None:
        if metadata:
            metadata = tuple(pair for pair in metadata if pair[0] not in _TRACE_HEADERS)
        metadata = (*metadata, *trace_metadata(trace))
    if baggage:
        metadata = (*metadata, (BAGGAGE, baggage))
    if context is None:
        return metadata, timeout_s
    if chain := context.outgoing_chain:
        metadata = (*metadata, (CHAIN, chain))
    deadline_at = context.deadline_at
    if deadline_at is not None:
        timeout_s = earlier(timeout_s, max(0.0, deadline_at - now()))
    return metadata, timeout_s


def repeated(metadata: Metadata, attempts: int) -> Metadata:
    """The metadata of another attempt of a call, after so many."""
    return (*metadata, (PREVIOUS_ATTEMPTS, str(attempts)))


def forwarded(call: Forwardable, trace: TraceContext | None, *, epoch: int) -> Headers:
    """The headers of a call that is sent on, unread, to the owner of its key.

    trace: of the span of this hop. epoch: of the placement by which it is sent on.
    """
    headers = [
        (b":path", call.method.encode()),
        *_OF_EACH_REQUEST,
        *(pair for pair in call.client_headers() if pair[0] not in OF_ONE_HOP),
        *call.identity_headers(),
        *write_call(call.deadline_at, trace, epoch=epoch),
    ]
    remaining_s = call.time_remaining()
    if remaining_s is not None:
        headers.append((b"grpc-timeout", write_timeout(remaining_s)))
    return headers


def forwarded_apart(call: Forwardable, trace: TraceContext | None) -> tuple[HeaderTuple, Headers]:
    """The headers of `forwarded` in two parts: those that many calls of a client have in common, and those of this call
    alone. Without the deadline and the epoch, and without a trace that has no id: the link has fields for them."""
    common, own = call.headers_apart()
    if trace is not None and trace.trace_id:
        own.append(write_trace(trace))
    return common, own


def write_common(common: HeaderTuple) -> Headers:
    """The headers that calls have in common, as their owner reads them."""
    return [*_OF_EACH_REQUEST, *common]
