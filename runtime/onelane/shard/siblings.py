"""Talking across the lanes of one app: calls to the owner of a key and to every shard, and messages on topics.

Siblings are reached over their Unix sockets; what is for this very shard goes to its lane without one. Calls carry what
is left of the deadline, the trace and the chain, as those to other apps do.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import Message

from onelane.client.channel import NativeChannel
from onelane.client.propagation import outgoing
from onelane.core import keys
from onelane.core.context import current_baggage, current_call, current_trace
from onelane.core.keys import ANY
from onelane.core.placement import Member
from onelane.errors import BadService
from onelane.lane.forwarder import DIALLING, SERVED
from onelane.lane.lane import Lane
from onelane.server import methods
from onelane.server.call import OK, Call, Metadata
from onelane.server.methods import Method
from onelane.shard.pubsub import Subscription
from onelane.shard.topics import Inbox, Lost, Outbox
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer, context_of
from onelane.v1 import siblings_pb2, siblings_pb2_grpc

log = logging.getLogger("onelane.across")
BATCH_S = 0.1
"""How long what is published may wait for more: a tick."""
DELIVER_S = 2.0
"""How long a sibling may take to accept a batch; then the batch is lost to it, and counted."""
GOODBYE_S = 0.5
"""What the last batches may take to leave when a shard ends."""
MOST_BATCHES = 16
"""Batches that may wait for one sibling."""
M = TypeVar("M", bound=Message)
Req = TypeVar("Req", bound=Message)
Rep = TypeVar("Rep")
Which = str | Callable[[Any, Req, Any], Rep | Awaitable[Rep]]
"""A method of this app: `LobbyServicer.Join`, or its name `arena.v1.Lobby/Join`."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Rep]):
    """What one shard has said to a `call_each`."""

    shard: str
    reply: Rep | None
    """None where it failed."""
    error: grpc.aio.AioRpcError | None


class LocalCall(Call):
    """A call from a shard to itself: no socket, but all else that a call is."""

    __slots__ = ("_deadline_at",)

    def __init__(self, method: str, metadata: Metadata, timeout_s: float | None) -> None:
        super().__init__(method, metadata, trusted=True)
        self._deadline_at = None if timeout_s is None else monotonic() + timeout_s

    def time_remaining(self) -> float | None:
        return None if self._deadline_at is None else max(0.0, self._deadline_at - monotonic())

    def peer(self) -> str:
        return "lane"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    async def send_initial(self, metadata: Metadata) -> None:
        """Nobody asks for it."""


class Across:
    """What a shard says to its siblings. Owned by its lane."""

    def __init__(
        self,
        lane: Lane,
        *,
        tracer: Tracer,
        stats: Stats,
        deadline_s: float,
        incarnation: int,
        capacity: int,
        limit: int,
    ) -> None:
        """incarnation: drawn at start. capacity: messages a subscriber may lag behind. limit: messages of a tick."""
        self._lane = lane
        self._tracer = tracer
        self._deadline_s = deadline_s
        self._capacity = capacity
        self._channels: dict[str, NativeChannel] = {}
        self._outbox = Outbox(lane.name, incarnation, limit=limit)
        self._lost = stats.counter(
            "onelane.messages.lost",
            unit="{message}",
            description="Messages that a subscriber or a shard missed",
        )
        self.inbox = Inbox(lost=lambda count: self._lost.add(count, {"onelane.reason": "slow"}) if count else None)
        self._batches: dict[str, asyncio.Queue[siblings_pb2.PublishRequest]] = {}
        self._senders: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: set[Subscription[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    # Calls

    async def call(self, key: str | bytes | int, which: Which[Req, Rep], request: Req, limit_s: float | None) -> Rep:
        """See `Shard.call`."""
        text = keys.canonical(key)
        owner = self._lane.placement.owner_of(text)
        deadline_at = self._deadline_at(limit_s)
        reply: Rep = await self._send(owner, self._unary(which), request, ((keys.HEADER, text),), deadline_at)
        return reply

    async def call_each(self, which: Which[Req, Rep], request: Req, limit_s: float | None) -> list[Answer[Rep]]:
        """See `Shard.call_each`."""
        method = self._unary(which)
        if method.rule is not ANY:
            raise BadService(f"call_each: {method.name} has a key, so one shard owns it; expected a method that is ANY")
        deadline_at = self._deadline_at(limit_s)

        async def ask(member: Member) -> Answer[Rep]:
            try:
                return Answer(member.name, await self._send(member, method, request, (), deadline_at), None)
            except grpc.aio.AioRpcError as error:
                return Answer(member.name, None, error)

        return list(await asyncio.gather(*(ask(member) for member in self._lane.placement.members)))

    def _unary(self, which: Any) -> Method:
        method = self._find(which)
        if method.request_streaming or method.response_streaming:
            raise BadService(f"{method.name} is a streaming method; expected one message and one answer")
        return method

    def _find(self, which: Any) -> Method:
        if isinstance(which, str):
            entry = self._lane.entries.get(f"/{which.removeprefix('/')}")
            if entry is not None:
                return entry.method
        else:
            for entry in self._lane.entries.values():
                if methods.is_of(entry.method, which):
                    return entry.method
        raise BadService(f"no service of this app has the method {which!r}")

    def _deadline_at(self, timeout_s: float | None) -> float:
        return monotonic() + (self._deadline_s if timeout_s is None else timeout_s)

    async def _send(self, to: Member, method: Method, request: Message, metadata: Metadata, deadline_at: float) -> Any:
        span = self._tracer.start(method.name, "CLIENT", current_trace())
        metadata, timeout_s = outgoing(
            tuple(metadata),
            max(0.0, deadline_at - monotonic()),
            context=current_call(),
            trace=context_of(span),
            baggage=current_baggage(),
            now=monotonic,
        )
        send = self._send_here if to.name == self._lane.name else self._send_there
        status = "CANCELLED"
        try:
            reply = await send(to, method, request.SerializeToString(), metadata, timeout_s)
            status = "OK"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            raise
        finally:
            self._tracer.end_call(span, status=status, server=False)
        return _reply_class(method).FromString(reply)

    async def _send_there(
        self, to: Member, method: Method, request: bytes, metadata: Metadata, timeout_s: float | None
    ) -> bytes:
        send = self._channel(to).unary_unary(method.path)
        reply: bytes = await send(request, metadata=metadata, timeout=timeout_s)
        return reply

    async def _send_here(
        self, to: Member, method: Method, request: bytes, metadata: Metadata, timeout_s: float | None
    ) -> bytes:
        call = LocalCall(method.path, metadata, timeout_s)
        # A task of its own, so that what it sets in its context is not the caller's.
        serving = asyncio.get_running_loop().create_task(self._lane.serve(method, call, request))
        try:
            async with asyncio.timeout(call.time_remaining()):
                await serving
        except TimeoutError:
            call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        if call.code_now is not OK:
            trailers = grpc.aio.Metadata(*(pair for pair in call.trailers if pair[0] != SERVED))
            raise grpc.aio.AioRpcError(call.code_now, grpc.aio.Metadata(), trailers, call.details_now)
        return call.reply

    def _channel(self, to: Member) -> NativeChannel:
        if to.socket not in self._channels:
            self._channels[to.socket] = NativeChannel(f"unix:{to.socket}", DIALLING)
        return self._channels[to.socket]

    # Topics

    def publish(self, topic: str, message: Message, *, at_once: bool) -> None:
        """See `Shard.publish`."""
        self._outbox.add(topic, message)
        if at_once:
            self._hand_over()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._hand_over)

    def subscribe(self, topic: str, kind: type[M], then: "Callable[[M | Lost], None] | None") -> "Subscription[M]":
        """See `Shard.subscribe`."""
        made = Subscription(self.inbox, topic, kind, self._capacity, then, ended=self._subscriptions.discard)
        self._subscriptions.add(made)
        return made

    def _hand_over(self) -> None:
        """Give what was published to every shard, this one among them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not len(self._outbox):
            return
        batch = self._outbox.take()
        members = self._lane.placement.members
        for gone in set(self._senders) - {member.name for member in members}:
            self._senders.pop(gone).cancel()
            del self._batches[gone]
        for member in members:
            if member.name != self._lane.name:
                self._queue(member, batch)
        self.inbox.receive(batch)

    def _queue(self, to: Member, batch: siblings_pb2.PublishRequest) -> None:
        if to.name not in self._batches:
            self._batches[to.name] = asyncio.Queue(MOST_BATCHES)
            self._senders[to.name] = asyncio.get_running_loop().create_task(self._deliver(to, self._batches[to.name]))
        try:
            self._batches[to.name].put_nowait(batch)
        except asyncio.QueueFull:
            self._undelivered(batch)

    async def _deliver(self, to: Member, batches: asyncio.Queue[siblings_pb2.PublishRequest]) -> None:
        """Send batches to one sibling, one after the other; one that it does not take in time is lost to it."""
        send = siblings_pb2_grpc.SiblingsStub(self._channel(to)).Publish
        while True:
            batch = await batches.get()
            try:
                await send(batch, timeout=DELIVER_S)
            except grpc.aio.AioRpcError as error:
                log.warning("publish.undelivered shard=%s to=%s code=%s", self._lane.name, to.name, error.code().name)
                self._undelivered(batch)
            finally:
                batches.task_done()

    def _undelivered(self, batch: siblings_pb2.PublishRequest) -> None:
        self._lost.add(len(batch.messages), {"onelane.reason": "undelivered"})

    async def aclose(self) -> None:
        """Hand over what waits, end every subscription, hang up."""
        self._hand_over()
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                for batches in self._batches.values():
                    await batches.join()
        for sender in self._senders.values():
            sender.cancel()
        for subscription in list(self._subscriptions):
            subscription.close()
        for channel in self._channels.values():
            await channel.close()


def _reply_class(method: Method) -> Any:
    descriptor = keys.describe(method.path)
    if descriptor is None:
        raise BadService(f"{method.name}: its proto has not been imported")
    return message_factory.GetMessageClass(descriptor.output_type)
