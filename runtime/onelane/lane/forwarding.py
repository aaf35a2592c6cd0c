"""Forwarding of a call that another shard owns: sent there once.

Promises: every forwarded call ends, once; it is counted by the shard that served it. A call of one message and one
answer has no task here; a stream is carried by the task of its call. Where the owner has changed meanwhile, the
receiver knows: it sends the call on, or waits for the placement by which it was sent (`routing`).
"""

from collections.abc import Callable
from functools import partial

import grpc

from onelane.core.hop import SERVED
from onelane.core.placement import Member
from onelane.lane.forwarder import Forwarder
from onelane.lane.method_entry import Entry
from onelane.lane.routing import Router
from onelane.lane.unary_forward import NOT_HOME, take_marker
from onelane.server.call import AWAY, Call
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Span, Tracer, context_of


class Forwarding:
    """See the module. Owned by one lane, which hands in how a call ends."""

    def __init__(
        self,
        forwarder: Forwarder,
        router: Router,
        *,
        stats: Stats,
        tracer: Tracer,
        end: Callable[[Entry, Call, bytes], None],
    ) -> None:
        """end: counts and answers a call."""
        self._forwarder = forwarder
        self._router = router
        self._tracer = tracer
        self._end = end
        self.streams: set[Call] = set()
        """Calls with a stream of answers that are sent on now."""
        self._forwards = stats.counter("onelane.forwards", unit="{call}", description="Calls sent on to the owner").at()

    def give_up(self, owner: Member) -> None:
        """Its lane does not tick any more: end the calls that were forwarded to it, with UNAVAILABLE."""
        self._forwarder.give_up(owner)

    def send(self, owner: Member, entry: Entry, call: Call, request: bytes, *, by_last_placement: bool = False) -> None:
        """Forward a call of one message and one answer, without a task; `_answered` goes on. by_last_placement: its
        owner may send it on again, by the placement of now."""
        self._forwards.add()
        span = self._tracer.start(entry.method.name, "CLIENT", call.parent, remote=True)
        call.state = call.state.forward
        done = partial(self._answered, entry, call, span)
        epoch = self._router.placement.epoch - by_last_placement
        try:
            self._forwarder.begin(owner, call, request, context_of(span), done, epoch=epoch)
        except BaseException:
            self._end_span(span, grpc.StatusCode.INTERNAL)
            raise

    async def stream(self, owner: Member, entry: Entry, call: Call, request: bytes | None) -> bytes:
        """Forward a call with a stream in it; its reply, where that is one message. request: None where the client
        streams."""
        method = entry.method
        self._forwards.add()
        span = self._tracer.start(method.name, "CLIENT", call.parent, remote=True)
        if method.response_streaming:
            self.streams.add(call)
        try:
            return await self._forwarder.stream(
                owner,
                call,
                request,
                context_of(span),
                streams_response=method.response_streaming,
                epoch=self._router.placement.epoch,
            )
        finally:
            self.streams.discard(call)
            self._end_hop(call, span)

    def _answered(self, entry: Entry, call: Call, span: Span, reply: bytes) -> None:
        """The outcome that the owner gave stands in the call."""
        call.cancel_forward = None
        self._end_hop(call, span)
        self._end(entry, call, reply)

    def _end_hop(self, call: Call, span: Span) -> None:
        if isinstance(span, SpanRecord):
            self._end_span(span, call.code_now)
        if not call.trailers:
            return
        take_marker(call, NOT_HOME)
        if (server := take_marker(call, SERVED)) is not None:
            # Counted by the shard that served it.
            call.hop = AWAY
            if call.trusted:
                # So the sibling that has sent it here does not count it either.
                call.trailers = (*call.trailers, (SERVED, server))

    def _end_span(self, span: Span, code: grpc.StatusCode) -> None:
        self._tracer.end_call(span, status=code.name, hop="forwarded", server=False)
