"""Publish and subscribe between the shards of an app: batches leave over the siblings' sockets, once per tick.

The order of messages and the count of lost ones are `topics`'; this waits and sends.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import Context
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from onelane.core.context import TaskContext, current_call_var, current_trace
from onelane.core.placement import Member
from onelane.core.trace_context import parse_traceparent
from onelane.lane.lane import Lane
from onelane.shard.siblings import SiblingChannels
from onelane.shard.topics import Inbox, Lost, Outbox, Subscriber
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Counter, Stats
from onelane.telemetry.tracer import Span, Tracer, context_of
from onelane.v1 import siblings_pb2, siblings_pb2_grpc

log = logging.getLogger("onelane.across")
BATCH_S = 0.1
"""How long a published message may wait for more: a tick."""
DELIVER_S = 2.0
"""How long a sibling may take to accept a batch; then its messages are lost to that sibling, and counted."""
RESEND_AFTER_S = 0.05
"""Before a batch is sent again that a sibling which has left has not taken."""
FLUSH_S = 0.5
"""How long the last batches may take when a shard ends."""
MAX_BATCHES = 16
"""Batches that may wait for one sibling."""
M = TypeVar("M", bound=Message)


class Subscription(Generic[M]):
    """The messages of one topic: iterate over it, or let it call a function. Ends by `close`, or with its shard."""

    def __init__(
        self,
        inbox: Inbox,
        topic: str,
        kind: type[M],
        capacity: int,
        callback: "Callable[[M | Lost], None] | None",
        *,
        tracer: Tracer,
        closed: "Callable[[Subscription[M]], None]",
    ) -> None:
        """callback: takes each message; None where they are iterated over. closed: called by `close`."""
        self._tracer = tracer
        self._inbox = inbox
        self._callback = callback
        self._closed = closed
        self._changed: asyncio.Future[None] | None = None
        self._is_closed = False
        self._subscriber: Subscriber[M] = Subscriber(topic, kind, capacity=capacity, wake=self._wake)
        inbox.add(self._subscriber)

    def close(self) -> None:
        """Take no more messages; an iteration over it ends."""
        self._is_closed = True
        self._inbox.remove(self._subscriber)
        self._closed(self)
        self._resume()

    def __enter__(self) -> "Subscription[M]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aiter__(self) -> "AsyncIterator[M | Lost]":
        """The messages, one after the other, and `Lost` where some are missing."""
        while True:
            while (message := self._subscriber.take()) is not None:
                self._tracer.end(self._start_delivery())
                yield message
            if self._is_closed:
                return
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    def _wake(self) -> None:
        if self._callback is not None:
            self._call(self._callback)
        else:
            self._resume()

    def _resume(self) -> None:
        """Let an iteration go on that waits for a message."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _call(self, callback: "Callable[[M | Lost], None]") -> None:
        while (message := self._subscriber.take()) is not None:
            # A delivery is no part of the call that has published: it has not the deadline, trace or turn of that call.
            context = Context()
            span = context.run(self._start_delivery)
            context.run(current_call_var.set, TaskContext("/deliver", trace=context_of(span)))
            try:
                context.run(callback, message)
            except BaseException as error:
                log.exception("subscription.failed topic=%s", self._subscriber.topic)
                self._tracer.end(span, error=type(error).__qualname__)
            else:
                self._tracer.end(span)

    def _start_delivery(self) -> Span:
        """The span of a message that was taken now: it links to that of its publishing."""
        published = parse_traceparent(self._subscriber.traceparent)
        if published is None:
            return None
        return self._tracer.start_linked("deliver", "CONSUMER", published, current_trace())


class BatchSender:
    """Sends batches to one sibling, in order, one at a time."""

    def __init__(self, lane: str, member: Member, channels: SiblingChannels, lost: Counter) -> None:
        self.has_left = False
        """The placement has the sibling no more: it is sent batches until it ends, for the calls that it finishes."""
        self.is_over = False
        """The sibling has left, and has ended."""
        self._lane = lane
        self._member = member
        self._channels = channels
        self._lost = lost
        self._batches: asyncio.Queue[siblings_pb2.PublishRequest] = asyncio.Queue(MAX_BATCHES)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def send(self, batch: siblings_pb2.PublishRequest) -> None:
        """Queue a batch. It is lost where the queue is full, or the sibling does not accept it within `DELIVER_S`."""
        try:
            self._batches.put_nowait(batch)
        except asyncio.QueueFull:
            self._count_lost(batch)

    async def flush(self) -> None:
        """Wait until every queued batch has been sent or lost."""
        await self._batches.join()

    def cancel(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            batch = await self._batches.get()
            try:
                await self._deliver(batch)
            finally:
                self._batches.task_done()

    async def _deliver(self, batch: siblings_pb2.PublishRequest) -> None:
        """Send a batch; one that a sibling which has left does not take is sent again: it may only be busy."""
        until = monotonic() + DELIVER_S
        while not self.is_over:
            try:
                # Of each attempt: where the sibling was unresponsive, it has another channel now.
                stub: Any = siblings_pb2_grpc.SiblingsStub(self._channels.to(self._member))
                await stub.Publish(batch, timeout=max(0.0, until - monotonic()))
                return
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            if self.has_left and not await self._channels.is_listening(self._member):
                self._end()
                return
            if not self.has_left or monotonic() + RESEND_AFTER_S >= until:
                log.warning("publish.undelivered shard=%s to=%s code=%s", self._lane, self._member.name, code)
                self._count_lost(batch)
                return
            await asyncio.sleep(RESEND_AFTER_S)

    def _end(self) -> None:
        """Nobody is there any more who could miss a batch."""
        self.is_over = True
        self._channels.give_up(self._member)
        while not self._batches.empty():
            self._batches.get_nowait()
            self._batches.task_done()

    def _count_lost(self, batch: siblings_pb2.PublishRequest) -> None:
        self._lost.add(len(batch.messages), {"onelane.reason": "undelivered"})


class PubSub:
    """The topics of one shard: what it publishes and its subscriptions. Owned by its lane."""

    def __init__(
        self,
        lane: Lane,
        channels: SiblingChannels,
        *,
        stats: Stats,
        tracer: Tracer,
        incarnation: int,
        max_lag: int,
        max_published: int,
    ) -> None:
        """incarnation: drawn at start, so that siblings tell a restarted publisher from the one before.

        max_lag: messages that a subscriber may lag behind. max_published: messages of one tick.
        """
        self._lane = lane
        self._channels = channels
        self._tracer = tracer
        self._max_lag = max_lag
        self._lost = stats.counter(
            "onelane.messages.lost",
            unit="{message}",
            description="Messages that a subscriber or a shard missed",
        )
        self._outbox = Outbox(lane.name, incarnation, limit=max_published)
        self._inbox = Inbox(lost=self._count_slow)
        self.receive = self._inbox.receive
        """Takes a batch of a sibling."""
        self._senders: dict[str, BatchSender] = {}
        self._subscriptions: set[Subscription[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def publish(self, topic: str, message: Message, *, at_once: bool) -> None:
        """See `Shard.publish`."""
        span = self._tracer.start("publish", "PRODUCER", current_trace())
        try:
            self._outbox.add(topic, message, _traceparent(span))
        except BaseException as error:
            self._tracer.end(span, error=type(error).__qualname__)
            raise
        self._tracer.end(span)
        if at_once:
            self._send_batch()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._send_batch, context=Context())

    def subscribe(self, topic: str, kind: type[M], callback: "Callable[[M | Lost], None] | None") -> "Subscription[M]":
        """See `Shard.subscribe`."""
        subscription = Subscription(
            self._inbox,
            topic,
            kind,
            self._max_lag,
            callback,
            tracer=self._tracer,
            closed=self._subscriptions.discard,
        )
        self._subscriptions.add(subscription)
        return subscription

    async def aclose(self) -> None:
        """Send the last batches, and end every subscription."""
        self._send_batch()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                for sender in self._senders.values():
                    await sender.flush()
        for sender in self._senders.values():
            sender.cancel()
        for subscription in list(self._subscriptions):
            subscription.close()

    def _send_batch(self) -> None:
        """Move all published messages to every shard of the placement, this one among them, and to those that have left
        it and finish their calls."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not len(self._outbox):
            return
        batch = self._outbox.take()
        siblings = {member.socket: member for member in self._lane.router.siblings()}
        for socket in [socket for socket, sender in self._senders.items() if sender.is_over]:
            self._senders.pop(socket).cancel()
        for socket in siblings.keys() - self._senders.keys():
            self._senders[socket] = BatchSender(self._lane.name, siblings[socket], self._channels, self._lost)
        for socket, sender in self._senders.items():
            sender.has_left = socket not in siblings
            sender.send(batch)
        self._inbox.receive(batch)

    def _count_slow(self, count: int) -> None:
        if count:
            self._lost.add(count, {"onelane.reason": "slow"})


def _traceparent(span: Span) -> str:
    """Of a span that is sampled; "" of another."""
    return span.context.traceparent() if isinstance(span, SpanRecord) and span.sampled else ""
