"""Publish and subscribe between the shards of an app."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from onelane.shard.topics import Inbox, Lost, Subscriber
from onelane.v1 import siblings_pb2, siblings_pb2_grpc

log = logging.getLogger("onelane.across")
M = TypeVar("M", bound=Message)


class Subscription(Generic[M]):
    """What comes on one topic: iterate over it, or let it call a function. Ends by `close`, or with its shard."""

    def __init__(
        self,
        inbox: Inbox,
        topic: str,
        kind: type[M],
        capacity: int,
        then: "Callable[[M | Lost], None] | None",
        *,
        ended: "Callable[[Subscription[M]], None]",
    ) -> None:
        self._inbox = inbox
        self._then = then
        self._ended = ended
        self._changed: asyncio.Future[None] | None = None
        self._is_closed = False
        self._subscriber: Subscriber[M] = Subscriber(topic, kind, capacity=capacity, wake=self._wake)
        inbox.add(self._subscriber)

    def close(self) -> None:
        """Take no more; an iteration over it ends."""
        self._is_closed = True
        self._inbox.remove(self._subscriber)
        self._ended(self)
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def __enter__(self) -> "Subscription[M]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aiter__(self) -> "AsyncIterator[M | Lost]":
        """The messages, one after the other, and `Lost` where some are missing."""
        while True:
            while (item := self._subscriber.take()) is not None:
                yield item
            if self._is_closed:
                return
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    def _wake(self) -> None:
        if self._then is not None:
            self._call(self._then)
        elif self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _call(self, then: "Callable[[M | Lost], None]") -> None:
        while (item := self._subscriber.take()) is not None:
            try:
                then(item)
            except Exception:
                log.exception("subscription.failed topic=%s", self._subscriber.topic)


class Siblings(siblings_pb2_grpc.SiblingsServicer):
    """`onelane.v1.Siblings`: takes what siblings publish."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def Publish(self, request: siblings_pb2.PublishRequest, context: Any) -> siblings_pb2.PublishReply:
        if not context.trusted:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "only the shards of this app publish here")
        self._inbox.receive(request)
        return siblings_pb2.PublishReply()
