"""Publish and subscribe between the shards of one app: the queues, the order, and the count of lost messages.

Promises: a subscriber receives the messages of each publisher in the order of publishing, each at most once, and the
number of the messages that it has missed; every queue is bounded. Pure: nothing here waits or sends.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message

from onelane.errors import Overloaded
from onelane.v1.siblings_pb2 import Published, PublishRequest

M = TypeVar("M", bound=Message)
MAX_INCARNATIONS = 2


@dataclass(frozen=True, slots=True)
class Lost:
    """A subscriber has missed `count` messages: it was too slow, or its shard was unreachable."""

    count: int


class Subscriber(Generic[M]):
    """The queue of one subscription: `capacity` messages at most, of which the oldest are dropped first."""

    def __init__(self, topic: str, kind: type[M], *, capacity: int, wake: Callable[[], None]) -> None:
        """wake: called whenever `take` has something to return."""
        self.topic = topic
        self.kind = kind
        self._queue: deque[tuple[M, str]] = deque(maxlen=capacity)
        self.traceparent = ""
        """The span of the publishing of the message that was taken last; "" where that is not sampled."""
        self._lost = 0
        self._wake = wake

    def put(self, message: M, traceparent: str = "") -> int:
        """Queue one message; returns how many were dropped for it, 0 or 1."""
        dropped = int(len(self._queue) == self._queue.maxlen)
        self._lost += dropped
        self._queue.append((message, traceparent))
        self._wake()
        return dropped

    def missed(self, count: int) -> None:
        """Report the loss of `count` messages of a publisher to the subscriber."""
        self._lost += count
        self._wake()

    def take(self) -> "M | Lost | None":
        """The next message, or `Lost` if messages are missing before it; None if the queue is empty."""
        if self._lost:
            lost, self._lost = Lost(self._lost), 0
            self.traceparent = ""
            return lost
        if not self._queue:
            return None
        message, self.traceparent = self._queue.popleft()
        return message


class Outbox:
    """The messages that one shard has published and not yet sent: `limit` at most."""

    def __init__(self, publisher: str, incarnation: int, *, limit: int) -> None:
        self._publisher = publisher
        self._incarnation = incarnation
        self._limit = limit
        self._waiting: list[Published] = []
        self._next = 1

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, topic: str, message: Message, traceparent: str = "") -> None:
        """Queue one message. traceparent: of the span of its publishing, where that is sampled.

        Raises:
            Overloaded: `limit` messages wait already.
        """
        if len(self._waiting) >= self._limit:
            raise Overloaded(f"shard {self._publisher}, the queue of published messages", waiting=len(self._waiting))
        packed = Packed()
        packed.Pack(message)
        self._waiting.append(Published(topic=topic, message=packed, traceparent=traceparent))

    def take(self) -> PublishRequest:
        """Move all messages out, as one batch."""
        messages, self._waiting = self._waiting, []
        first, self._next = self._next, self._next + len(messages)
        return PublishRequest(publisher=self._publisher, incarnation=self._incarnation, first=first, messages=messages)


class Inbox:
    """The subscribers of this shard, and the number of the next message that each publisher will send."""

    def __init__(self, *, lost: Callable[[int], None]) -> None:
        """lost: called with the number of messages that a slow subscriber has missed."""
        self._subscribers: dict[str, list[Subscriber[Any]]] = {}
        self._expected: dict[str, dict[int, int]] = {}
        """Publisher → its last incarnations, each with the number of its next message. Two live side by side while the
        later one takes over."""
        self._count_lost = lost

    def add(self, subscriber: Subscriber[Any]) -> None:
        self._subscribers.setdefault(subscriber.topic, []).append(subscriber)

    def remove(self, subscriber: Subscriber[Any]) -> None:
        subscribers = self._subscribers.get(subscriber.topic, [])
        if subscriber in subscribers:
            subscribers.remove(subscriber)
            if not subscribers:
                del self._subscribers[subscriber.topic]

    def receive(self, batch: PublishRequest) -> None:
        """Deliver a batch to the subscribers of its topics, except messages received before; a gap becomes `Lost`."""
        incarnations = self._expected.setdefault(batch.publisher, {})
        expected = incarnations.get(batch.incarnation, batch.first)
        if batch.first > expected:
            # The topics of the missing messages are unknown, so every subscriber gets the gap.
            for subscribers in self._subscribers.values():
                for subscriber in subscribers:
                    subscriber.missed(batch.first - expected)
        for published in list(batch.messages)[max(0, expected - batch.first) :]:
            self._deliver(published)
        incarnations[batch.incarnation] = max(expected, batch.first + len(batch.messages))
        if len(incarnations) > MAX_INCARNATIONS:
            del incarnations[next(iter(incarnations))]

    def _deliver(self, published: Published) -> None:
        for subscriber in self._subscribers.get(published.topic, ()):
            message = subscriber.kind()
            if published.message.Unpack(message):
                self._count_lost(subscriber.put(message, published.traceparent))
