"""One method of a stub on a ring channel: the key, span, deadline and policy of each of its calls, and its attempts."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import monotonic, perf_counter, time_ns
from typing import Any

import grpc
import grpc.aio
from mypy_extensions import mypyc_attr

from onelane.client.call import OK, ClientCall
from onelane.client.channel import NativeChannel
from onelane.client.hedging import HedgedCall
from onelane.client.peer import Peer
from onelane.client.propagation import PREVIOUS_ATTEMPTS, outgoing, repeated
from onelane.client.reopening import FOLLOW, Reopening, Streams, passing_marks
from onelane.client.retry import IDEMPOTENT, NO_SIDE_EFFECTS, policy_of, pushback_s, retry_after_s
from onelane.client.ring_router import RingRouter
from onelane.core import keys
from onelane.core.call_ids import IDEMPOTENCY_KEY, has_id
from onelane.core.context import current_baggage, current_call, current_trace, earlier, seconds_of
from onelane.core.keys import AnyShard, FieldKey, MetadataKey
from onelane.core.moved import moved_epoch
from onelane.core.placement import Placement
from onelane.errors import BadKey
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import HistogramSeries
from onelane.telemetry.tracer import CLIENT_SUCCESSES, ERROR, METHOD, STATUS, SYSTEM, Span, context_of
from onelane.wire.framing import Headers, Metadata, pairs_of

IDEMPOTENCY_LEVELS = {0: "", 1: NO_SIDE_EFFECTS, 2: IDEMPOTENT}
"""google.protobuf.MethodOptions.IdempotencyLevel."""
ID_BYTES = 16
"""Of the random id of a call."""


@mypyc_attr(allow_interpreted_subclasses=True)
class RingMethod:
    """A multi-callable of `grpc.aio` whose calls go to the owner of their key. Owned by its channel."""

    def __init__(
        self,
        peer: Peer,
        router: RingRouter,
        shape: str,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
        *,
        compression: grpc.Compression | None = None,
        streams: Streams = FOLLOW,
    ) -> None:
        """shape: `unary_unary`, `unary_stream`, `stream_unary`, `stream_stream`. method: `/pkg.Service/Method`.
        compression: of calls that say nothing else."""
        if streams.marks and shape == "unary_stream":
            response_deserializer = passing_marks(response_deserializer)
        self._peer = peer
        self._router = router
        self._shape = shape
        self._method = method
        self._compression = compression
        self._serializers = (request_serializer, response_deserializer)
        self._senders: dict[NativeChannel, Any] = {}
        """Channel → its multi-callable of this method."""
        self._durations: dict[str, HistogramSeries] = {}
        """Status → the durations of calls that ended with it."""
        self._rule: FieldKey | MetadataKey | None = None
        self._placement: Placement | None = None
        """The one that the method follows: with the next its key may be configured anew."""
        self._has_default_deadline = shape.endswith("_unary")
        descriptor = keys.describe(method)
        level = IDEMPOTENCY_LEVELS[descriptor.GetOptions().idempotency_level] if descriptor is not None else ""
        self._level = level
        self._sends_ids = shape == "unary_unary" and level != NO_SIDE_EFFECTS
        """Its calls carry an id, by which they run once; while the topology is not known, those inside a call that has
        one."""
        self._policy = policy_of(method[1:], level, peer.service_config)
        if shape != "unary_unary":
            # gRFC A6 would repeat a stream before its first response; here only its caller repeats a stream.
            self._policy = replace(self._policy, attempts=1, hedge_after_s=None)
        self._marks = streams.marks
        self._reopens = shape == "unary_stream" and streams.reopens(level)
        self._is_plain = self._policy.hedge_after_s is None and not self._reopens

    def __call__(
        self,
        request: Any = None,
        timeout: Any = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: Any = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        if self._placement is not self._router.placement:
            self._follow_topology()
        peer, policy = self._peer, self._policy
        if peer.in_flight >= peer.service_config.max_in_flight:
            return self._refuse()
        metadata = pairs_of(metadata) if metadata else ()
        key = keys.header_of(metadata)
        if key is None and (key := self._read_key(request, metadata)) is not None:
            metadata = (*metadata, (keys.HEADER, key))
        if self._sends_ids and not has_id(metadata):
            metadata = self._with_id(metadata)
        if timeout is not None and type(timeout) is not float:
            timeout = seconds_of(timeout)
        span = self._start_span()
        began = perf_counter()
        metadata, timeout = outgoing(
            metadata,
            earlier(timeout, policy.timeout_s),
            context=current_call(),
            trace=context_of(span),
            baggage=current_baggage(),
            now=monotonic,
        )
        if timeout is None and self._has_default_deadline:
            timeout = peer.deadline_s
        arguments: dict[str, Any] = {
            "timeout": timeout,
            "metadata": metadata,
            "credentials": credentials,
            "wait_for_ready": policy.wait_for_ready if wait_for_ready is None else wait_for_ready,
            "compression": self._compression if compression is None else compression,
        }
        if self._is_plain:
            return self._attempt(request, arguments, key, span, began, 0)
        if self._reopens:
            return self._follow(request, arguments, key, span, began)
        return self._hedge(request, arguments, key, span, began)

    # Attempts

    def _attempt(
        self, request: Any, arguments: dict[str, Any], key: str | None, span: Span, began: float, number: int
    ) -> ClientCall:
        """Send the call. number: of the attempt, from 0."""
        channel, health = self._router.pick(key, number)
        try:
            call: ClientCall = self._sender(channel)(request, **arguments)
        except BaseException as error:
            # The request cannot be serialized, or the metadata not be sent; or the channel closes.
            if health is not None:
                health.abandoned()
            if not number and self._peer.tracer is not None:
                self._peer.tracer.end(span, error=type(error).__qualname__)
            raise
        call.peer_name, call.endpoint_health = self._peer.name, health
        self._peer.in_flight += 1
        if self._policy.attempts > 1 and self._policy.hedge_after_s is None:
            call.retry = partial(self._retry, key, span)
        call.when_ended(partial(self._ended, span, began))
        return call

    def _sender(self, channel: NativeChannel) -> Any:
        sender = self._senders.get(channel)
        if sender is None:
            if len(self._senders) > len(self._router.endpoints):
                # Some are of shards that have left the app.
                self._senders.clear()
            sender = self._senders[channel] = getattr(channel, self._shape)(self._method, *self._serializers)
            if self._peer.before_sending is not None:
                sender.hold_back(self._peer.before_sending)
        return sender

    def _follow(self, request: Any, arguments: dict[str, Any], key: str | None, span: Span, began: float) -> ClientCall:
        """Send a call whose stream is opened again where its key moves."""
        call = self._attempt(request, arguments, key, span, began, 0)
        if call.status is None:
            call.retry = Reopening(
                self, self._router, self._peer, call,
                key=key, span=span, credentials=arguments["credentials"], marks=self._marks,
            )  # fmt: skip
            call.when_ended(partial(self._stopped_following, span, began))
        return call

    def _stopped_following(self, span: Span, began: float, call: ClientCall) -> None:
        self._router.between_attempts.discard(call.outgoing)
        self._ended(span, began, call)

    # For its streams that are opened again, see `reopening.FollowedMethod`

    def sender_for(self, call: ClientCall, key: str | None) -> Any:
        channel, call.endpoint_health = self._router.pick(key)
        return self._sender(channel)

    def renewed(self, headers: Headers) -> Headers:
        return headers

    def stream_ended(self, call: ClientCall, code: str, span: Span, *, has_moved: bool) -> None:
        if not has_moved:
            self._record_attempt_end(call, code, span)
        elif call.endpoint_health is not None:
            call.endpoint_health.abandoned()
            call.endpoint_health = None

    def reopens(self, span: Span, epoch: int, after_s: float) -> None:
        self._record_decision("reopenings", "moved", span, {"epoch": epoch, "after_s": round(after_s, 4)})

    def _hedge(self, request: Any, arguments: dict[str, Any], key: str | None, span: Span, began: float) -> HedgedCall:
        timeout = arguments["timeout"]
        deadline_at = None if timeout is None else monotonic() + timeout
        attempt = partial(self._hedged_attempt, request, arguments, key, span, began, deadline_at)
        hedged = HedgedCall(
            attempt, self._unsent, self._policy, self._peer.budget, deadline_at, self._router.between_attempts
        )
        hedged.add_done_callback(partial(self._record_end, span, began))
        return hedged

    def _hedged_attempt(
        self,
        request: Any,
        arguments: dict[str, Any],
        key: str | None,
        span: Span,
        began: float,
        deadline_at: float | None,
        number: int,
    ) -> ClientCall:
        if number:
            self._record_decision("hedges", "late", span, {"attempt": number + 1})
            arguments = arguments | {
                "timeout": None if deadline_at is None else max(0.0, deadline_at - monotonic()),
                "metadata": repeated(arguments["metadata"], number),
            }
        return self._attempt(request, arguments, key, span, began, number)

    def _retry(self, key: str | None, span: Span, call: ClientCall, code: grpc.StatusCode, trailers: Any) -> bool:
        """Schedule another attempt of a call that failed, where that is safe and in time; whether there is one."""
        peer = self._peer
        wait_s = retry_after_s(self._policy, call.retries + 1, code.name, pushback_s(trailers), peer.budget, peer.rng)
        remaining_s = call.time_remaining()
        if wait_s is None or (remaining_s is not None and wait_s >= remaining_s):
            return False
        call.retries += 1
        self._record_attempt_end(call, code.name, span)
        call.reset_attempt()
        self._record_decision("retries", code.name, span, {"attempt": call.retries + 1, "after_s": round(wait_s, 4)})
        self._router.between_attempts.add(call)
        asyncio.get_running_loop().call_later(wait_s, self._send_again, key, call)
        return True

    def _send_again(self, key: str | None, call: ClientCall) -> None:
        self._router.between_attempts.discard(call)
        if call.status is None:
            channel, call.endpoint_health = self._router.pick(key, call.retries)
            call.start_attempt(channel.subchannel, PREVIOUS_ATTEMPTS.encode())

    def _unsent(self) -> ClientCall:
        return self._router.shared.unsent(self._shape, self._serializers[1])

    def _refuse(self) -> ClientCall:
        """A call that ends before it is sent: too many are under way."""
        peer = self._peer
        span = None if peer.tracer is None else peer.tracer.start(self._method[1:], "CLIENT", current_trace())
        self._record_decision("refusals", "in_flight", span, {})
        call = self._unsent()
        call.when_ended(partial(self._record_end, span, perf_counter()))
        most = peer.service_config.max_in_flight
        call.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{most} calls to {peer.name} are under way already")
        return call

    def _follow_topology(self) -> None:
        """Take what the newest topology says of the method: its key, and whether its calls run once for each id."""
        self._placement = self._router.placement
        rule = keys.rule_for(self._method, keys.describe(self._method), self._router.configured_keys)
        is_hidden = isinstance(rule, FieldKey) and self._shape.startswith("stream_")
        self._rule = None if is_hidden or isinstance(rule, AnyShard) else rule
        if self._shape == "unary_unary" and self._level != NO_SIDE_EFFECTS:
            self._sends_ids = self._method[1:] in self._router.once_methods
            level = IDEMPOTENT if self._sends_ids else self._level
            self._policy = policy_of(self._method[1:], level, self._peer.service_config)

    def _with_id(self, metadata: Metadata) -> Metadata:
        """The metadata of a call, with its id. It is that of all attempts."""
        peer = self._peer
        name = peer.nested_id(peer.name, self._method[1:]) if peer.nested_id is not None else None
        if self._placement is None:
            if self._router.serves_no_topology:
                self._sends_ids = False
                return metadata
            if name is None:
                return metadata
        return (*metadata, (IDEMPOTENCY_KEY, name or secrets.token_urlsafe(ID_BYTES)))

    def _read_key(self, request: Any, metadata: Any) -> str | None:
        """The key of a call; None where the topology is not known yet, or gives the method no key, or where the key is
        in a stream's first message."""
        rule = self._rule
        if rule is None:
            return None
        try:
            return rule.read(request) if isinstance(rule, FieldKey) else keys.key_in(rule, None, metadata)
        except BadKey:
            # The server refuses the call with the same text; or it allows longer keys than are usual, and forwards it.
            return None

    # Spans and counts

    def _start_span(self) -> Span:
        """Begin the span of a call; where calls are not traced here, the trace of the call in progress goes on."""
        tracer, parent = self._peer.tracer, current_trace()
        if tracer is None:
            return parent
        span = tracer.start(self._method[1:], "CLIENT", parent)
        if isinstance(span, SpanRecord):
            span.attributes = dict(self._peer.address_attributes)
        return span

    def _ended(self, span: Span, began: float, call: ClientCall) -> None:
        """The last attempt of a call has ended, or one attempt of a hedged call."""
        peer = self._peer
        peer.in_flight -= 1
        assert call.status is not None
        self._record_attempt_end(call, call.status.name, span)
        if self._policy.hedge_after_s is not None:
            # The hedged call itself keeps the budget, and ends the span.
            return
        if call.status is OK and self._policy.attempts > 1:
            peer.budget.succeeded()
        self._record_end(span, began, call)

    def _record_attempt_end(self, call: ClientCall, code: str, span: Span) -> None:
        """Let the health of the endpoint that an attempt went to count its outcome."""
        health, call.endpoint_health = call.endpoint_health, None
        if health is None:
            return
        if code != "OK" and (not call.tells_of_endpoint or moved_epoch(call.trailers) is not None):
            health.abandoned()
        elif health.ended(code, monotonic()):
            self._record_decision("ejections", code, span, {})

    def _record_end(self, span: Span, began: float, call: Any) -> None:
        """The call, with all of its attempts, has ended: record its duration and its span."""
        status: str = call.status.name
        if self._peer.duration is not None:
            duration = self._durations.get(status) or self._duration_of(status)
            seconds = perf_counter() - began
            duration.record(seconds)
            if isinstance(span, SpanRecord) and span.sampled:
                duration.add_exemplar(seconds, span)
        if self._peer.tracer is not None and span is not None:
            self._peer.tracer.end_call(span, status=status, server=False)

    def _duration_of(self, status: str) -> HistogramSeries:
        assert self._peer.duration is not None
        attributes = {SYSTEM: "grpc", METHOD: self._method[1:], STATUS: status}
        if status not in CLIENT_SUCCESSES:
            attributes[ERROR] = status
        attributes |= {name: str(value) for name, value in self._peer.address_attributes.items()}
        duration = self._durations[status] = self._peer.duration.at(attributes)
        return duration

    def _record_decision(self, decision: str, reason: str, span: Span, attributes: dict[str, Any]) -> None:
        """Count a decision about a call, and add it to the call's span as an event."""
        self._peer.count(decision, reason)
        if isinstance(span, SpanRecord):
            span.add_event(f"onelane.client.{decision}", {"onelane.reason": reason, **attributes}, time_ns())
