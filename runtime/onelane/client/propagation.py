"""Propagation: an outgoing call carries the trace, the chain of turns and the baggage of the call in progress, and a
deadline that only shrinks.

The one place that composes it, for each way out: stubs of other apps and calls to siblings (`outgoing`), each attempt
of a call that is hedged (`repeated`), and calls that are sent on to the owner of their key (`forwarded`). Pure.
"""

from collections.abc import Callable

from onelane.core.context import CallContext, earlier
from onelane.core.trace_context import TRACEPARENT, TRACESTATE, TraceContext, trace_metadata
from onelane.core.turns import CHAIN
from onelane.wire.framing import Metadata

BAGGAGE = "baggage"
PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"
"""gRFC A6: how many attempts of the call were made before this one; absent in the first."""
HOP_HEADER = "onelane-hop"
"""A sibling has sent the call on; counts on a sibling's connection alone."""
_TRACE_HEADERS = frozenset({TRACEPARENT, TRACESTATE})
_OF_ONE_HOP = frozenset({"user-agent", TRACEPARENT, TRACESTATE, "te", "content-type", HOP_HEADER})
"""Metadata that a forwarded call does not take along, beside those that begin with `grpc-`."""


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


def forwarded(metadata: Metadata, trace: TraceContext | None) -> Metadata:
    """The metadata of a call that is sent on, unread, to the owner of its key.

    metadata: the call's own; chain and baggage are among them. trace: of the span of this hop.
    """
    end_to_end = (pair for pair in metadata if pair[0] not in _OF_ONE_HOP and not pair[0].startswith("grpc-"))
    return (*end_to_end, *trace_metadata(trace), (HOP_HEADER, "1"))
