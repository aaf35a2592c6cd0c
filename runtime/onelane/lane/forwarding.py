"""Forwarding of a call that another shard owns: sent there once, and once more if the owner has changed meanwhile.

Promises: every forwarded call ends, once; it is counted by the shard that served it. A call of one message and one
answer has no task here; a stream is carried by the task of its call.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import grpc

from onelane.core import keys
from onelane.core.hop import SERVED
from onelane.core.keys import FieldKey
from onelane.core.placement import Member
from onelane.lane.forwarder import NOT_HOME, Done, Forwarder, take_marker
from onelane.lane.method_entry import Entry
from onelane.lane.routing import Router
from onelane.server import status
from onelane.server.call import AWAY, OK, Call
from onelane.server.call_state import FORWARDED
from onelane.server.handler import parse
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Span, Tracer, context_of

NEWER_PLACEMENT_S = 1.0
"""How long a call waits for the newer placement of which its owner told."""


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
        fail: Callable[[Entry, Call, BaseException], None],
    ) -> None:
        """end: counts and answers a call. fail: gives it the status of an exception first."""
        self._forwarder = forwarder
        self._router = router
        self._tracer = tracer
        self._end = end
        self._fail = fail
        self._placed = asyncio.Event()
        self._retries: set[asyncio.Task[None]] = set()
        """Calls that wait for a newer placement."""
        self._forwards = stats.counter("onelane.forwards", unit="{call}", description="Calls sent on to the owner").at()

    def placed(self) -> None:
        """The router has a newer placement."""
        self._placed.set()
        self._placed = asyncio.Event()

    def give_up(self, owner: Member) -> None:
        """Its lane does not tick any more: end the calls that were forwarded to it, with UNAVAILABLE."""
        self._forwarder.give_up(owner)

    def send(self, owner: Member, entry: Entry, call: Call, request: bytes) -> None:
        """Forward a call of one message and one answer, without a task; `_answered` goes on."""
        self._forwards.add()
        span = self._tracer.start(entry.method.name, "CLIENT", call.parent, remote=True)
        sent_in = self._router.placement.epoch
        try:
            self._begin(owner, call, request, span, partial(self._answered, entry, call, request, span, sent_in))
        except BaseException:
            self._end_span(span, grpc.StatusCode.INTERNAL)
            raise

    async def stream(self, owner: Member, entry: Entry, call: Call, request: bytes | None) -> bytes:
        """Forward a call with a stream in it; its reply, where that is one message. request: None where the client
        streams."""
        method = entry.method
        self._forwards.add()
        span = self._tracer.start(method.name, "CLIENT", call.parent, remote=True)
        sent_in = self._router.placement.epoch
        send = partial(self._forwarder.stream, streams_response=method.response_streaming)
        try:
            reply = await send(owner, call, request, context_of(span))
            epoch = _newer_epoch(call, sent_in)
            if epoch is not None and not call.initial_sent and await self._is_placed_by(epoch):
                owner = self._take_back(entry, call, call.first or b"" if request is None else request)
                reply = await send(owner, call, request, context_of(span))
            return reply
        finally:
            take_marker(call, NOT_HOME)
            self._end_hop(call, span)

    def _begin(self, owner: Member, call: Call, request: bytes, span: Span, done: Done) -> None:
        call.state = call.state.forward
        self._forwarder.begin(owner, call, request, context_of(span), done)

    def _answered(self, entry: Entry, call: Call, request: bytes, span: Span, sent_in: int, reply: bytes) -> None:
        """The outcome that the owner gave stands in the call: end it, or send it to a newer owner."""
        epoch = _newer_epoch(call, sent_in)
        if epoch is None:
            self._close(entry, call, span, reply)
            return
        retry = asyncio.get_running_loop().create_task(self._retry(entry, call, request, span, epoch))
        self._retries.add(retry)
        retry.add_done_callback(partial(self._retry_ended, entry, call, span))
        call.cancel_forward = retry.cancel

    async def _retry(self, entry: Entry, call: Call, request: bytes, span: Span, epoch: int) -> None:
        """The owner knows a newer placement: wait for it, and send the call once more."""
        try:
            is_placed = await self._is_placed_by(epoch)
        except asyncio.CancelledError:
            self._cancelled(call)
            is_placed = False
        if not is_placed:
            self._close(entry, call, span, b"")
            return
        owner = self._take_back(entry, call, request)
        self._begin(owner, call, request, span, partial(self._close, entry, call, span))

    async def _is_placed_by(self, epoch: int) -> bool:
        """Wait for a placement of this epoch or a newer one; whether it has come in time."""
        try:
            async with asyncio.timeout(NEWER_PLACEMENT_S):
                while self._router.placement.epoch < epoch:
                    await self._placed.wait()
        except TimeoutError:
            return False
        return True

    def _take_back(self, entry: Entry, call: Call, request: bytes) -> Member:
        """Forget that a call was refused; its owner by the newer placement. request: its first message."""
        call.fail(OK, "")
        call.trailers = ()
        owner = self._router.placement.owner_of(_key_of(entry, call, request))
        self._router.check_serves(owner)
        return owner

    def _retry_ended(self, entry: Entry, call: Call, span: Span, retry: "asyncio.Task[None]") -> None:
        """The call ends also where its retry was cancelled before its first step, or failed."""
        self._retries.discard(retry)
        if retry.cancelled():
            # A task that is cancelled before its first step has run nothing, not even an `except`.
            self._cancelled(call)
            self._close(entry, call, span, b"")
        elif call.state is FORWARDED and (error := retry.exception()) is not None:
            self._fail(entry, call, error)
            self._end_span(span, call.code_now)

    def _cancelled(self, call: Call) -> None:
        """Its client, or its shard that shuts down, has cancelled a call that waits for a newer placement."""
        status.cancelled(call, shard=self._router.shard, draining=True)

    def _close(self, entry: Entry, call: Call, span: Span, reply: bytes) -> None:
        call.cancel_forward = None
        self._end_hop(call, span)
        self._end(entry, call, reply)

    def _end_hop(self, call: Call, span: Span) -> None:
        self._end_span(span, call.code_now)
        if take_marker(call, SERVED) is not None:
            # Counted by the shard that served it.
            call.hop = AWAY

    def _end_span(self, span: Span, code: grpc.StatusCode) -> None:
        self._tracer.end_call(span, status=code.name, hop="forwarded", server=False)


def _newer_epoch(call: Call, sent_in: int) -> int | None:
    """The epoch of the newer placement by which the owner has refused a call; None where it has not. sent_in: the epoch
    by which the call was sent there."""
    epoch = take_marker(call, NOT_HOME) if call.code_now is grpc.StatusCode.UNAVAILABLE else None
    return int(epoch) if epoch is not None and epoch.isdigit() and int(epoch) > sent_in else None


def _key_of(entry: Entry, call: Call, request: bytes) -> str:
    header = keys.header_of(call.metadata)
    if header:
        return header
    rule = entry.method.rule
    assert isinstance(rule, FieldKey)
    return rule.read(parse(entry.method, request))
